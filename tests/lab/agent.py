"""Commands in a guest through QEMU's guest agent: a serial port, so neither network nor login."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab.images import LabError
from tests.lab.process import connect_unix

SYNC_TIMEOUT_SECONDS = 30
REPLY_TIMEOUT_SECONDS = 120
"""A guest that shares two busy cores with ten others has been seen to take half a minute."""

SHARED_AFTER_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 0.5
ENVIRONMENT = (
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/root",
    "LANG=C.UTF-8",
)


@dataclass(frozen=True)
class Completed:
    """How a command in the guest ended."""

    returncode: int
    stdout: str
    stderr: str


def run(directory: Path, command: str, *, stdin: bytes, timeout_seconds: float) -> Completed:
    """Run a bash command as root in the guest whose agent's socket lies in the directory.

    A command that outlives the timeout is killed in the guest and ends with 124.

    Raises OSError when the agent does not answer, LabError when it answers that it cannot.
    """
    arguments = {
        "path": "/usr/bin/timeout",
        "arg": ["--kill-after=5", f"{timeout_seconds:.0f}", "/bin/bash", "-c", command],
        "env": list(ENVIRONMENT),
        "capture-output": True,
        "input-data": base64.b64encode(stdin).decode(),
    }
    started = time.monotonic()
    deadline = started + timeout_seconds + REPLY_TIMEOUT_SECONDS
    with Agent(directory) as agent:
        pid = agent.ask("guest-exec", arguments)["pid"]
        status, pause = agent.ask("guest-exec-status", {"pid": pid}), 0.01
        while not status["exited"] and time.monotonic() < started + SHARED_AFTER_SECONDS:
            time.sleep(pause)
            pause *= 1.5
            status = agent.ask("guest-exec-status", {"pid": pid})
    # The agent's port admits one client at a time: a long command must not lock others out.
    while not status["exited"]:
        if time.monotonic() > deadline:
            raise LabError(f"the guest did not end {command!r} in time")
        time.sleep(pause := min(pause * 1.5, LONGEST_PAUSE_SECONDS))
        with Agent(directory) as agent:
            status = agent.ask("guest-exec-status", {"pid": pid})
    if status.get("out-truncated") or status.get("err-truncated"):
        raise LabError(f"{command!r} wrote more than the guest agent carries (16 MiB)")
    return Completed(
        status.get("exitcode", 128 + status.get("signal", 0)),
        base64.b64decode(status.get("out-data", "")).decode(errors="replace"),
        base64.b64decode(status.get("err-data", "")).decode(errors="replace"),
    )


class Agent:
    """One conversation with the guest agent."""

    def __init__(self, directory: Path) -> None:
        self._connection = connect_unix(directory, "agent.sock")
        self._stream = self._connection.makefile("rwb")

    def __enter__(self) -> Agent:
        # Replies to a conversation that was cut short are skipped up to our own mark.
        mark = time.monotonic_ns() & 0x7FFFFFFF
        self._connection.settimeout(SYNC_TIMEOUT_SECONDS)
        try:
            self._send("guest-sync", {"id": mark})
            while self._receive().get("return") != mark:
                pass
        except BaseException:
            self.close()
            raise
        self._connection.settimeout(REPLY_TIMEOUT_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the port: a socket stays open for as long as a stream made from it does."""
        with contextlib.suppress(OSError):
            self._stream.close()
        self._connection.close()

    def ask(self, command: str, arguments: dict[str, Any]) -> Any:
        """Send a command and return its answer.

        Raises LabError with the agent's words when it refuses.
        """
        self._send(command, arguments)
        reply = self._receive()
        if "error" in reply:
            raise LabError(f"the guest agent refused {command}: {reply['error']['desc']}")
        return reply["return"]

    def _send(self, command: str, arguments: dict[str, Any]) -> None:
        message = {"execute": command, "arguments": arguments}
        self._stream.write(json.dumps(message).encode() + b"\n")
        self._stream.flush()

    def _receive(self) -> dict[str, Any]:
        line = self._stream.readline()
        if not line:
            raise OSError("the guest agent's port was closed")
        reply: dict[str, Any] = json.loads(line)
        return reply
