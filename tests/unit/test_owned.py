"""What leaves an inventory leaves the host; what is declared, and data, stays."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from facts.owned import OwnedFiles
from holdfast import owned
from holdfast.settings import HostSettings
from operations import owned as operations
from tests.unit.local_host import LocalHost
from tests.unit.site_data import keep_secrets

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(__file__).parent / "data"
SYSTEM = "/etc/systemd/system"
_DECLARED = (
    "import json, sys; from holdfast import inventory_file, owned;"
    " (rack,) = inventory_file.load(sys.argv[1]).values();"
    " print(json.dumps(owned.declared(rack)))"
)


def _declared(inventory: str, folder: Path) -> set[str]:
    """What an inventory of ours declares, asked in a process of its own: it brings gevent."""
    names = re.findall(r"^([A-Z_]+)=$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    keep_secrets(folder, {key: f"{key.lower()[:9]}-9fKq27xLmZ" for key in names})
    done = subprocess.run(
        [sys.executable, "-c", _DECLARED, f"inventories/{inventory}.py"],
        cwd=ROOT,
        env={"HOLDFAST_SECRETS": str(folder), "HOLDFAST_LAB": str(DATA / "lab.json")},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return set(json.loads(done.stdout))


def _matches(path: str) -> bool:
    return any(Path(path).match(pattern) for pattern in owned.patterns())


@pytest.mark.parametrize("inventory", ["complete", "drill"])
def test_all_that_a_deploy_places_is_declared_and_nothing_else(
    inventory: str, tmp_path: Path
) -> None:
    plan = (ROOT / f"tests/unit/recorded/plans/{inventory}-rack.txt").read_text()
    placed = {path for path in re.findall(r"\bfile (\S+) [0-7]{3} ", plan) if _matches(path)}
    declared = {path for path in _declared(inventory, tmp_path) if _matches(path)}
    # An engine's configuration is no placed file: `holdfast-replace` puts it there.
    assert declared - placed <= {path for path in declared if path.endswith(".yaml")}
    assert placed - declared == set(), "the next deploy would remove what it has placed"
    assert len(placed) > 20


def test_a_host_with_nothing_declares_nothing() -> None:
    bare = {"hostname": "a", "distribution": "debian13", "interfaces": {"eth0": {"role": "lan"}}}
    assert owned.declared(HostSettings.model_validate(bare)) == []


def test_what_is_declared_no_more_is_stopped_before_its_files_go() -> None:
    kept = [f"{SYSTEM}/holdfast-router-work-loopback.service", "/etc/holdfast/router/work.cfg"]
    gone = [f"{SYSTEM}/holdfast-floor.service", "/etc/holdfast/credentials/floor-api-key"]
    host = LocalHost(facts={OwnedFiles: [*kept, *gone]})
    asked = {"patterns": owned.patterns()}
    (command,) = host.planned(operations.only, declared=kept, **asked)
    steps = command.split(" && ")
    assert steps[1:3] == [
        "systemctl stop holdfast-floor.service",
        "systemctl disable holdfast-floor.service",
    ]
    assert set(steps[3].split()) == {"rm", "-f", *gone}
    assert host.planned(operations.only, declared=[*kept, *gone], **asked) == []


def test_a_template_goes_without_being_stopped() -> None:
    gone = [f"{SYSTEM}/holdfast-replace-undo@.service", f"{SYSTEM}/holdfast-vllm-old.service"]
    host = LocalHost(facts={OwnedFiles: gone})
    (command,) = host.planned(operations.only, declared=[], patterns=owned.patterns())
    steps = command.split(" && ")
    assert steps[1] == "systemctl stop holdfast-vllm-old.service"
    assert set(steps[3].split()) == {"rm", "-f", *gone}


def test_the_fact_finds_files_and_no_folder(tmp_path: Path) -> None:
    (tmp_path / "holdfast-a.service").touch()
    (tmp_path / "holdfast-a.service.d").mkdir()
    (tmp_path / "another.service").touch()
    host = LocalHost()
    found = host.get_fact(OwnedFiles, patterns=[f"{tmp_path}/holdfast-a*.*", f"{tmp_path}/none*"])
    assert found == [f"{tmp_path}/holdfast-a.service"]
