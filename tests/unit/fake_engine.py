"""An engine, its unit and its door, small enough for a test: real processes on real Unix sockets.

`python fake_engine.py engine CONFIGURATION` serves what the configuration's model folder holds; a
file ``garbage`` makes it answer nonsense, ``misnamed`` in another model's name, ``never-ready``
makes it exit, and ``no-template`` makes it refuse chats. What it does now is in its own folder:
``busy`` with requests, ``queued``, ``hung``, ``mute``. `... systemctl VERB UNIT` does what systemd
does to that one unit; `... systemd-run OPTIONS COMMAND` does it to a transient one, which outlives
its caller, and to the one that undoes it (the command in the file ``undo``);
`... door SOCKET FILE` keeps the last word it was sent.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socketserver
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

HERE = Path(os.environ.get("FAKE_ENGINE", "."))
"""The folder of the one engine: its configuration, socket, pid and what it is busy with."""


UNDO = "holdfast-replace-undo@chat.service"


def _tokens() -> float:
    """Tokens that it has counted: one more at each look, unless it hangs."""
    file = HERE / "tokens"
    count = float(file.read_text()) if file.exists() else 1e6
    if not (HERE / "hung").exists():
        file.write_text(str(count + 1))
    return count


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def get_request(self) -> tuple[Any, Any]:
        request, _ = super().get_request()
        return request, ("local", 0)


def engine(configuration: Path) -> None:
    """Serve until ended."""
    text = configuration.read_text()
    found = re.search(r"^model: (\S+)$", text, re.MULTILINE)
    assert found is not None
    folder = Path(found[1])
    if (folder / "never-ready").exists():
        sys.exit(1)

    class Handler(BaseHTTPRequestHandler):
        def _send(self, body: str, status: int = 200) -> None:
            told, key = self.headers.get("Authorization"), HERE / "key"
            # As vLLM does, it asks for its key below /v1 alone.
            if self.path.startswith("/v1/") and told != f"Bearer {key.read_text().strip()}":
                status = 401
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def do_GET(self) -> None:
            while self.path == "/metrics" and (HERE / "mute").exists():
                time.sleep(0.01)
            running, waiting = (
                (HERE / file).read_text() if (HERE / file).exists() else "0.0"
                for file in ("busy", "queued")
            )
            counted = f'tokens_total{{a="b"}} {_tokens()}'
            gauges = f'run{{a="b"}} {running}\nwait {waiting}\n{counted}\n'
            self._send(gauges if self.path == "/metrics" else "ok")

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            words = "" if (folder / "garbage").exists() else folder.name
            name = "another" if (folder / "misnamed").exists() else "chat"
            if self.path != "/v1/chat/completions":
                self._send(json.dumps({"model": name, "choices": [{"text": words}]}))
            elif (folder / "no-template").exists():
                self._send(json.dumps({"error": {"message": "no chat template"}}), 400)
            else:
                said = {"message": {"role": "assistant", "content": words}}
                self._send(json.dumps({"model": name, "choices": [said]}))

        def log_message(self, format: str, *args: Any) -> None:
            pass

    socket = HERE / "http.sock"
    socket.unlink(missing_ok=True)
    with _Server(str(socket), Handler) as server:
        (HERE / "ready").touch()
        server.serve_forever()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def systemctl(verb: str) -> int:
    """Start, stop or forgive the engine; the exit status."""
    pid_file = HERE / "pid"
    if verb in ("stop", "start") and pid_file.exists():
        pid = int(pid_file.read_text())
        if verb == "start" and _alive(pid):
            return 0
        if _alive(pid):
            os.kill(pid, signal.SIGKILL)
        while _alive(pid):
            time.sleep(0.01)
        pid_file.unlink()
        (HERE / "http.sock").unlink(missing_ok=True)
    if verb == "start":
        (HERE / "ready").unlink(missing_ok=True)
        started = subprocess.Popen(
            [sys.executable, __file__, "engine", str(HERE / "chat.yaml")],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        pid_file.write_text(str(started.pid))
        while not (HERE / "ready").exists():
            if started.poll() is not None:
                print("Job for chat.service failed.", file=sys.stderr)
                return 1
            time.sleep(0.01)
    return 0


def systemd_run(arguments: list[str]) -> int:
    """Have another process run a command; the exit status."""
    options = [word for word in arguments if word.startswith(("--quiet", "--wait", "--pipe"))]
    assert len(options) == 3, "it is not followed"
    assert f"--property=OnFailure={UNDO}" in arguments, "nothing undoes it where it is killed"
    first = next(at for at, word in enumerate(arguments) if not word.startswith("--"))
    unit = subprocess.Popen(
        [sys.executable, __file__, "unit", *arguments[first:]], start_new_session=True
    )
    return unit.wait()


def unit(command: list[str]) -> int:
    """What systemd does for a transient unit; its main process is in the file ``main``."""
    main = subprocess.Popen(command)
    (HERE / "main").write_text(str(main.pid))
    status = main.wait()
    if status:
        undo()
    (HERE / "main").unlink()
    return status if status >= 0 else 128 - status


def undo() -> int:
    """What systemd does for the unit that undoes: it is started again when it was killed."""
    command = shlex.split((HERE / "undo").read_text())
    while (status := subprocess.call(command)) < 0:
        pass
    return status


def door(path: str, file: Path) -> None:
    """Keep what arrives at a proxy's admin socket, one line a word."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with file.open("a") as told:
                told.write(self.rfile.readline().decode())
            self.wfile.write(b"\n")

    with _Server(path, Handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    if sys.argv[1] == "engine":
        engine(Path(sys.argv[2]))
    elif sys.argv[1] == "door":
        door(sys.argv[2], Path(sys.argv[3]))
    elif sys.argv[1] == "systemd-run":
        sys.exit(systemd_run(sys.argv[2:]))
    elif sys.argv[1] == "unit":
        sys.exit(unit(sys.argv[2:]))
    elif sys.argv[2:] == ["start", UNDO]:
        sys.exit(undo())
    else:
        sys.exit(systemctl(sys.argv[2]))
