"""One remote command that answers many queries, with a heading before each answer."""

from __future__ import annotations

_HEADING = "#= "


def is_starting(unit: str) -> str:
    """A shell condition: systemd is starting ``unit``, which cannot answer yet."""
    return f'[ "$(systemctl show --property=ActiveState --value {unit})" = activating ]'


def probe(questions: dict[str, str]) -> str:
    """One shell command for all ``questions``, from name to command. A failed query gives an empty
    answer: an absent thing is a finding, not an error.
    """
    asked = "; ".join(f"echo '{_HEADING}{name}'; {command}" for name, command in questions.items())
    return f"{{ {asked}; }} 2>/dev/null; true"


def answers(output: list[str]) -> dict[str, list[str]]:
    """The lines of each answer, by the name of its query."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in output:
        if line.startswith(_HEADING):
            lines = found.setdefault(line.removeprefix(_HEADING), [])
        else:
            lines.append(line)
    return found
