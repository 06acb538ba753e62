"""Asking a model server for one answer: the proof that it serves and does not merely listen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from holdfast.secrets import Secret


def key_problem(key: Secret) -> str | None:
    """Why ``key`` cannot stand in an HTTP header and in a line of its own, or None."""
    value = key.get_secret_value()
    if not value.isascii() or not value.isprintable() or " " in value or '"' in value:
        return "must be printable ASCII without spaces or double quotes"
    return None


def probe(socket: str, path: str, body: Mapping[str, Any], key: Secret) -> str:
    """A curl configuration that posts ``body`` to ``path`` on a Unix socket.

    It says nothing unless it fails. The key is in it, so that no argv has to hold it.
    """
    lines = {
        "url": f"http://engine{path}",
        "unix-socket": socket,
        "header": f"Authorization: Bearer {key.get_secret_value()}",
        "json": json.dumps(body),
        "output": "/dev/null",
        "max-time": "300",
    }
    quoted = [f"{name} = {json.dumps(value)}" for name, value in lines.items()]
    return "\n".join(["fail", "silent", "show-error", *quoted, ""])
