"""A change in steps, in its own unit, which a signal cannot leave unfinished.

The unit outlives the login or the deploy that started it. If the program is killed, a second unit
undoes the change.
"""

from __future__ import annotations

import contextlib
import fcntl
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

END_SECONDS = 10
"""Limit for systemd to unload a finished unit."""

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that stop the program, which then undoes its change."""


class Failed(Exception):
    """A failed step, in one sentence."""


class Ended(BaseException):
    """A signal stops this program; it contains the signal's name."""


def end_at_signals() -> None:
    """Raise `Ended` from now on at each signal of `ENDING`."""

    def end(number: int, _frame: object) -> None:
        raise Ended(signal.Signals(number).name)

    for number in ENDING:
        signal.signal(number, end)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore the signals that would stop this program."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Stop an operation that takes longer; a socket's own timeout applies to each byte.

    Raises:
        TimeoutError: it took longer.
    """

    def expire(*_: object) -> None:
        raise TimeoutError(f"no complete answer within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def locked(path: Path, wait: bool, taken: str) -> Iterator[None]:
    """Hold the lock of the file at ``path``; ``wait`` until it is free.

    Raises:
        Failed: it is locked; ``taken`` is the sentence.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise Failed(taken) from None
        yield


def await_end(unit: str, taken: str) -> None:
    """Wait until systemd has unloaded the previous unit, which has released the lock already.

    Raises:
        Failed: it still runs, because another one was requested at the same time; ``taken`` is the
            sentence.
    """
    command = ["systemctl", "show", "--property=LoadState", "--value", unit]
    deadline = time.monotonic() + END_SECONDS
    while subprocess.run(command, capture_output=True, check=False).stdout == b"loaded\n":
        if time.monotonic() >= deadline:
            raise Failed(taken)
        time.sleep(0.1)


def in_unit(unit: str, undo: str, *command: str) -> list[str]:
    """A command that runs ``command`` in the unit ``unit`` and prints its output.

    If it fails, systemd starts the unit ``undo``. The unit continues when the caller ends.
    """
    return [
        *("systemd-run", "--quiet", "--wait", "--pipe", "--collect", f"--unit={unit}"),
        # Restoring takes as long as loading.
        "--property=TimeoutStopSec=infinity",
        f"--property=OnFailure={undo}",
        *command,
    ]


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of a command's output, or its exit status if there is none."""
    lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"exit status {done.returncode}"


def sentence(failure: BaseException) -> str:
    """The failure as a readable sentence."""
    if isinstance(failure, Ended):
        return f"it was killed by {failure}"
    return str(failure) if isinstance(failure, Failed) else repr(failure)


def say(text: str) -> None:
    """Print to the terminal or the journal; the terminal may be closed."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)  # noqa: T201
