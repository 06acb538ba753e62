"""`make accept-plans`: what a deploy would do to a bare machine, recorded for review.

For each inventory that comes with Holdfast, on each distribution, `deploys/site.py` is prepared by
pyinfra for machines with nothing on them. Each operation is written down with the packages, files
(mode, owner, checksum), units and commands that it asks for. Where the operation is one of the
generic verbs its arguments say that; what the verbs themselves run is in `verbs.txt`, once. Secrets
have fixed values, and checksums are the first 16 digits of SHA-256.
"""

from __future__ import annotations

import argparse
import base64
import difflib
import hashlib
import json
import os
import re
import runpy
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args
from unittest import mock

from jinja2 import BaseLoader, Environment
from pyinfra.api import Config, FunctionCommand, Inventory, State, StringCommand, operation
from pyinfra.api.host import Host
from pyinfra.api.state import StateStage
from pyinfra.context import ctx_config, ctx_host, ctx_inventory, ctx_state

from holdfast import render, site
from holdfast.settings import AptRepository, Distribution, HostSettings
from operations import apt_repository, gpu_driver, host_files, packages, units
from operations.host_files import HostDirectory, HostFile
from operations.units import Unit
from tests.unit.bare_machine import BareMachine
from tests.unit.site_data import filled_in, good, keep_secrets

ROOT = Path(__file__).resolve().parents[2]
RECORDED = Path(__file__).parent / "recorded" / "plans"
DATA = Path(__file__).parent / "data"
SECRET = "9fKq27xLmZ"
"""Part of every secret that the plans are made with; it must be in none of them."""
DISTRIBUTIONS: tuple[Distribution, ...] = get_args(Distribution)
INVENTORIES = {
    "complete": DISTRIBUTIONS,
    # The lab has no Ubuntu.
    "drill": ("debian12", "debian13"),
    "example": DISTRIBUTIONS,
    "reference": DISTRIBUTIONS,
}
_HEAD = "a line that is not on all says on which"
_SCRIPT_LINES = 25
"""From so many lines on a command is a script, for which its checksum stands."""
_MARK = "# template {}."
MARKED = re.compile(r"# template (\S+)\.(?=\s|$)")


@dataclass(frozen=True)
class _Asked:
    """In place of the commands of a generic verb: what it was asked for."""

    verb: str
    arguments: dict[str, Any]


class Plan:
    """What is asked of one host, line by line, and every text that a checksum in it stands for."""

    def __init__(self, machine: BareMachine) -> None:
        self.lines: list[str] = []
        self.texts: list[str] = []
        self.units: set[tuple[str, str]] = set()
        """Path and text of each service unit."""
        self._machine = machine

    def add(self, operation: str, commands: Iterator[Any]) -> None:
        """Write an operation down, by the commands that it would run and what it asks of verbs."""
        self.lines.append(f"== {operation}")
        for command in commands:
            if isinstance(command, _Asked):
                self.lines += getattr(self, f"_{command.verb}")(**command.arguments)
            elif isinstance(command, FunctionCommand):
                self.lines.append(self._call(command))
            else:
                self.lines += self._command(command)

    def templates(self) -> set[str]:
        """The marked templates, of which a byte cannot change without a change of the plan."""
        return {name for text in self.texts for name in MARKED.findall(text)}

    def _digest(self, text: str) -> str:
        self.texts.append(text)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _call(self, command: FunctionCommand) -> str:
        if command.function is gpu_driver.reboot_once:
            self._machine.reboot()
        told = (repr(each) for each in command.args if isinstance(each, str))
        return " ".join([f"call {command.function.__name__}", *told])

    def _command(self, command: StringCommand) -> Iterator[str]:
        text = command.get_raw_value()
        self.texts.append(text)
        if "ufw --force enable" in text:
            self._machine.wall()
        if "tailscale up" in text:
            self._machine.join()
        first, *more = (line for long in text.splitlines() for line in _broken(long))
        yield f"$ {first}"
        if len(more) < _SCRIPT_LINES:
            yield from (f"  {line}" for line in more)
        else:
            yield f"  and {len(more)} lines more, in all {self._digest(text)}"
        stdin = command.connector_arguments.get("_stdin")
        if stdin is not None:
            yield f"  < {self._digest(_unpacked(text, str(stdin)))}"

    def _place(
        self,
        files: list[HostFile] | None = None,
        directories: list[HostDirectory] | None = None,
        absent: list[str] | None = None,
    ) -> Iterator[str]:
        """The lines of `host_files.place`."""
        for each in directories or []:
            yield f"directory {each.path} {each.mode} {each.user}:{each.group}"
        for file in files or []:
            judged = f" if {file.validate}" if file.validate else ""
            own = f"{file.mode} {file.user}:{file.group}"
            if file.path.endswith(".service"):
                self.units.add((file.path, file.content))
            yield f"file {file.path} {own} {self._digest(file.content)}{judged}"
        for path in absent or []:
            yield f"no {path}"

    def _present(self, packages: list[str]) -> Iterator[str]:
        """The lines of `packages.present`."""
        for package in packages:
            yield f"package {package}"

    def _repository(self, label: str, settings: AptRepository) -> Iterator[str]:
        """The lines of `apt_repository.repository`."""
        source = apt_repository.source_path(label)
        key = apt_repository.key_path(label, settings)
        pinned = settings.key_sha256 or settings.key_fingerprint or "unpinned"
        yield f"key {key} from {settings.key_url} {pinned}"
        text = render.render("apt/repository.sources.j2", repository=settings, key=key)
        yield f"repository {settings.url} {settings.suite} {' '.join(settings.components)}".rstrip()
        yield f"file {source} {self._digest(text)}"

    def _settle(
        self, units: list[Unit], together: bool = False, wait: bool = True
    ) -> Iterator[str]:
        """The lines of `units.settle`."""
        for unit in units:
            if unit.masked:
                yield f"unit {unit.name} masked"
                continue
            enabled = {True: "enabled", False: "disabled", None: "enabled as found"}[unit.enabled]
            running = {True: "running", False: "stopped", None: "running as found"}[unit.running]
            if unit.along_with:
                enabled, running = "disabled", f"running with {' '.join(unit.along_with)}"
            yield f"unit {unit.name} {enabled}, {running}"
            verb = "reloaded" if unit.reload else "restarted"
            for path in unit.restart_after:
                yield f"  {verb} after {path}"
        if together:
            yield "all stopped before one starts"
        if not wait:
            yield "not waited for"


