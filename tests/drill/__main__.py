"""`python -m tests.drill`: run a drill, write its report, and return an exit status."""

from __future__ import annotations

import argparse
import secrets
import shlex
import shutil
import sys
from pathlib import Path

from rich.markup import escape

from tests.drill import expected, report
from tests.drill.converge import ROOT
from tests.drill.gpu import GpuDrill
from tests.drill.native import CutsDrill, NativeDrill, ShortDrill
from tests.drill.record import Record
from tests.drill.rehearsal import Rehearsal
from tests.drill.routing import RoutingDrill
from tests.drill.scenario import Drill
from tests.drill.serving import ServingDrill
from tests.lab.container_machine import why_not_native


def main() -> int:
    """Run one drill; return 0 if every check passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--debian", type=int, choices=(12, 13), default=13)
    parser.add_argument("--vm", action="store_true", help="on virtual machines")
    parser.add_argument("--seed", type=int, default=None, help="chooses where the power is cut")
    parser.add_argument(
        "--short",
        action="store_true",
        help="without engines that are replaced, modes and lock-outs",
    )
    parser.add_argument("--cuts", action="store_true", help="only cut the power in each step")
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
    parser.add_argument(
        "--accept-counts",
        action="store_true",
        help="when all else holds, expect from now on as many checks as this run makes",
    )
    arguments = parser.parse_args()
    drill: Rehearsal
    options = ""
    if arguments.gpu:
        name, drill = "gpu", GpuDrill()
    elif arguments.serving:
        name, drill = "serving", ServingDrill()
    elif arguments.routing:
        name, drill = f"routing-{arguments.debian}", RoutingDrill(arguments.debian)
    else:
        name, drill, options = _whole(arguments)
    typed = [argument for argument in sys.argv[1:] if argument != "--accept-counts"]
    drill.record.command = shlex.join(["python", "-m", "tests.drill", *typed])
    return perform(
        drill,
        name + options,
        arguments.report or ROOT / "report" / name,
        accept_counts=arguments.accept_counts,
    )


def _whole(arguments: argparse.Namespace) -> tuple[str, Rehearsal, str]:
    """The drill of the whole site: its name, the drill, and the options that change its checks."""
    seed = secrets.randbelow(10**6) if arguments.seed is None else arguments.seed
    why = "it was asked for" if arguments.vm else why_not_native()
    if not why:
        print("This drill runs on the native rack: a container of this machine's own kernel.")
        if arguments.cuts:
            return f"cuts-{arguments.debian}", CutsDrill(arguments.debian, seed=seed), ""
        if arguments.short:
            return f"native-{arguments.debian}", ShortDrill(arguments.debian, seed=seed), " --short"
        native = NativeDrill(arguments.debian, seed=seed, sabotage=arguments.sabotage)
        # A tenth of the sabotages makes another number of checks each time.
        return f"native-{arguments.debian}", native, " --sabotage" * arguments.sabotage
    print(f"This drill runs on virtual machines: {why}.")
    rebuild = arguments.rebuild and not arguments.short
    drill = Drill(
        arguments.debian,
        seed=seed,
        rebuild=rebuild,
        audit=arguments.audit,
        sabotage=arguments.sabotage,
    )
    chosen = {
        "--no-rebuild": not rebuild,
        "--audit": arguments.audit,
        "--sabotage": arguments.sabotage,
    }
    options = "".join(f" {option}" for option, is_chosen in chosen.items() if is_chosen)
    return f"debian-{arguments.debian}", drill, options


def perform(
    drill: Rehearsal,
    key: str,
    folder: Path,
    *,
    accept_counts: bool = False,
    counts: Path = expected.FILE,
) -> int:
    """Run a drill, write its report into ``folder`` and print the result; 0 if every check passed.

    ``key`` is its name in the file ``counts``.
    """
    record = drill.record
    # Before the run: an hour later is too late to learn that the report cannot be written.
    try:
        report.clear(folder)
        record.counts = expected.read(counts).get(key)
    except (OSError, ValueError) as error:
        print(f"the drill does not begin: {error}\ndrill: 0 passed, 1 failed")
        return 1
    drill.run()
    if accept_counts and not record.broken:
        record.counts = expected.accept(key, record, counts)
    try:
        if hasattr(drill, "stage"):
            shutil.copytree(drill.stage.logs, folder / "logs", dirs_exist_ok=True)
        written = f"report: {report.write(record, folder)}"
    except Exception as error:
        record.mishap("the report was written", error)
        written = f"the report cannot be written: {error}"
    _tell(record, written)
    return 0 if record.ok else 1


def _tell(record: Record, written: str) -> None:
    console = record.console
    console.rule("[bold]result")
    for note in record.notes:
        console.print(f"note: {note}", markup=False)
    for phase in record.phases:
        took = f"{phase.seconds:7.0f} s" if phase.ran else "did not run"
        console.print(f"{took}  {'' if phase.ok else '[red]'}{phase.name}")
    if record.survivals:
        console.print(f"faults survived: {len(record.survivals)}; each with the state it ended in:")
    for fault, state in record.survivals.items():
        console.print(f"  {fault}: {state}", markup=False)
    console.print(written, markup=False)
    for check in record.failures:
        console.print(f"[red]✗ {escape(f'{check.phase}: {check.name}')}[/]: {escape(check.seen)}")
    print(f"drill: {record.passed} passed, {len(record.failures)} failed")


if __name__ == "__main__":
    sys.exit(main())
