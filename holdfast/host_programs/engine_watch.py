#!/usr/bin/python3 -I
"""Kill an engine that has requests but produces no tokens, and fail, which raises the alert.

It is copied to hosts, so it uses only the standard library of Python 3.11. A timer starts it as the
engine's own user. It reads the engine's metrics through its socket, and kills the process that the
kernel reports as the listener. Then systemd restarts the engine, and routers skip it until it
answers. The program sends no test request, because it would wait behind the other requests of a
full engine. A full engine still produces tokens.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

ANSWER_SECONDS = 10


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("engine", timeout=ANSWER_SECONDS)
        self.path = path

    def connect(self) -> None:
        """Connect to the socket's path."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def listener(connection: socket.socket) -> int:
    """The process that listens on the socket."""
    size = struct.calcsize("3i")
    told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return int(struct.unpack("3i", told)[0])


def metrics(connection: UnixConnection) -> dict[str, float] | None:
    """The sum of each metric by its name; None if the engine does not answer."""
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return None
    if answer.status != 200:
        return None
    sums: dict[str, float] = {}
    for name, value in re.findall(r"^([\w:]+)(?:\{.*\})? (\S+)$", text, re.MULTILINE):
        with contextlib.suppress(ValueError):
            sums[name] = sums.get(name, 0) + float(value)
    return sums


def stalled_since(seen: dict[str, Any], told: dict[str, Any], now: float) -> float:
    """The start (monotonic seconds) of the time in which an engine had requests but no progress.

    ``seen`` is the record of the last check, and ``told`` the present metrics.
    """
    is_same = all(seen.get(key) == told[key] for key in ("pid", "busy", "progress"))
    return float(seen["since"]) if is_same and told["busy"] else now


def look(asked: argparse.Namespace) -> int:
    """Check once; the exit status is 1 if the engine was killed."""
    connection = UnixConnection(asked.socket)
    with contextlib.closing(connection):
        try:
            connection.connect()
        except OSError:
            # It is stopped or loading, which systemd handles.
            asked.state.unlink(missing_ok=True)
            return 0
        pid = listener(connection.sock)
        found, seen, now = metrics(connection), read(asked.state), time.monotonic()
        told = {"pid": pid, "busy": True, "progress": seen.get("progress")}
        # If the metrics do not answer, the last known load counts.
        if found is not None:
            told["busy"] = sum(found.get(name, 0) for name in asked.busy) > 0
            told["progress"] = [found.get(name) for name in asked.progress]
        since = stalled_since(seen, told, now)
        if now - since < asked.seconds:
            asked.state.write_text(json.dumps({**told, "since": since}), encoding="utf-8")
            return 0
        os.kill(pid, signal.SIGKILL)
    asked.state.unlink(missing_ok=True)
    said = f"it has requests but produced no tokens for {now - since:.0f} s: it was killed"
    print(f"<3>{said}, and restarts", file=sys.stderr)  # noqa: T201
    return 1


def read(state: Path) -> dict[str, Any]:
    """The record of the last check; empty if it cannot be read."""
    try:
        seen = json.loads(state.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return seen if isinstance(seen, dict) else {}


def main(arguments: list[str]) -> int:
    """Check one engine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("socket")
    parser.add_argument("--state", type=Path, required=True, help="what it remembers")
    parser.add_argument("--seconds", type=float, required=True, help="how long is too long")
    parser.add_argument("--busy", action="append", required=True, help="a metric of requests")
    parser.add_argument("--progress", action="append", required=True, help="one that moves on")
    return look(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
