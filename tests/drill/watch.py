"""pyinfra's own command line, watched: what it asked the host, what it heard, how long it took.

`python -m tests.drill.watch TRANSCRIPT [--nagle] <pyinfra's arguments>`. A program of its own,
because pyinfra's command line patches sockets and threads when it is imported.
"""

# ruff: noqa: I001 -- pyinfra's command line comes before everything that it patches
from __future__ import annotations

from pyinfra_cli.main import main as pyinfra_main

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyinfra.connectors.ssh import SSHConnector
from pyinfra.connectors.sshuserclient import SSHClient

from holdfast import connector
from tests.drill.transcript import Answer, Transcript

if TYPE_CHECKING:
    from paramiko import Channel


def listen(transcript: Transcript) -> None:
    """Have every SSH connection of this process written into ``transcript``."""
    send = SSHClient.exec_command
    run = SSHConnector.run_shell_command
    connect = SSHConnector.connect
    sent: list[tuple[str, Channel]] = []

    def heard_send(self: SSHClient, command: str, *rest: Any, **options: Any) -> Any:
        streams = send(self, command, *rest, **options)
        sent.append((command, streams[1].channel))
        return streams

    def heard_run(self: SSHConnector, *rest: Any, **options: Any) -> Any:
        began = time.monotonic()
        okay, output = run(self, *rest, **options)
        seconds = time.monotonic() - began
        text, channel = sent.pop()
        transcript.answers.append(
            Answer(
                command=text,
                stdout="".join(f"{line}\n" for line in output.stdout_lines),
                stderr="".join(f"{line}\n" for line in output.stderr_lines),
                status=channel.exit_status,
                seconds=seconds,
            )
        )
        return okay, output

    def heard_connect(self: SSHConnector) -> None:
        transcript.connecting = time.monotonic()
        connect(self)
        transcript.connected = time.monotonic()

    SSHClient.exec_command = heard_send  # type: ignore[method-assign, assignment]
    SSHConnector.run_shell_command = heard_run  # type: ignore[method-assign]
    SSHConnector.connect = heard_connect  # type: ignore[method-assign]


def main() -> None:
    """Run pyinfra as its own command would, and keep the transcript however the run ends."""
    path = Path(sys.argv.pop(1))
    if sys.argv[1] == "--nagle":
        sys.argv.pop(1)
        connector._disable_nagle = lambda client: None
    transcript = Transcript()
    listen(transcript)
    try:
        pyinfra_main()
    finally:
        transcript.write(path)


if __name__ == "__main__":
    main()
