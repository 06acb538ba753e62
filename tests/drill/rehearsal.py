"""What every drill is: phases on a stage, and a record of what was seen."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from tests.drill.record import Record
from tests.drill.site import Site, keep_journals
from tests.lab.artefacts import container
from tests.lab.machine import Machine


class Scenery(ABC):
    """Machines and what is beside them; ``folder`` holds all of it, ``logs`` what is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.logs = folder / "logs"
        shutil.rmtree(self.logs, ignore_errors=True)
        self.logs.mkdir(parents=True)

    @property
    @abstractmethod
    def machines(self) -> Iterable[Machine]:
        """Every machine on it."""

    @abstractmethod
    def lower_curtain(self) -> None:
        """Stop everything; logs and disks stay for a look."""


class Rehearsal(ABC):
    """One drill; its first phase makes ``stage`` and ``site``."""

    stage: Scenery
    site: Site

    def __init__(self, title: str) -> None:
        self.record = Record(title=title, began=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))

    def run(self) -> Record:
        """Run every phase; a phase that cannot go on ends the drill and stands in the record."""
        try:
            self._act()
        except Exception as error:
            self.record.console.print(f"[red]the drill ends here: {error}")
        finally:
            if hasattr(self, "stage"):
                keep_journals(self.stage.machines, self.stage.logs)
                self.stage.lower_curtain()
        return self.record

    @abstractmethod
    def _act(self) -> None:
        """Run the phases in turn."""


def load_probe_image(rack: Machine) -> None:
    """Have the probe container's image (`container.IMAGE`) in the rack's Docker."""
    rack.copy_to(container.build().file("holdfast-probe.tar"), "/root/probe.tar")
    rack.succeed("docker load -i /root/probe.tar", timeout_seconds=300)
