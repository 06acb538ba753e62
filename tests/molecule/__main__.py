"""`python -m tests.molecule [SCENARIO ...]`: `molecule test` of each scenario, and one summary.

The last line counts scenarios. One is green when Molecule says so and its host tests were seen to
pass: Molecule itself calls a scenario without tests a success.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from tests.drill.converge import ROOT

HERE = ROOT / "tests" / "molecule"
SCENARIOS = sorted(path.parent.name for path in HERE.glob("*/molecule.yml"))
NOT_PASSED = {"failure", "error", "skipped"}
MOLECULE = ("uv", "run", "--frozen", "--group", "molecule", "molecule")


def report_of(scenario: str) -> Path:
    """Where a scenario's verifier reports each of its tests."""
    return ROOT / ".lab" / "molecule" / scenario / "logs" / "verify.xml"


def passed_tests(report: Path) -> int:
    """How many host tests passed by a report; 0 where there is none."""
    if not report.exists():
        return 0
    cases = ElementTree.parse(report).iter("testcase")
    return sum(1 for case in cases if not {part.tag for part in case} & NOT_PASSED)


def run(scenario: str) -> bool:
    """Run a scenario to its end; whether it is green."""
    report = report_of(scenario)
    report.unlink(missing_ok=True)
    done = subprocess.run(
        [*MOLECULE, "test", "--scenario-name", scenario], cwd=HERE.parent, check=False
    )
    count = passed_tests(report)
    print(f"{scenario}: exit status {done.returncode}, {count} host tests hold", flush=True)
    return done.returncode == 0 and count > 0


def main() -> int:
    """Run all scenarios, or those that are named; 0 when each is green."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="only these")
    scenarios = parser.parse_args().scenarios or SCENARIOS
    if unknown := sorted(set(scenarios) - set(SCENARIOS)):
        parser.error(f"there is no scenario {unknown[0]!r}; there are: {', '.join(SCENARIOS)}")
    green = [scenario for scenario in scenarios if run(scenario)]
    print(f"molecule: {len(green)} passed, {len(scenarios) - len(green)} failed")
    return 0 if len(green) == len(scenarios) else 1


if __name__ == "__main__":
    sys.exit(main())
