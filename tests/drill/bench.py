"""What a run that changes nothing costs: `make bench`.

Brings a rack up, converges it, and times the no-op run of the whole site against one SSH command
as the unit. The count of remote commands comes from pyinfra's own debug log of a further run.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import time

from rich.console import Console
from rich.table import Table

from tests.drill.converge import PYINFRA, ROOT, converge
from tests.drill.stage import INVENTORY, Stage

RUNS = 5


def main() -> int:
    """Print the figures; 0 unless a run failed or changed something."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--debian", type=int, choices=(12, 13), default=13)
    stage = Stage(parser.parse_args().debian)
    os.environ["HOLDFAST_LAB"] = str(stage.folder / "lab.json")
    os.environ["HOLDFAST_SECRETS"] = str(stage.folder)
    try:
        stage.raise_curtain()
        return measure(stage, Console())
    finally:
        stage.lower_curtain()


def measure(stage: Stage, console: Console) -> int:
    """Measure the rack of ``stage``, converging it first."""
    first = converge(INVENTORY, "bench-first", stage.logs)
    if not first.ok:
        console.print(f"the first converge failed: {first.failed}, see {first.log}")
        return 1
    runs = [converge(INVENTORY, f"bench-{number}", stage.logs) for number in range(RUNS)]
    unit = _one_command_seconds(stage)
    commands = _remote_commands()
    wall = statistics.median(run.seconds for run in runs)
    table = Table(title="the whole site, nothing to change")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_row("wall time, median of 5", f"{wall:.1f} s")
    table.add_row("operations", str(runs[0].operations))
    table.add_row("remote commands", str(commands))
    table.add_row("one SSH command on an open connection", f"{unit * 1000:.0f} ms")
    table.add_row("wall time in such commands", f"{wall / unit:.0f}")
    table.add_row("changes", str(sum(len(run.changed) for run in runs)))
    console.print(table)
    return 0 if all(run.ok and not run.changed for run in runs) else 1


def _one_command_seconds(stage: Stage) -> float:
    """Median wall time of ``true`` on the rack over an SSH connection that is already open."""
    options = ["-F", str(stage.folder / "ssh_config"), "-o", "ControlPath=/tmp/holdfast-%C"]
    subprocess.run(
        ["ssh", *options, "-o", "ControlMaster=yes", "-o", "ControlPersist=60", "rack", "true"],
        check=True,
    )
    times = []
    for _ in range(11):
        began = time.monotonic()
        subprocess.run(["ssh", *options, "rack", "sudo -n true"], check=True)
        times.append(time.monotonic() - began)
    return statistics.median(times)


def _remote_commands() -> int:
    shown = subprocess.run(
        [str(PYINFRA), "--debug", "-y", str(INVENTORY), "deploys/site.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return len(re.findall(r"Running command on ", shown.stderr + shown.stdout))


if __name__ == "__main__":
    sys.exit(main())
