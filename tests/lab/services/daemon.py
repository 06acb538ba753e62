"""One background process of the lab: started once, found again, waited for, stopped.

A daemon outlives the command that started it (`up` in one shell, the drill in another), and one
left behind by a killed run is found by its pid file at the next start.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.lab.artefacts.store import locked
from tests.lab.process import alive, stop

# The repository's root: daemons written in Python are started as `python -m tests.lab...`.
REPOSITORY = Path(__file__).parents[3]
LOG_TAIL_CHARACTERS = 2000
# A tailscaled without UDP hangs while it closes its device, long after its state is written, so
# this much of every stop is waited in vain; nothing here needs as long.
POLITE_STOP_SECONDS = 5.0
END_TIMEOUT_SECONDS = 30.0


class ServiceFailed(RuntimeError):
    """A service did not come up; the message ends with the last lines of its log."""


def private_directory(path: Path) -> Path:
    """Make `path` (and its parents) and let only its owner in."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    return path


def write_private(path: Path, text: str) -> None:
    """Write a secret that was never readable by others, not even while it was being written."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)


def port_for(directory: Path, name: str) -> int:
    """A loopback TCP port for `name` that stays the same for the life of `directory`.

    Machines keep URLs in their configuration, so a service must come back where it was.
    """
    book = directory / "ports.json"
    with locked(directory / ".ports.lock"):
        ports: dict[str, int] = json.loads(book.read_text()) if book.exists() else {}
        if name not in ports:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                ports[name] = probe.getsockname()[1]
            book.write_text(json.dumps(ports, indent=1) + "\n")
        return ports[name]


def listening(port: int) -> bool:
    """Whether something on this machine accepts connections on a loopback port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(condition: Callable[[], bool], what: str, timeout_seconds: float) -> None:
    """Wait for `condition`. Raises TimeoutError, naming `what`."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} took more than {timeout_seconds:.0f} s")
        time.sleep(0.05)


def end(pid_file: Path) -> None:
    """Stop the daemon of a pid file and wait until its ports are free again."""
    marker = str(pid_file.parent)
    pid = alive(pid_file, marker=marker)
    stop(pid_file, marker=marker, timeout_seconds=POLITE_STOP_SECONDS)
    if pid is not None:
        wait_until(lambda: _ended(pid), f"the end of process {pid}", END_TIMEOUT_SECONDS)


def _ended(pid: int) -> bool:
    """Whether a process is gone or a zombie: its command line vanishes before its ports do.

    A first thread can be a zombie while others still hold the ports.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX" and len(threads) <= 1


class Daemon(ABC):
    """A background process whose state, log and pid file lie in `directory / name`.

    Its command line must name that directory: that distinguishes it from a stranger that was
    given the same pid.
    """

    start_timeout_seconds = 60.0

    def __init__(self, services: Path, name: str) -> None:
        self.services = services
        self.name = name
        self.directory = services / name
        self._pid_file = self.directory / "pid"

    @abstractmethod
    def command(self) -> list[str]:
        """Program and arguments; called after `prepare`."""

    @abstractmethod
    def ready(self) -> bool:
        """Whether the service answers, not merely whether its process lives."""

    def prepare(self) -> None:  # noqa: B027 (most daemons have something to write, some nothing)
        """Write the configuration that the process reads at its start."""

    def environment(self) -> Mapping[str, str]:
        """Variables on top of the caller's own."""
        return {}

    @property
    def log(self) -> Path:
        """What the process wrote."""
        return self.directory / "log"

    def running(self) -> bool:
        """Whether the process lives."""
        return alive(self._pid_file, marker=str(self.directory)) is not None

    def start(self) -> None:
        """Start the process unless it already answers, and wait until it does.

        Raises ServiceFailed with the end of its log.
        """
        private_directory(self.directory)
        with locked(self.directory / ".lock"):
            if self.running() and self.ready():
                return
            end(self._pid_file)
            self.prepare()
            with self.log.open("ab") as log:
                process = subprocess.Popen(
                    self.command(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    cwd=REPOSITORY,
                    env={**os.environ, **self.environment()},
                )
            self._pid_file.write_text(f"{process.pid}\n")
            try:
                wait_until(
                    lambda: process.poll() is not None or self.ready(),
                    self.name,
                    self.start_timeout_seconds,
                )
            except TimeoutError as error:
                raise self._failed(str(error)) from error
            if process.poll() is not None:
                raise self._failed(f"{self.name} ended with exit status {process.returncode}")

    def _failed(self, sentence: str) -> ServiceFailed:
        tail = self.log.read_text(errors="replace")[-LOG_TAIL_CHARACTERS:]
        return ServiceFailed(f"{sentence}; the end of {self.log}:\n{tail}")

    def stop(self) -> None:
        """Stop the process; its state stays for the next start."""
        end(self._pid_file)


def stop_all(services: Path) -> None:
    """Stop every daemon below `services`, no matter which process started it."""
    for pid_file in services.glob("*/pid"):
        end(pid_file)
