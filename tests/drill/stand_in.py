#!/usr/bin/python3
"""A service with memory on fake cards, for the drill of modes: `stand_in.py NAME PORT MIB UUID...`.

Placed on the rack as it is. It answers ``GET /queue`` with what it does, and lets go of its memory
a moment after it was asked to end, as a driver does. What is to go wrong with it is the content of
``/run/stand-in/NAME``: ``deaf`` (it never answers), ``dead`` (it does not start), ``busy``,
``clinging`` (its memory stays when it has gone).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

DESCRIPTION = Path("/etc/holdfast-rack.json")
FAULTS = Path("/run/stand-in")
LINGER_SECONDS = 2


def fault(name: str) -> str:
    """What is to go wrong now."""
    with contextlib.suppress(OSError):
        return (FAULTS / name).read_text(encoding="utf-8").strip()
    return ""


def hold(uuids: list[str], mib: int, pid: int) -> None:
    """Have the driver tell of so much memory of a process, 0 for none, on each card."""
    with Path(f"{DESCRIPTION}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rack = json.loads(DESCRIPTION.read_text(encoding="utf-8"))
        for card in rack["cards"]:
            others = [one for one in card["processes"] if one["pid"] != pid]
            if card["uuid"] in uuids:
                mine = [{"pid": pid, "memory_mib": mib, "kind": "compute"}] if mib else []
                card["processes"] = others + mine
            card["memory"]["used_mib"] = 2 + sum(one["memory_mib"] for one in card["processes"])
        new = Path(f"{DESCRIPTION}.new")
        new.write_text(json.dumps(rack), encoding="utf-8")
        new.replace(DESCRIPTION)


def main(name: str, port: str, mib: str, *uuids: str) -> int:
    """Serve until asked to end."""
    if fault(name) == "dead":
        print("<3>no model can be read", file=sys.stderr)
        return 1

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wrong = fault(name)
            self.send_response(503 if wrong == "deaf" else 200)
            self.end_headers()
            self.wfile.write(b"running: 1\n" if wrong == "busy" else b"running: 0\n")

        def log_message(self, *_: object) -> None:
            pass

    def end(*_: object) -> None:
        raise SystemExit(0)

    # Before it holds memory: who is ended at once gives it back, too.
    signal.signal(signal.SIGTERM, end)
    try:
        hold(list(uuids), int(mib), os.getpid())
        HTTPServer(("127.0.0.1", int(port)), Answer).serve_forever()
    finally:
        if fault(name) != "clinging":
            time.sleep(LINGER_SECONDS)
            hold(list(uuids), 0, os.getpid())
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
