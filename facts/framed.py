"""A command's output, separated from the output of the login.

Over SSH, each command's output includes what `.bashrc`, `.profile`, a file of /etc/profile.d or a
trap prints. So a command prints one line before its answer and one after it, and only the lines
between them are read.
"""

from __future__ import annotations

from functools import wraps
from inspect import signature
from typing import Any, TypeVar

from pyinfra.api import FactBase, FactProcessError

T = TypeVar("T")

BEGIN = "=== holdfast: the answer begins ==="
END = "=== holdfast: the answer ends ==="
# Otherwise programs, also stat, answer in the language of the login.
_HEAD = f"export LC_ALL=C; printf '\\n{BEGIN}\\n'; ("
_TAIL = f"); status=$?; printf '\\n{END}\\n'; exit $status"


class Unanswered(FactProcessError):
    """A command's answer is incomplete."""

    def __init__(self) -> None:
        super().__init__(
            "the output of a command is incomplete: the command was killed, or a login file"
            " (.bashrc, .profile, /etc/profile.d) ends the shell or redirects its output"
        )


def framed(command: str) -> str:
    """``command`` with the two lines around its output, and its exit status.

    It runs in a subshell, and in the C locale.
    """
    return f"{_HEAD}\n{command}\n{_TAIL}"


def is_framed(command: str) -> bool:
    """Whether `framed` made ``command``."""
    return command.startswith(_HEAD)


def answer(output: list[str]) -> list[str]:
    """The output of a framed command, taken from all received lines.

    Raises:
        Unanswered: one of the two lines around them is missing.
    """
    text = "\n".join(["", *output, ""])
    _, begun, rest = text.partition(f"\n{BEGIN}\n")
    # The line break before the last line ends the command's last line, if it has none.
    lines, ended, _ = rest.rpartition(f"\n{END}\n")
    if not begun or not ended:
        raise Unanswered
    return lines.removesuffix("\n").split("\n") if lines else []


class Framed(FactBase[T]):
    """A fact that reads only its own command's output; the base of every fact.

    A subclass defines ``command`` and ``process`` as pyinfra documents them, without the frame. An
    empty answer gives the default; a missing answer is an error.
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
