"""A command's answer, apart from what a login prints around it.

What `.bashrc`, `.profile`, a file of /etc/profile.d or a trap that one of them sets prints comes
with the output of each command that runs over SSH. So a command prints one line before its answer
and one after it, and only what is between the two is read.
"""

from __future__ import annotations

from functools import wraps
from inspect import signature
from typing import Any, TypeVar

from pyinfra.api import FactBase, FactProcessError

T = TypeVar("T")

BEGIN = "=== holdfast: the answer begins ==="
END = "=== holdfast: the answer ends ==="
# Programs answer in the language of the login otherwise, and so would stat.
_HEAD = f"export LC_ALL=C; printf '\\n{BEGIN}\\n'; ("
_TAIL = f"); status=$?; printf '\\n{END}\\n'; exit $status"


class Unanswered(FactProcessError):
    """A command's answer did not arrive whole."""

    def __init__(self) -> None:
        super().__init__(
            "the answer of a command did not arrive whole: it was killed, or a start file of the"
            " login (.bashrc, .profile, /etc/profile.d) ends the shell or redirects its output"
        )


def framed(command: str) -> str:
    """``command`` with the two lines around what it prints, and its exit status.

    It runs in a subshell, and in the C locale.
    """
    return f"{_HEAD}\n{command}\n{_TAIL}"


def is_framed(command: str) -> bool:
    """Whether `framed` made ``command``."""
    return command.startswith(_HEAD)


def answer(output: list[str]) -> list[str]:
    """The lines that a framed command printed, in the lines that came with them.

    Raises:
        Unanswered: one of the two lines around them is missing.
    """
    text = "\n".join(["", *output, ""])
    _, begun, rest = text.partition(f"\n{BEGIN}\n")
    # The line break before the last line ends the command's own, if that one has not done so.
    lines, ended, _ = rest.rpartition(f"\n{END}\n")
    if not begun or not ended:
        raise Unanswered
    return lines.removesuffix("\n").split("\n") if lines else []


class Framed(FactBase[T]):
    """A fact that only its own command's output changes; the base of every fact.

    A subclass defines ``command`` and ``process`` as pyinfra documents them, without the frame. An
    answer of no lines gives its default; an answer that is missing is an error.
    """

    def __init_subclass__(cls) -> None:
        """Wrap the two methods: pyinfra reads the arguments of ``command`` from its signature."""
        super().__init_subclass__()
        command, process = cls.command, cls.process

        @wraps(command)
        def framed_command(*arguments: Any, **named: Any) -> str:
            return framed(str(command(*arguments, **named)))

        @wraps(process)
        def process_answer(fact: Any, output: list[str]) -> T:
            lines = answer(output)
            return process(fact, lines) if lines else cls.default()

        framed_command.__signature__ = signature(command)  # type: ignore[attr-defined]
        cls.command = framed_command
        cls.process = process_answer  # type: ignore[assignment]