def _broken(line: str) -> list[str]:
    """A long line of shell, a step or a quoted word of a list to a line."""
    return re.split(r" (?=&& |\|\| )|(?<=') (?=')", line) if len(line) > 100 else [line]


_VERBS = [
    (host_files, "place"),
    (packages, "present"),
    (apt_repository, "repository"),
    (units, "settle"),
]
_SAMPLES: dict[str, list[dict[str, Any]]] = {
    "place": [
        {"directories": [HostDirectory("/some/folder", "750", "user", "group")]},
        {"files": [HostFile("/some/file", "content", "640", "user", "group", "judge {}")]},
    ],
    "present": [{"packages": ["some-package"]}],
    "repository": [
        {
            "label": "some",
            "settings": AptRepository(
                url="https://example.org/apt",
                key_url="https://example.org/key.gpg",
                key_sha256=hashlib.sha256(b"key").hexdigest(),
                suite="stable",
            ),
        }
    ],
    "settle": [
        {"units": [Unit("some.service")]},
        {"units": [Unit("some.service", masked=True)]},
    ],
}


def verbs() -> list[str]:
    """What the generic verbs run on a bare machine, by a sample each."""
    machine = BareMachine(HostSettings.model_validate(good()["rack"]), "debian13")
    plan = Plan(machine)
    with ctx_host.use(SimpleNamespace(get_fact=machine.answer)):
        for module, verb in _VERBS:
            for arguments in _SAMPLES[verb]:
                told = "; ".join(getattr(plan, f"_{verb}")(**arguments))
                plan.add(f"{verb}: {told}", getattr(module, verb)._inner(**arguments))
    return plan.lines


def ask_verbs() -> None:
    """From now on each generic verb tells what it is asked for, wherever it is used."""
    for module, verb in _VERBS:
        asking = _asking(verb)
        # Operations use a verb by its inner function.
        getattr(module, verb)._inner = asking._inner
        setattr(module, verb, asking)


def _asking(verb: str) -> Any:
    @operation()
    def asked(**arguments: Any) -> Generator[_Asked, None, None]:
        yield _Asked(verb, arguments)

    return asked


def _unpacked(command: str, stdin: str) -> str:
    return base64.b64decode(stdin).decode() if "base64 -d" in command else stdin


def plans(inventory: str, distribution: str, found: str) -> dict[str, Plan]:
    """The plan of each host of ``inventory``, declared to run ``distribution``.

    ``found`` is what the machines really run.
    """
    said: dict[str, Any] = {}
    exec(filled_in(ROOT / "inventories" / f"{inventory}.py"), said)  # noqa: S102
    hosts = said["hosts"]
    quiet = {"fake_delay": 0.0, "fake_delay_jitter": 0.0}
    fakes = [
        (f"@fake/{name.removeprefix('@rack/')}", data | quiet | {"distribution": distribution})
        for name, data in hosts
    ]
    fleet = Inventory((fakes, {}))  # type: ignore[no-untyped-call]
    with ctx_inventory.use(fleet):
        return {
            host.name.removeprefix("@fake/"): _plan(host, BareMachine(settings, found))
            for host, settings in zip(fleet, site.load(fleet).values(), strict=True)
        }


