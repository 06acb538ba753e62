"""What a machine's driver does around QEMU: its command line, its agent, its leftovers."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import acceleration, agent
from tests.lab.agent import Completed
from tests.lab.images import Image, LabError
from tests.lab.lab import SPECS, Lab, destroy
from tests.lab.machine import Machine, MachineError
from tests.lab.process import alive, stop


class GuestAgent(threading.Thread):
    """A guest agent that runs nothing: a command is done after the given number of questions."""

    def __init__(
        self, directory: Path, questions_until_done: int = 0, *, noise: bytes = b""
    ) -> None:
        super().__init__(daemon=True)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(directory / "agent.sock"))
        self.listener.listen()
        self.left = questions_until_done
        self.noise = noise
        self.conversations = 0
        self.asked: list[dict[str, Any]] = []

    def run(self) -> None:
        # One client at a time, as QEMU's socket has it.
        while True:
            connection, _ = self.listener.accept()
            self.conversations += 1
            with connection, connection.makefile("rwb") as stream:
                stream.write(self.noise)
                for line in stream:
                    request = json.loads(line)
                    self.asked.append(request)
                    reply = self.answer(request["execute"], request["arguments"])
                    stream.write(json.dumps(reply).encode() + b"\n")
                    stream.flush()

    def answer(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if command == "guest-sync":
            return {"return": arguments["id"]}
        if command == "guest-exec":
            return {"return": {"pid": 7}}
        if arguments["pid"] != 7:
            return {"error": {"class": "GenericError", "desc": "no such pid"}}
        self.left -= 1
        if self.left >= 0:
            return {"return": {"exited": False}}
        output = base64.b64encode(b"out").decode()
        return {"return": {"exited": True, "exitcode": 3, "out-data": output}}


def test_a_command_brings_back_status_and_output(tmp_path: Path) -> None:
    GuestAgent(tmp_path).start()
    done = agent.run(tmp_path, "false", stdin=b"", timeout_seconds=5)
    assert done == agent.Completed(3, "out", "")


def test_replies_of_a_conversation_cut_short_are_skipped(tmp_path: Path) -> None:
    GuestAgent(tmp_path, noise=b'{"return": {"pid": 1}}\n{"return": 99}\n').start()
    assert agent.run(tmp_path, "true", stdin=b"", timeout_seconds=5).stdout == "out"


def test_a_long_command_lets_others_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "SHARED_AFTER_SECONDS", 0.0)
    guest = GuestAgent(tmp_path, questions_until_done=3)
    guest.start()
    agent.run(tmp_path, "sleep", stdin=b"", timeout_seconds=30)
    assert guest.conversations == 4


def test_an_agent_that_says_nothing_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "SYNC_TIMEOUT_SECONDS", 0.2)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "agent.sock"))
        listener.listen()
        with pytest.raises(OSError, match="timed out"):
            agent.run(tmp_path, "true", stdin=b"", timeout_seconds=5)


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[Path]:
    """A process whose command line names its pid file, as a lab's QEMU does."""
    pid_file = tmp_path / "rack" / "qemu.pid"
    pid_file.parent.mkdir()
    code = "import time; time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code, "-pidfile", pid_file]) as process:
        pid_file.write_text(str(process.pid))
        # Reaped as soon as it ends: a zombie of ours is not alive, but it is not gone either.
        threading.Thread(target=process.wait, daemon=True).start()
        yield pid_file
        process.kill()


def test_a_lab_left_behind_is_found_and_cleared(tmp_path: Path, sleeper: Path) -> None:
    pid = alive(sleeper, marker=str(sleeper))
    assert pid is not None
    (tmp_path / "rack" / "console.log").write_text("a boot")
    destroy(tmp_path)
    assert not Path(f"/proc/{pid}").exists() or alive(sleeper, marker=str(sleeper)) is None
    assert not tmp_path.exists()


def test_a_strangers_process_is_not_touched(tmp_path: Path, sleeper: Path) -> None:
    """The pid was reused: the same number, another program."""
    stale = tmp_path / "nas.pid"
    stale.write_text(sleeper.read_text())
    stop(stale, marker=str(stale), kill=True)
    assert not stale.exists()
    assert alive(sleeper, marker=str(sleeper)) is not None


def test_there_is_no_lab_where_none_was_made(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="there is no lab in"):
        Lab.open(tmp_path)


@pytest.mark.parametrize(
    ("machines", "release", "word"),
    [(("printer",), "debian-13", "printer"), (("rack",), "debian-7", "debian-7")],
)
def test_unknown_names_are_refused(
    tmp_path: Path, machines: tuple[str, ...], release: str, word: str
) -> None:
    with pytest.raises(LabError, match=f"{word} is not one of"):
        Lab.create(tmp_path / "lab", release=release, machines=machines)
    assert not (tmp_path / "lab").exists()


