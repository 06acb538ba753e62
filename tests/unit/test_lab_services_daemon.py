"""Daemons of the lab: started once, found again, replaced when dead, never a stranger's killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.services.daemon import (
    Daemon,
    ServiceFailed,
    listening,
    port_for,
    stop_all,
    wait_until,
    write_private,
)
from tests.lab.services.files import FileServer


@pytest.fixture
def site(tmp_path: Path) -> Iterator[FileServer]:
    page = tmp_path / "page.txt"
    page.write_text("hello\n")
    services = tmp_path / "services"
    services.mkdir()
    yield FileServer(services, {"some/where.txt": page})
    stop_all(services)


def _pid(daemon: Daemon) -> int:
    return int((daemon.directory / "pid").read_text())


def test_a_second_start_finds_the_first(site: FileServer) -> None:
    site.start()
    first = _pid(site)
    site.start()
    assert _pid(site) == first
    again = FileServer(site.services, {})
    assert again.port == site.port
    assert again.running()
    site.stop()
    assert not site.running()
    assert not listening(site.port)


def test_one_that_died_is_replaced(site: FileServer) -> None:
    site.start()
    first = _pid(site)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not site.running(), "dying", 10)
    site.start()
    assert _pid(site) != first
    assert site.ready()


def test_a_reused_pid_is_left_alone(site: FileServer) -> None:
    site.directory.mkdir()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        (site.directory / "pid").write_text(f"{stranger.pid}\n")
        assert not site.running()
        site.start()
        assert stranger.poll() is None
        stranger.communicate(b"\n")
    assert _pid(site) != stranger.pid


class _Broken(Daemon):
    def command(self) -> list[str]:
        return [sys.executable, "-c", "raise SystemExit('no licence for moon phase')"]

    def ready(self) -> bool:
        return False


def test_a_failure_tells_what_the_service_said(tmp_path: Path) -> None:
    with pytest.raises(ServiceFailed, match=r"(?s)exit status 1.*no licence for moon phase"):
        _Broken(tmp_path, "broken").start()


def test_ports_are_kept_and_differ(tmp_path: Path) -> None:
    ports = [port_for(tmp_path, name) for name in ("one", "two", "one")]
    assert ports[0] == ports[2] != ports[1]


def test_a_secret_is_never_readable_by_others(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("left by somebody")
    file.chmod(0o644)
    write_private(file, "secret")
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("secret", 0o600)
