"""The lab's download site: the artefacts at the paths where the real sites have them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from tests.lab.services.daemon import Daemon, listening, port_for


class FileServer(Daemon):
    """Serves `{path below the URL: file or folder}` over HTTP on loopback."""

    def __init__(self, services: Path, content: Mapping[str, Path]) -> None:
        super().__init__(services, "files")
        self.port = port_for(services, self.name)
        self._content = content
        self._site = self.directory / "site"

    def prepare(self) -> None:
        """Point the site's paths at the artefacts as they are now."""
        for path, source in self._content.items():
            link = self._site / path
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(source)

    def command(self) -> list[str]:
        """Python's own threaded server: nothing that the lab serves needs more."""
        server = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1"]
        return [*server, "--directory", str(self._site), str(self.port)]

    def start(self) -> None:
        """Also refreshes the site of a server that is already running."""
        self.prepare()
        super().start()

    def ready(self) -> bool:
        """Whether it accepts connections."""
        return listening(self.port)
