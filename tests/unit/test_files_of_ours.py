"""Rules that every file of ours keeps, tried on all that the site places: found, never listed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from facts.tenants import TENANT
from holdfast.sandbox import AS_ROOT, EXPOSURE_MAX, EXPOSURE_MAX_ROOT

ROOT = Path(__file__).resolve().parents[2]
SYSTEM = "/etc/systemd/system"
PYTHON = "#!/usr/bin/python3 -I\n"
_KEPT = ("StateDirectory", "CacheDirectory", "LogsDirectory", "RuntimeDirectory")
_BELOW = ("/var/lib", "/var/cache", "/var/log", "/run")


@dataclass(frozen=True)
class Placed:
    """What deploys of Holdfast's own inventories would place; one of them declares everything."""

    files: list[dict[str, Any]]
    directories: list[dict[str, Any]]

    @property
    def units(self) -> dict[str, str]:
        """Path to text of each service, and of each drop-in of one."""
        return {
            file["path"]: file["content"]
            for file in self.files
            if file["path"].startswith(f"{SYSTEM}/") and "[Service]" in file["content"]
        }


@pytest.fixture(scope="module")
def placed() -> Placed:
    planned = subprocess.run(
        [sys.executable, "-m", "tests.unit.placed_files"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert planned.returncode == 0, planned.stderr
    found = json.loads(planned.stdout)
    return Placed(
        [each for each in found if each["kind"] == "files"],
        [each for each in found if each["kind"] == "directories"],
    )


def values(unit: str, name: str) -> list[str]:
    """What a unit's lines of that name say."""
    return re.findall(rf"^{name}=(.*)$", unit, re.MULTILINE)


def commands(unit: str) -> Iterator[tuple[str, str]]:
    """The prefix and the command of each line of a unit that starts a program."""
    unit = unit.replace("\\\n", " ")
    for line in values(unit, r"Exec\w+"):
        found = re.fullmatch(r"([-@:+!|]*)\s*(.*)", line)
        assert found
        if found[2]:
            yield found[1], found[2]


def test_nothing_runs_with_full_privileges_and_a_units_environment(placed: Placed) -> None:
    full = AS_ROOT.partition("+")[2]
    assert len(placed.units) > 40
    bare = [
        f"{path}: {prefix}{command}"
        for path, text in placed.units.items()
        for prefix, command in commands(text)
        if set(prefix) & set("+!") and not command.startswith(f"{full} ")
    ]
    assert bare == []
    # A variable or a specifier of the unit would bring it back in.
    assert full.startswith("/usr/bin/env -i ")
    assert not set(full) & set("$%")


def test_python_reads_nothing_but_its_own_library(placed: Placed) -> None:
    programs = {
        file["path"]: file["content"]
        for file in placed.files
        if re.match(r"#!.*python", file["content"])
    }
    assert len(programs) >= 7
    assert [path for path, text in programs.items() if not text.startswith(PYTHON)] == []


def test_every_python_that_is_started_by_name_is_isolated(placed: Placed) -> None:
    told = {file["path"]: file["content"] for file in placed.files}
    # A tenant's command is its owner's, and never root's.
    told = {path: text for path, text in told.items() if f"/{TENANT}" not in path}
    told |= {str(path): path.read_text() for path in (ROOT / "templates").rglob("*.j2")}
    for folder in ("deploys", "facts", "operations"):
        told |= {str(path): path.read_text() for path in (ROOT / folder).glob("*.py")}
    started = r"python[\d.]*[\"']? (-\w\S*)|(/pip)\b"
    bare = [
        f"{path}: {found[0]}"
        for path, text in told.items()
        for found in re.finditer(started, text)
        if found[1] != "-I"
    ]
    assert bare == []


def owned(placed: Placed) -> Iterator[tuple[str, str]]:
    """Each folder that belongs to a service or a user, and whose it is."""
    yield "/home", "their users"
    for directory in placed.directories:
        if directory["user"] != "root":
            yield directory["path"], directory["user"]
    for text in placed.units.values():
        user = (values(text, "User") or ["root"])[-1]
        for kind, below in zip(_KEPT, _BELOW, strict=True):
            for name in " ".join(values(text, kind)).split():
                if user not in ("root", "0"):
                    yield f"{below}/{name}", user


def test_root_places_nothing_in_a_folder_that_is_anothers(placed: Placed) -> None:
    folders = dict(owned(placed))
    assert len(folders) > 8
    inside = [
        f"{one['path']} lies in {folder}, which is {user}'s"
        for one in (*placed.files, *placed.directories)
        for folder, user in folders.items()
        if one["path"].startswith(f"{folder}/")
    ]
    assert inside == []


def test_no_file_is_anothers_than_roots(placed: Placed) -> None:
    assert [file["path"] for file in placed.files if file["user"] != "root"] == []


def own_services(placed: Placed) -> dict[str, str]:
    """Name to text of each service unit that is wholly ours."""
    return {
        Path(path).name: text
        for path, text in placed.units.items()
        if Path(path).parent == Path(SYSTEM)
    }


def test_every_unit_of_ours_lists_the_families_of_its_sockets(placed: Placed) -> None:
    known = {"AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK", "none"}
    families = {
        name: set(" ".join(values(text, "RestrictAddressFamilies")).split())
        for name, text in own_services(placed).items()
    }
    assert len(families) > 30
    assert [name for name, listed in families.items() if not listed or listed - known] == []


def test_a_user_who_may_not_leave_sees_no_sockets_of_others(placed: Placed) -> None:
    held = {
        name: text
        for name, text in own_services(placed).items()
        if values(text, "User") not in ([], ["root"])
        and ("any" in values(text, "IPAddressDeny") or values(text, "PrivateNetwork") == ["yes"])
    }
    assert len(held) > 10
    sees = "BindReadOnlyPaths=/run/holdfast /run/systemd/notify"
    assert [
        name
        for name, text in held.items()
        if values(text, "TemporaryFileSystem") != ["/run:ro"] or sees not in text.splitlines()
    ] == []
    # What such a unit makes there must lie where the others see it.
    made = [each for text in held.values() for each in values(text, "RuntimeDirectory")]
    assert made
    assert [each for each in made if not each.startswith("holdfast/")] == []


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_finds_every_unit_of_ours_closed(placed: Placed, tmp_path: Path) -> None:
    limits: dict[str, float] = {}
    for path, text in placed.units.items():
        if Path(path).parent == Path(SYSTEM):
            name = Path(path).name.replace("@.", "@one.")
            (tmp_path / name).write_text(text)
            own = values(text, "User") or values(text, "DynamicUser")
            root = own in ([], ["root"], ["no"])
            limits[name] = EXPOSURE_MAX_ROOT if root else EXPOSURE_MAX
    assert len(limits) > 30
    exposed = [
        f"{name}: {judged.stdout.strip().splitlines()[-1]}"
        for name, limit in limits.items()
        if (judged := _judged(tmp_path / name, limit)).returncode
    ]
    assert exposed == []


def _judged(unit: Path, limit: float) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", "security", "--no-pager", "--offline=yes"]
    return subprocess.run(
        [*command, f"--threshold={limit * 10:.0f}", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
