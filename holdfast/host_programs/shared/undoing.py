"""A change in steps that a signal does not leave half done, made in a unit of its own.

The unit does not end with the login or the deploy that asked for it. A second unit undoes what was
begun, where the program was killed and could not undo it itself.
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
"""How long systemd may take to forget a unit that has ended."""

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that end the program, which then undoes what it has begun."""


class Failed(Exception):
    """A step that did not do what it is for, in one sentence."""


class Ended(BaseException):
    """Somebody ends this program by a signal, whose name it holds."""


def end_at_signals() -> None:
    """Raise `Ended` from now on at each signal of `ENDING`."""

    def end(number: int, _frame: object) -> None:
        raise Ended(signal.Signals(number).name)

    for number in ENDING:
        signal.signal(number, end)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore the signals that would end this program."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """End what takes longer, however steadily it moves: a timeout of a socket is for each byte.

    Raises:
        TimeoutError: it took longer.
    """

    def expire(*_: object) -> None:
        raise TimeoutError(f"no whole answer within {seconds:g} s")

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
        Failed: it is held; ``taken`` is the sentence.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise Failed(taken) from None
        yield


def await_end(unit: str, taken: str) -> None:
    """Wait until systemd has forgotten the unit before, which has let go of the lock already.

    Raises:
        Failed: it still works, for another was asked for at the same time; ``taken`` is the
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

    Where it fails, systemd starts the unit ``undo``. The unit goes on when the caller ends.
    """
    return [
        *("systemd-run", "--quiet", "--wait", "--pipe", "--collect", f"--unit={unit}"),
        # What comes back takes as long as it takes to load.
        "--property=TimeoutStopSec=infinity",
        f"--property=OnFailure={undo}",
        *command,
    ]


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """What a command said last, or its exit status where it said nothing."""
    lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"exit status {done.returncode}"


def sentence(failure: BaseException) -> str:
    """What failed, for people."""
    if isinstance(failure, Ended):
        return f"it was ended by {failure}"
    return str(failure) if isinstance(failure, Failed) else repr(failure)


def say(text: str) -> None:
    """Print to the terminal or the journal; the terminal may be gone."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)  # noqa: T201
