"""What every drill is: planned acts on a stage, and a record of what was seen."""

from __future__ import annotations

import shutil
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from tests.drill.record import Phase, Record
from tests.drill.site import Site, keep_journals
from tests.lab.artefacts import container
from tests.lab.machine import Machine


@dataclass(frozen=True)
class Act:
    """One planned phase: its name, what it does, and whether the rest stands on it.

    ``rows`` are the rows of the promises (`rows.py`) that its checks belong to.
    """

    name: str
    run: Callable[[], object]
    vital: bool = False
    rows: tuple[int, ...] = ()


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
    """One drill; its first act makes ``stage`` and ``site``."""

    kind: str
    """The kind of machine, "virtual" or "native": what its host tests may leave out."""
    stage: Scenery
    site: Site

    def __init__(self, title: str) -> None:
        began = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        self.record = Record(title=title, began=began, kind=self.kind)

    @abstractmethod
    def acts(self) -> Sequence[Act]:
        """The whole plan; to ask for it changes nothing, and needs no stage."""

    def run(self) -> Record:
        """Run every act in turn; what ends the drill early stands in the record."""
        record = self.record
        with _listening(record):
            with record.must("it ran to its end"):
                acts = tuple(self.acts())
                record.plan([Phase(act.name, act.rows) for act in acts])
                for act in acts:
                    # Something may have caught the exception that an interruption raises.
                    if record.interrupted:
                        break
                    with record.phase(act.name, act.vital):
                        act.run()
            if hasattr(self, "stage"):
                with record.must("the journals were kept"):
                    keep_journals(self.stage.machines, self.stage.logs)
                with record.must("the machines were stopped"):
                    self.stage.lower_curtain()
        return record


@contextmanager
def _listening(record: Record) -> Iterator[None]:
    """Have signals and exceptions of threads stand in the record."""

    def interrupt(number: int, _: FrameType | None) -> None:
        # The first one ends the drill; what remains is to stop the machines, and that is finished.
        if not record.interrupted:
            record.interrupted = signal.Signals(number).name
            raise KeyboardInterrupt(f"interrupted by {record.interrupted}")

    def thread_failed(failed: threading.ExceptHookArgs) -> None:
        record.mishap("every thread ran to its end", failed.exc_value or failed.exc_type.__name__)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # What `nohup` has the drill ignore stays ignored.
    heard = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in heard}
    hook, threading.excepthook = threading.excepthook, thread_failed
    try:
        yield
    finally:
        threading.excepthook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def load_probe_image(rack: Machine) -> None:
    """Have the probe container's image (`container.IMAGE`) in the rack's Docker."""
    rack.copy_to(container.build().file("holdfast-probe.tar"), "/root/probe.tar")
    rack.succeed("docker load -i /root/probe.tar", timeout_seconds=300)
