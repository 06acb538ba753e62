"""What a run that changes nothing costs: `make bench`.

Brings a rack up, converges it, and times the no-op run of the whole site against one SSH command
as the unit: on the emulated rack, where starting a process takes longer than anything else, and on
a fast target that gives the answers the rack gave. There a third column leaves Nagle's algorithm
on, to show what the connector's choice is worth.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.drill.converge import ROOT, command, converge
from tests.drill.replay import UNIT, FastTarget
from tests.drill.stage import INVENTORY, Stage
from tests.drill.transcript import Transcript
from tests.lab.process import LabError

RUNS = 5
AIM_SECONDS = 3.0
"""The no-op of the whole site on a fast target."""
WATCH = [sys.executable, "-m", "tests.drill.watch"]


@dataclass(frozen=True)
class Run:
    """One no-op run. Times in seconds; ``starting`` lasts until the first connection is tried."""

    wall: float
    starting: float
    processor: float
    operations: int
    changes: int
    transcript: Transcript

    @property
    def connecting(self) -> float:
        """From the first try to an open connection."""
        return self.transcript.connected - self.transcript.connecting

    @property
    def rest(self) -> float:
        """Reading the deploys, rendering, deciding, and the end of Python."""
        return self.wall - self.starting - self.connecting - self.transcript.asking


@dataclass(frozen=True)
class Column:
    """One target: its runs, and the seconds of one SSH command on an open connection to it."""

    title: str
    runs: list[Run]
    unit: float

    @property
    def typical(self) -> Run:
        """The run of the median wall time; all figures are this run's, so that they add up."""
        return sorted(self.runs, key=lambda run: run.wall)[len(self.runs) // 2]

    @property
    def changes(self) -> int:
        """Operations that changed something, over all runs."""
        return sum(run.changes for run in self.runs)


def main() -> int:
    """Print the figures; 0 unless a run failed, changed something or asked the unexpected."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--debian", type=int, choices=(12, 13), default=13)
    stage = Stage(parser.parse_args().debian)
    os.environ["HOLDFAST_LAB"] = str(stage.folder / "lab.json")
    os.environ["HOLDFAST_SECRETS"] = str(stage.folder)
    console = Console()
    try:
        stage.raise_curtain()
        first = converge(INVENTORY, "bench-first", stage.logs)
        if not first.ok:
            console.print(f"the first converge failed: {first.failed}, see {first.log}")
            return 1
        columns = measure(stage)
    except (RuntimeError, LabError) as error:
        console.print(error, style="red", markup=False)
        return 1
    finally:
        stage.lower_curtain()
    console.print(table(columns))
    console.print(aim(columns[1]))
    wrong = complaints(columns)
    for sentence in wrong:
        console.print(f"[red]{sentence}")
    return 1 if wrong else 0


def measure(stage: Stage) -> list[Column]:
    """The columns: the emulated rack, the fast target, the fast target with Nagle's algorithm.

    Raises:
        RuntimeError: a run failed, or asked the fast target what the rack was never asked.
    """
    rack = column("emulated rack", stage.folder / "ssh_config", stage.logs)
    lab_file = stage.folder / "lab.json"
    with FastTarget(stage.folder / "fast", rack.typical.transcript.answers) as target:
        os.environ["HOLDFAST_LAB"] = str(target.lab_file(lab_file))
        try:
            fast = column("fast target", target.ssh_config, stage.logs)
            nagle = column("fast, Nagle on", target.ssh_config, stage.logs, ["--nagle"])
        finally:
            os.environ["HOLDFAST_LAB"] = str(lab_file)
            if unknown := target.unknown():
                asked = "".join(f"\n{text}" for text in unknown)
                raise RuntimeError(f"the fast target was asked what the rack was not:{asked}")
    return [rack, fast, nagle]


def column(title: str, ssh_config: Path, logs: Path, switches: list[str] | None = None) -> Column:
    """Measure the rack that the inventory leads to just now, which ``ssh_config`` leads to as well.

    Raises:
        RuntimeError: a run failed.
    """
    slug = title.replace(" ", "-").replace(",", "")
    unit = _one_command_seconds(ssh_config)
    runs = [_run(switches or [], logs / f"bench-{slug}-{number}") for number in range(RUNS)]
    return Column(title, runs, unit)


def _run(switches: list[str], stem: Path) -> Run:
    kept, log = stem.with_suffix(".json"), stem.with_suffix(".log")
    spent = _processor_seconds()
    began = time.monotonic()
    with log.open("wb") as sink:
        done = subprocess.run(
            [*WATCH, str(kept), *switches, *command(INVENTORY)[1:]],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=sink,
            env={**os.environ, "PYINFRA_PROGRESS": "off"},
            check=False,
        )
    wall = time.monotonic() - began
    if done.returncode != 0:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
        raise RuntimeError(f"a run failed, see {log}; it ended with:\n{last}")
    operations = json.loads(done.stdout)["results"]["operations"]
    transcript = Transcript.read(kept)
    return Run(
        wall=wall,
        starting=transcript.connecting - began,
        processor=_processor_seconds() - spent,
        operations=len(operations),
        changes=sum(1 for operation in operations if operation["success"]),
        transcript=transcript,
    )


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _one_command_seconds(ssh_config: Path) -> float:
    """Median wall time of `UNIT` by OpenSSH's own client over a connection that is open already."""
    ssh = ["ssh", "-F", str(ssh_config), "-o", "ControlPath=/tmp/holdfast-%C"]
    times = []
    subprocess.run([*ssh, "-fN", "-o", "ControlMaster=yes", "rack"], check=True)
    try:
        for _ in range(11):
            began = time.monotonic()
            subprocess.run([*ssh, "rack", UNIT], check=True)
            times.append(time.monotonic() - began)
    finally:
        subprocess.run([*ssh, "-q", "-O", "exit", "rack"], check=True)
    return statistics.median(times)


def table(columns: list[Column]) -> Table:
    """The figures, a column a target."""
    runs = [column.typical for column in columns]
    rows = {
        f"wall time, median of {RUNS}": [f"{run.wall:.2f} s" for run in runs],
        "  Python and pyinfra start": [f"{run.starting:.2f} s" for run in runs],
        "  connection": [f"{run.connecting:.2f} s" for run in runs],
        "  remote commands, sent to answered": [f"{run.transcript.asking:.2f} s" for run in runs],
        "  the rest: deploys read, files rendered": [f"{run.rest:.2f} s" for run in runs],
        "processor time on the controller": [f"{run.processor:.2f} s" for run in runs],
        "operations": [str(run.operations) for run in runs],
        "remote commands": [str(len(run.transcript.answers)) for run in runs],
        "one SSH command on an open connection": [f"{one.unit * 1000:.0f} ms" for one in columns],
        "wall time in such commands": [f"{one.typical.wall / one.unit:.0f}" for one in columns],
        "changes": [str(one.changes) for one in columns],
    }
    load = f"load of the controller now {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    shown = Table(title="the whole site, nothing to change", caption=load)
    shown.add_column("figure")
    for one in columns:
        shown.add_column(one.title, justify="right")
    for name, values in rows.items():
        shown.add_row(name, *values)
    return shown


def aim(fast: Column) -> str:
    """Whether the fast target's no-op is as quick as it shall be."""
    wall = fast.typical.wall
    verdict = "met" if wall <= AIM_SECONDS else "missed"
    return f"aim: {AIM_SECONDS:.0f} s on a fast target: {verdict}, with {wall:.2f} s"


def complaints(columns: list[Column]) -> list[str]:
    """Why the figures are not those of a no-op of one and the same site; empty when they are."""
    wrong = [
        f"{one.title}: {one.changes} changes in {len(one.runs)} runs of a site that had converged"
        for one in columns
        if one.changes
    ]
    counts = {len(run.transcript.answers) for one in columns for run in one.runs}
    if len(counts) > 1:
        wrong.append(f"the runs did not ask the same: {sorted(counts)} remote commands")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
