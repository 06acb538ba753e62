"""The controller's only way to the control server: see `proxy_server`."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.lab.services.daemon import Daemon, listening, port_for

SERVER = Path(__file__).with_name("proxy_server.py")


class ConnectProxy(Daemon):
    """The proxy as a daemon: `https://<allowed>` leads to loopback's `target_port`."""

    def __init__(self, services: Path, allowed: str, target_port: int) -> None:
        super().__init__(services, "connect-proxy")
        self.port = port_for(services, self.name)
        self._allowed = allowed
        self._target_port = target_port

    def command(self) -> list[str]:
        """The script with this daemon's destination."""
        return [
            *(sys.executable, str(SERVER)),
            f"--directory={self.directory}",
            f"--port={self.port}",
            f"--allow={self._allowed}",
            f"--target-port={self._target_port}",
        ]

    def ready(self) -> bool:
        """Whether it accepts connections."""
        return listening(self.port)
