"""Files placed for real, in a temporary directory, through the operation's own commands."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path

import pytest

from facts.host_files import PathState, PathStates
from operations.host_files import HostDirectory, HostFile, place
from tests.unit.local_host import LocalHost
from tests.unit.recorded_facts import read

ME = pwd.getpwuid(os.getuid()).pw_name
MY_GROUP = grp.getgrgid(os.getgid()).gr_name


@pytest.fixture
def host() -> LocalHost:
    return LocalHost()


def _mine(path: Path, content: str, mode: str = "640", validate: str | None = None) -> HostFile:
    return HostFile(str(path), content, mode, ME, MY_GROUP, validate)


def test_recorded_paths() -> None:
    states = read(PathStates)
    assert set(states) == {
        *("/etc/hostname", "/etc/default/locale", "/etc/ssh", "/dev/null", "/srv/with space")
    }
    assert states["/etc/ssh"] == PathState("directory", "755", "root", "root")
    assert states["/etc/default/locale"].kind == "link"
    assert states["/etc/default/locale"].target == "../locale.conf"
    assert states["/etc/default/locale"].sha256 is None
    assert states["/dev/null"].kind == "other"
    assert states["/srv/with space"].sha256 is not None


def test_a_file_is_placed_once_and_then_left_alone(host: LocalHost, tmp_path: Path) -> None:
    file = _mine(tmp_path / "new" / "a file", "text with 'quotes' and $dollars\n\n")
    _, error = host.apply(place, files=[file])
    assert error == ""
    target = tmp_path / "new" / "a file"
    assert target.read_text() == file.content
    assert target.stat().st_mode & 0o7777 == 0o640
    assert target.parent.stat().st_mode & 0o777 == 0o755
    assert host.planned(place, files=[file]) == []


def test_content_is_in_no_command(host: LocalHost, tmp_path: Path) -> None:
    commands = host.planned(place, files=[_mine(tmp_path / "key", "hunter2")])
    assert "hunter2" not in " ".join(commands)
    assert "aHVudGVyMg" not in " ".join(commands)
    assert "hunter2" not in repr(_mine(tmp_path / "key", "hunter2"))


def test_a_mode_alone_is_mended_without_writing(host: LocalHost, tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("same")
    target.chmod(0o666)
    before = target.stat().st_ino
    host.apply(place, files=[_mine(target, "same")])
    assert target.stat().st_mode & 0o777 == 0o640
    assert target.stat().st_ino == before


def test_what_does_not_validate_is_not_placed(host: LocalHost, tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("good\n")
    file = _mine(target, "bad\n", validate="false || grep -q good {}")
    _, error = host.apply(place, files=[file])
    assert target.read_text() == "good\n"
    assert list(tmp_path.iterdir()) == [target], error


def test_a_link_is_replaced_by_the_file_itself(host: LocalHost, tmp_path: Path) -> None:
    elsewhere, target = tmp_path / "elsewhere", tmp_path / "file"
    elsewhere.write_text("theirs")
    target.symlink_to(elsewhere)
    host.apply(place, files=[_mine(target, "ours")])
    assert not target.is_symlink()
    assert elsewhere.read_text() == "theirs"


def test_directories_and_absent_paths(host: LocalHost, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.write_text("old")
    wanted = HostDirectory(str(tmp_path / "state"), "700", ME, MY_GROUP)
    host.apply(place, directories=[wanted], absent=[str(gone), str(tmp_path / "never")])
    assert not gone.exists()
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert host.planned(place, directories=[wanted], absent=[str(gone)]) == []
