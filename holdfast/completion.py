"""Requests of one answer from a model server, which prove that it serves and not only listens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.secrets import Secret

CHAT_PATH = "/v1/chat/completions"
COMPLETION_PATH = "/v1/completions"


def key_problem(key: Secret) -> str | None:
    """Why ``key`` cannot be sent in an HTTP header or stored in a line of its own, or None."""
    value = key.get_secret_value()
    if not value.isascii() or not value.isprintable() or " " in value or '"' in value:
        return "must be printable ASCII without spaces or double quotes"
    return None


Question = tuple[str, Mapping[str, Any]]
"""A path, and the body of a POST to it."""


def probe(socket: str, questions: Sequence[Question], key: Secret) -> str:
    """A curl configuration that sends each of ``questions`` to a Unix socket until one fails.

    It prints failures only. It contains the key, so that no command line does.
    """
    asked = []
    for path, body in questions:
        lines = {
            "url": f"http://engine{path}",
            "unix-socket": socket,
            "header": f"Authorization: Bearer {key.get_secret_value()}",
            "json": json.dumps(body),
            "output": "/dev/null",
            "max-time": "300",
        }
        quoted = [f"{name} = {json.dumps(value)}" for name, value in lines.items()]
        asked.append("\n".join(["fail", "silent", "show-error", *quoted, ""]))
    return "fail-early\n" + "next\n".join(asked)
