"""What every unit of ours must be; the units are those of a whole plan, found by planning it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from holdfast import alerts
from holdfast.render import TEMPLATES
from tests.unit.site_data import SECRETS, keep_secrets

HERE = Path(__file__).parent
SILENT = {
    "/etc/systemd/system/holdfast-notify@.service": "it raises the alert, and would call itself",
}
"""Units without an alert, each with the reason."""
UNCONFINED = {
    "/etc/systemd/system/holdfast-firewall-rollback.service": "it is ufw, loading its rules",
    "/etc/systemd/system/holdfast-gpu-devices.service": "it makes device files and loads a module",
    "/etc/systemd/system/holdfast-vfio.service": "it binds drivers before anything else runs",
}
"""Units without a filter of system calls, each with the reason."""


@dataclass(frozen=True)
class Plan:
    """What a rack with every capability is given: units, as path to text, and from what."""

    units: dict[str, str]
    templates: list[str]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("secrets")
    more = {name: f"{name.lower()}-9fKq27xLmZ" for name in ("ONE_KEY", "ALICE_KEY", "ROUTER_KEY")}
    keep_secrets(folder, SECRETS | more)
    planned = subprocess.run(
        [sys.executable, "-m", "tests.unit.units_on_fakes"]
        + ["tests/unit/data/every_capability.py", str(HERE / "recorded" / "ground.txt")],
        cwd=HERE.parents[1],
        env={**os.environ, "HOLDFAST_SECRETS": str(folder), "PYINFRA_PROGRESS": "off"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert planned.returncode == 0, planned.stderr
    return Plan(**json.loads(planned.stdout))


def test_every_unit_of_ours_raises_an_alert_when_it_fails(plan: Plan) -> None:
    wanted = f"OnFailure={alerts.ON_FAILURE}"
    silent = [
        path
        for path, text in plan.units.items()
        if wanted not in text.partition("[Service]")[0].splitlines()
    ]
    assert sorted(silent) == sorted(SILENT)


def test_the_plan_has_a_unit_from_every_template(plan: Plan) -> None:
    # A template that the inventory does not reach would go unjudged by the test above.
    known = {str(path.relative_to(TEMPLATES)) for path in TEMPLATES.rglob("*.service.j2")}
    assert known - set(plan.templates) == set()


def test_no_unit_of_ours_may_use_the_kernels_keys(plan: Plan) -> None:
    # For a key of type dns_resolver the kernel asks a resolver as root, past every wall.
    unconfined = []
    for path, text in plan.units.items():
        filters = re.findall(r"^SystemCallFilter=(.*)$", text, re.MULTILINE)
        if not filters:
            unconfined.append(path)
            continue
        assert any(line.startswith("~") and "@keyring" in line.split() for line in filters), path
        allowed = " ".join(line for line in filters if not line.startswith("~")).split()
        assert not {"@keyring", "add_key", "keyctl", "request_key"} & set(allowed), path
    assert sorted(unconfined) == sorted(UNCONFINED)