def _plan(host: Host, machine: BareMachine) -> Plan:
    plan = Plan(machine)
    # One for each host: pyinfra's interface takes the third operation of two hosts for the same.
    state = State(check_for_changes=False)
    config = Config()  # type: ignore[no-untyped-call]
    with (
        ctx_state.use(state),
        ctx_config.use(config),
        ctx_host.use(host),
        mock.patch.object(host, "get_fact", machine.answer),
    ):
        state.init(host.inventory, config)
        state.set_stage(StateStage.Prepare)
        runpy.run_path(str(ROOT / "deploys" / "site.py"))
        for each in host.op_hash_order:
            (name,) = state.op_meta[each].names
            plan.add(name, state.get_op_data_for_host(host, each).command_generator())
    return plan


def merged(plans: dict[str, list[str]]) -> list[str]:
    """The plans of several distributions as one: a line that is not on all says where it is."""
    rows: list[tuple[str, list[str]]] = []
    for distribution, lines in plans.items():
        before, rows = rows, []
        same = difflib.SequenceMatcher(None, [text for text, _ in before], lines, autojunk=False)
        for tag, first, last, begin, end in same.get_opcodes():
            if tag == "equal":
                rows += [(text, [*on, distribution]) for text, on in before[first:last]]
                continue
            rows += before[first:last]
            rows += [(text, [distribution]) for text in lines[begin:end]]
    return [text if on == list(plans) else f"[{' '.join(on)}] {text}" for text, on in rows]


class _Marking(BaseLoader):
    """Templates with a comment of their own at their end."""

    def __init__(self, real: BaseLoader, chosen: str) -> None:
        self._real, self._chosen = real, chosen

    def get_source(self, environment: Environment, template: str) -> Any:
        source, *rest = self._real.get_source(environment, template)
        if self._chosen in ("all", template):
            source += _MARK.format(template) + "\n"
        return source, *rest


def recorded(
    found: str | None, only: str | None
) -> tuple[dict[str, str], dict[str, list[str]], set[tuple[str, str]]]:
    """Every plan by its file's name, the marked templates that each holds, and all service units.

    Args:
        found: what every machine really runs; what it is declared to run when None.
        only: the one inventory that is planned.
    """
    texts = {"verbs.txt": _text("what the generic verbs run, by a sample each", verbs())}
    ask_verbs()
    holds: dict[str, list[str]] = {}
    services: set[tuple[str, str]] = set()
    for inventory, distributions in INVENTORIES.items():
        if only not in (None, inventory):
            continue
        hosts: dict[str, dict[str, Plan]] = {}
        for distribution in distributions:
            if inventory == "drill":
                _prepare_lab(distribution)
            for host, plan in plans(inventory, distribution, found or distribution).items():
                services |= plan.units
                hosts.setdefault(host, {})[distribution] = plan
        for host, each in hosts.items():
            file = f"{inventory}-{host}.txt"
            head = f"{host} of inventories/{inventory}.py on {' '.join(each)}; {_HEAD}"
            texts[file] = _text(head, merged({on: plan.lines for on, plan in each.items()}))
            holds[file] = sorted(set().union(*(plan.templates() for plan in each.values())))
    return texts, holds, services


def _text(head: str, lines: list[str]) -> str:
    return "\n".join([f"# {head}", *lines, ""])


def _prepare_lab(distribution: str) -> None:
    lab = json.loads((DATA / "lab.json").read_text())
    lab["debian"] = int(distribution.removeprefix("debian"))
    path = Path(os.environ["HOLDFAST_SECRETS"]) / "lab.json"
    path.write_text(json.dumps(lab))
    os.environ["HOLDFAST_LAB"] = str(path)


def _prepare_secrets(folder: Path) -> None:
    example = (ROOT / ".env.example").read_text()
    names = re.findall(r"^([A-Z_]+)=$", example, re.MULTILINE)
    for name in names:
        os.environ.pop(name, None)
    # As many values as names, each of its name alone: another secret changes no checksum.
    values = {name: f"{SECRET}-{hashlib.sha256(name.encode()).hexdigest()[:16]}" for name in names}
    keep_secrets(folder, values)
    os.environ["HOLDFAST_SECRETS"] = str(folder)


def main() -> None:
    """Record the plans, or write them elsewhere to compare."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--into", type=Path, default=RECORDED, help="another folder")
    parser.add_argument("--only", help="one inventory, by name")
    parser.add_argument("--mark", help="a template that gets a comment, or all; tells who holds it")
    parser.add_argument("--found", help="what every machine really runs")
    parser.add_argument(
        "--units", action="store_true", help="tells path and text of each service unit"
    )
    arguments = parser.parse_args()
    os.chdir(ROOT)
    if arguments.mark:
        environment = render._environment()
        assert environment.loader
        environment.loader = _Marking(environment.loader, arguments.mark)
    with tempfile.TemporaryDirectory() as folder:
        _prepare_secrets(Path(folder))
        texts, holds, services = recorded(arguments.found, arguments.only)
    if not arguments.only:
        for old in arguments.into.glob("*.txt"):
            old.unlink()
    for file, text in texts.items():
        (arguments.into / file).write_text(text)
    if arguments.units:
        print(json.dumps(sorted(services)))
    elif arguments.mark:
        print(json.dumps(holds))


if __name__ == "__main__":
    main()
