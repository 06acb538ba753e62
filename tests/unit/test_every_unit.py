"""What every unit of ours must be; the units are those of a whole plan, found by planning it."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from holdfast.render import TEMPLATES
from holdfast.service import ON_FAILURE
from tests.unit.plans import MARKED, ROOT

SILENT = {
    "/etc/systemd/system/holdfast-notify@.service": "it raises the alert, and would call itself",
}
"""Units without an alert, each with the reason."""

WAITS = {
    "/etc/systemd/system/holdfast-replace-undo@.service": "a model loads as long as its engine may",
    "/etc/systemd/system/holdfast-mode-undo@.service": "the same",
    "/etc/systemd/system/holdfast-models-verify.service": "it reads every model whole",
}
"""Units that may take any time, each with the reason."""

Units = list[tuple[str, str]]


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> Units:
    """Path and text of every service unit, in all plans."""
    planned = subprocess.run(
        [sys.executable, "-m", "tests.unit.plans", "--mark", "all"]
        + ["--units", "--into", str(tmp_path_factory.mktemp("plans"))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert planned.returncode == 0, planned.stderr
    found: Units = json.loads(planned.stdout)
    return found


def test_every_unit_of_ours_raises_an_alert_when_it_fails(units: Units) -> None:
    wanted = f"OnFailure={ON_FAILURE}"
    silent = [
        path for path, text in units if wanted not in text.partition("[Service]")[0].splitlines()
    ]
    assert set(silent) == set(SILENT)


def test_a_unit_that_hangs_fails_too(units: Units) -> None:
    # For one that does its work and ends, systemd knows no limit; a watch that hangs would never
    # look again, and raise no alert.
    endless = [
        path
        for path, text in units
        if "Type=oneshot" in text.splitlines() and not re.search(r"^TimeoutStartSec=\d", text, re.M)
    ]
    assert set(endless) == set(WAITS)


def test_there_is_a_unit_from_every_template(units: Units) -> None:
    # A template that no inventory reaches would go unjudged by the other tests.
    marked = set(MARKED.findall("\n".join(text for _, text in units)))
    known = {str(path.relative_to(TEMPLATES)) for path in TEMPLATES.rglob("*.service.j2")}
    assert known - marked == set()


def test_no_unit_of_ours_may_use_the_kernels_keys(units: Units) -> None:
    # For a key of type dns_resolver the kernel asks a resolver as root, past every wall.
    for path, text in units:
        filters = re.findall(r"^SystemCallFilter=(.*)$", text, re.MULTILINE)
        assert any(line.startswith("~") and "@keyring" in line.split() for line in filters), path
        allowed = " ".join(line for line in filters if not line.startswith("~")).split()
        assert not {"@keyring", "add_key", "keyctl", "request_key"} & set(allowed), path
