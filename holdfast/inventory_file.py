"""Read an inventory file as pyinfra's command line does, without any connection."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from pyinfra.api import State
from pyinfra.api.inventory import Inventory
from pyinfra.context import ctx_state
from pyinfra_cli.exceptions import UnexpectedExternalError
from pyinfra_cli.inventory import make_inventory_from_files
from pyinfra_cli.util import PYTHON_CODES, exec_file

from holdfast import site
from holdfast.refusal import Refusal, Refused, shown
from holdfast.settings import HostSettings


def _refuse(path: str, key: str, value: object, wrong: str, mend: str) -> NoReturn:
    raise Refused([Refusal(path, key, shown(value), wrong, mend)]) from None


def _groups(path: str) -> dict[str, Any]:
    """Run the file with Python and return its names.

    Raises:
        Refused: Python could not, or the file ended the program.
    """
    try:
        found: dict[str, Any] = exec_file(path, return_locals=True)
    except UnexpectedExternalError as error:
        cause: BaseException = error.exception
    except (Exception, SystemExit) as error:
        cause = error
    else:
        return found
    wrong = f"Python raises {type(cause).__name__} here: {cause}"
    if isinstance(cause, SyntaxError) and cause.filename in (None, "<string>", path):
        number = cause.lineno
        wrong = f"this is not valid Python: {cause.msg}"
    elif isinstance(cause, UnicodeDecodeError):
        number, wrong = None, "this is not UTF-8 text"
    else:
        frames = traceback.extract_tb(cause.__traceback__)
        number = next((each.lineno for each in reversed(frames) if each.filename == path), None)
    if number is None:
        _refuse(path, "INVENTORY", path, wrong, "write a file that Python can read")
    lines = Path(path).read_text("utf-8", "replace").splitlines()
    line = lines[number - 1].strip() if number <= len(lines) else ""
    _refuse(path, f"line {number}", line, wrong.replace("\n", " "), "correct that line")


def _no_group(key: str) -> str:
    """A hint for a list or tuple that pyinfra takes for a group of hosts."""
    return "" if key == "hosts" else f"; if it lists no hosts, call it _{key}"


def _entries(path: str, key: str, group: list[Any] | tuple[Any, ...]) -> list[Any]:
    """The hosts of a group; it may be a tuple of hosts and their shared data."""
    if isinstance(group, list):
        return group
    if len(group) == 2 and isinstance(group[0], list) and isinstance(group[1], dict):
        return group[0]
    mend = f"write a list{_no_group(key)}"
    _refuse(path, key, group, "pyinfra reads a tuple as hosts and their data", mend)


def _check_entries(path: str, key: str, entries: list[Any]) -> None:
    """Refuse a group of hosts that pyinfra cannot read, or that names a host twice."""
    names: list[str] = []
    for index, entry in enumerate(entries):
        at = f"{key}[{index}]"
        mend = f'write "@rack/NAME", or ("@rack/NAME", {{its settings}}){_no_group(key)}'
        pair = isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[1], dict)
        name = entry[0] if pair else entry
        if not isinstance(name, str):
            _refuse(path, at, entry, "this is not a host", mend)
        if not re.fullmatch(r"@rack/[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name):
            wrong = "this is not a host of Holdfast" if "@" in name else "it skips the checks"
            plain = name.removeprefix("@rack").strip("/")
            usual = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", plain)
            mend = f"write @rack/{plain if usual else 'NAME'}{_no_group(key)}"
            _refuse(path, at, name, wrong, mend)
        for word in entry[1] if pair else {}:
            if not isinstance(word, str):
                _refuse(path, f"{at}.{word!r}", word, "a key must be text", "write it in quotes")
        if name.lower() in map(str.lower, names):
            _refuse(path, at, name, "this host is in the list twice", "keep one")
        names.append(name)


def read(path: str) -> Inventory:
    """The inventory file ``path`` as pyinfra reads it; settings of hosts are not checked yet.

    Raises:
        Refused: the file fails when Python runs it, or lists no hosts of ours.
    """
    if not Path(path).is_file():
        _refuse(path, "INVENTORY", path, "there is no such file", "name a file in inventories/")
    # pyinfra caches code by file name; the file may have changed, so it is read again.
    PYTHON_CODES.pop(path, None)
    with ctx_state.use(State()):
        said = _groups(path)
        if not isinstance(said.get("hosts", []), list):
            kind = type(said["hosts"]).__name__
            _refuse(path, "hosts", said["hosts"], f"this is a {kind}", "write a list of hosts")
        groups = {
            name: _entries(path, name, value)
            for name, value in said.items()
            if not name.startswith("_") and isinstance(value, list | tuple)
        }
        for name, entries in groups.items():
            _check_entries(path, name, entries)
        if not any(groups.values()):
            _refuse(path, "hosts", [], "there is no host", "list one as @rack/NAME")
        inventory: Inventory = make_inventory_from_files(path, cwd=str(Path.cwd()))
    return inventory


def load(path: str) -> dict[str, HostSettings]:
    """The settings of every host in the inventory file ``path``.

    Raises:
        Refused: it cannot work as it is written.
    """
    inventory = read(path)
    return site.load(inventory)


@contextmanager
def refusals() -> Iterator[None]:
    """Print refusals and exit with status 1."""
    try:
        yield
    except Refused as refused:
        for refusal in refused.refusals:
            print(refusal, file=sys.stderr)  # noqa: T201
    else:
        return
    raise SystemExit(1)