@pytest.fixture
def controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that is first in PATH and holds the cache: the test says what QEMU is."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache" / "holdfast-lab").mkdir(parents=True)
    acceleration.forget()
    return programs


def install_qemu(programs: Path, version: str, boot_output: str = "", then: str = "") -> None:
    program = programs / "qemu-system-x86_64"
    program.write_text(
        "#!/bin/sh\n"
        f'if [ "$1" = --version ]; then echo "QEMU emulator version {version}"; exit; fi\n'
        f'printf "%s" "{boot_output}"\n{then}\n'
    )
    program.chmod(0o755)


IMAGE = Image("debian-13", "rack", Path("/nowhere"))


def test_an_old_qemu_is_refused_under_emulation(controller: Path) -> None:
    install_qemu(controller, "7.2.17 (Debian)")
    with pytest.raises(LabError, match="QEMU 7 crashes guests under emulation"):
        acceleration.acceleration_works(IMAGE)


def test_a_device_that_cannot_boot_a_kernel_is_not_acceleration(controller: Path) -> None:
    install_qemu(controller, "10.0.2", "KVM internal error. Suberror: 1")
    started = time.monotonic()
    assert acceleration.acceleration_works(IMAGE) is False
    assert time.monotonic() - started < 20
    assert "tcg,thread=multi" in acceleration.accelerator(accelerated=False)


def test_a_guest_that_died_is_not_waited_for_where_gevent_reads(controller: Path) -> None:
    """QEMU reports the error and stays; some drills bring gevent, whose reads wait for the end."""
    install_qemu(controller, "10.0.2", "KVM internal error. Suberror: 1", then="exec sleep 60")
    script = (
        "from gevent import monkey; monkey.patch_all()\n"
        "from pathlib import Path\n"
        "from tests.lab.acceleration import _probe\n"
        "print(_probe(Path('vmlinuz'), Path('initrd'), 25))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=True
    )
    assert done.stdout == "False\n"


def test_the_verdict_is_kept(controller: Path) -> None:
    install_qemu(controller, "10.0.2")
    acceleration.acceleration_works(IMAGE)
    record = json.loads((controller.parent / "cache/holdfast-lab/acceleration.json").read_text())
    assert record["works"] is False
    record["works"] = True
    (controller.parent / "cache/holdfast-lab/acceleration.json").write_text(json.dumps(record))
    acceleration.forget()
    assert acceleration.acceleration_works(IMAGE) is True


def test_machines_differ_where_they_must() -> None:
    numbers = [spec.host_number for spec in SPECS.values()]
    assert len(set(numbers)) == len(numbers)
    assert SPECS["rack"].lan_ipv4 == "10.77.0.10"
    assert SPECS["rack"].lan_ipv6 == "fd77::10"


def unplugged(directory: Path) -> Machine:
    """A machine that was started once, on a port where no program listens any more."""
    machine = Machine(directory, SPECS["rack"], IMAGE)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        (directory / "ssh.port").write_text(str(listener.getsockname()[1]))
    return machine


@pytest.mark.parametrize(
    "words",
    [
        "[    2.1] Kernel panic - not syncing: VFS: Unable to mount root fs",
        "[  642.180140] systemd[1]: Freezing execution.",
    ],
)
def test_a_dead_guest_is_not_waited_for(tmp_path: Path, words: str) -> None:
    machine = unplugged(tmp_path)
    machine.console_log.write_text(f"booting\n{words}\n")
    with pytest.raises(MachineError, match="rack died") as error:
        machine.wait_for_ssh(timeout_seconds=60)
    assert words in str(error.value)


class _TailnetAlone(Machine):
    """A rack that runs, answers commands, and has closed SSH to all but its tailnet."""

    def running(self) -> bool:
        return True

    def run(self, command: str, **_: object) -> Completed:
        return Completed(0 if "tailscale status" in command else 1, "", "")


def test_a_rack_that_takes_logins_by_the_tailnet_alone_is_not_waited_for(tmp_path: Path) -> None:
    # A port of the lab's own network takes every call, and hangs up where the rack does not answer.
    with socket.create_server(("127.0.0.1", 0)) as forward:
        machine = _TailnetAlone(tmp_path, SPECS["rack"], IMAGE)
        (tmp_path / "ssh.port").write_text(str(forward.getsockname()[1]))

        def hang_up() -> None:
            forward.accept()[0].close()

        forwarding = threading.Thread(target=hang_up)
        forwarding.start()
        machine.wait_for_login(timeout_seconds=20)
        forwarding.join()


def test_what_killed_an_earlier_boot_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / "console.log").write_text("Kernel panic - not syncing\n")
    with pytest.raises(MachineError, match="rack lost power before it could answer SSH"):
        unplugged(tmp_path).wait_for_ssh(timeout_seconds=60)
