"""Processes and sockets that outlive the command that made them, found again through pid files."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path


class LabError(Exception):
    """Something the lab cannot do, in one sentence an operator can act on."""


def alive(pid_file: Path, *, marker: str) -> int | None:
    """The pid in the file if that process lives and is ours: its command line holds `marker`.

    Pids are reused, and killing a stranger's process would be worse than leaving one of ours.
    """
    try:
        pid = int(pid_file.read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, ValueError):
        return None
    return pid if state != "Z" and marker in command else None


def stop(pid_file: Path, *, marker: str, kill: bool = False, timeout_seconds: float = 20) -> None:
    """Stop the process of a pid file: politely, then SIGKILL; at once with `kill`."""
    pid = alive(pid_file, marker=marker)
    if pid is not None:
        os.kill(pid, signal.SIGKILL if kill else signal.SIGTERM)
        deadline = time.monotonic() + timeout_seconds
        while alive(pid_file, marker=marker) is not None:
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                deadline += timeout_seconds
            time.sleep(0.01)
    pid_file.unlink(missing_ok=True)


def output_of(command: Sequence[str | Path], **environment: str) -> str:
    """The standard output of a program of the controller, with more in its environment if given.

    Raises LabError when it is not installed or fails, with its words.
    """
    try:
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **environment},
        )
    except FileNotFoundError:
        raise LabError(f"{command[0]} is not installed on this controller.") from None
    if done.returncode != 0:
        raise LabError(f"{command[0]} failed: {done.stderr.strip()}")
    return done.stdout


def connect_unix(directory: Path, name: str) -> socket.socket:
    """Connect to a socket in a directory of any depth.

    A socket's path may have 107 bytes at most, and a checkout may lie deeper: going through the
    directory's descriptor keeps the path short, however long the directory's name is.

    Raises OSError when no process listens.
    """
    connection = socket.socket(socket.AF_UNIX)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        connection.connect(f"/proc/self/fd/{descriptor}/{name}")
    except OSError:
        connection.close()
        raise
    finally:
        os.close(descriptor)
    return connection
