"""An engine of the drill of routing: asks for its key, answers, and notes what it was asked.

Placed on the drill's machine as it is: `python3 stand_in_engine.py NAME PORT KEY_FILE LOG`.
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

name, port, key_file, log = sys.argv[1:]
key = f"Bearer {Path(key_file).read_text().strip()}"


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Be well."""
        self._send(200, {"status": "ok"})

    def do_POST(self) -> None:
        """Answer who holds the key."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != key:
            self._send(401, {})
            return
        asked = json.loads(body)
        said = asked.get("prompt") or asked["messages"][-1]["content"]
        with Path(log).open("a") as noted:
            noted.write(f"{said}\n")
        self._send(200, {"model": name, "choices": [{"text": said}]})

    def _send(self, status: int, said: object) -> None:
        body = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
