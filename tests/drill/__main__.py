"""`python -m tests.drill`: the drill, its report, and an exit code that tells."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from tests.drill import report
from tests.drill.converge import ROOT
from tests.drill.gpu import GpuDrill
from tests.drill.rehearsal import Rehearsal
from tests.drill.routing import RoutingDrill
from tests.drill.scenario import Drill
from tests.drill.serving import ServingDrill


def main() -> int:
    """Run one drill; 0 when every check held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--debian", type=int, choices=(12, 13), default=13)
    parser.add_argument("--gpu", action="store_true", help="the drill of the cards instead")
    parser.add_argument("--serving", action="store_true", help="the drill of engines instead")
    parser.add_argument("--routing", action="store_true", help="the drill of routers instead")
    parser.add_argument(
        "--no-rebuild",
        dest="rebuild",
        action="store_false",
        help="converge once, through a power cut, and do not lose the rack",
    )
    parser.add_argument("--audit", action="store_true", help="Lynis and ssh-audit as well")
    parser.add_argument(
        "--sabotage", action="store_true", help="in the end, see each host test turn red"
    )
    parser.add_argument("--report", type=Path, default=None, help="folder for the report")
    arguments = parser.parse_args()
    drill: Rehearsal
    if arguments.gpu:
        name, drill = "gpu", GpuDrill()
    elif arguments.serving:
        name, drill = "serving", ServingDrill()
    elif arguments.routing:
        name, drill = f"routing-{arguments.debian}", RoutingDrill(arguments.debian)
    else:
        name = f"debian-{arguments.debian}"
        drill = Drill(
            arguments.debian,
            rebuild=arguments.rebuild,
            audit=arguments.audit,
            sabotage=arguments.sabotage,
        )
    record = drill.run()
    folder = arguments.report or ROOT / "report" / name
    page = report.write(record, folder)
    if hasattr(drill, "stage"):
        shutil.copytree(drill.stage.logs, folder / "logs", dirs_exist_ok=True)
    console = record.console
    console.rule("[bold]result")
    for phase in record.phases:
        console.print(f"{phase.seconds:7.0f} s  {'' if phase.ok else '[red]'}{phase.name}")
    console.print(f"report: {page}")
    for check in record.failures:
        console.print(f"[red]✗ {check.phase}: {check.name}[/]: {check.seen}")
    failed = len(record.failures)
    print(f"drill: {len(record.checks) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
