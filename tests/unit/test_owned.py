"""What leaves an inventory leaves the host; what is declared, and data, stays."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from pyinfra.api import FunctionCommand
from pyinfra.api.exceptions import ConnectError
from pyinfra.context import ctx_host

from facts.owned import OwnedFiles
from holdfast import docker, owned, tailnet
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


def _settings(**declared: object) -> HostSettings:
    bare = {"hostname": "a", "distribution": "debian13", "interfaces": {"eth0": {"role": "lan"}}}
    return HostSettings.model_validate({**bare, "docker": None, "tailnet": None, **declared})


def _removed(present: list[str], **declared: object) -> list[str]:
    host = LocalHost(facts={OwnedFiles: present})
    asked = {"settings": _settings(**declared), "capabilities": owned.REMOVED}
    return host.planned(operations.only, **asked)


def test_a_host_with_nothing_declares_nothing() -> None:
    assert not any(map(_matches, owned.declared(_settings())))


def test_what_is_declared_no_more_is_stopped_before_its_files_go() -> None:
    gone = [f"{SYSTEM}/holdfast-floor.service", "/etc/holdfast/credentials/floor-api-key"]
    (command,) = _removed(gone)
    steps = command.split(" && ")
    assert steps[1:3] == [
        "systemctl stop holdfast-floor.service",
        "systemctl disable holdfast-floor.service",
    ]
    assert set(steps[3].split()) == {"rm", "-f", *gone}


def test_what_is_declared_stays() -> None:
    present = [docker.DROP_IN, docker.LINKS_SCRIPT]
    assert _removed(present, docker={}) == []
    assert _removed([tailnet.DROP_IN, tailnet.ENVIRONMENT], tailnet={}) == []


def test_a_template_goes_without_being_stopped() -> None:
    gone = [f"{SYSTEM}/holdfast-replace-undo@.service", f"{SYSTEM}/holdfast-vllm-old.service"]
    (command,) = _removed(gone)
    steps = command.split(" && ")
    assert steps[1] == "systemctl stop holdfast-vllm-old.service"
    assert set(steps[3].split()) == {"rm", "-f", *gone}


def test_an_engine_that_is_not_declared_is_stopped_and_its_data_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    containers, *stopped, removed = _removed([docker.DROP_IN])
    assert "docker stop" in containers
    units = ("docker.socket", "docker.service", "containerd.service")
    assert [command.partition(" || ")[2] for command in stopped] == [
        f"systemctl disable --now {unit}" for unit in units
    ]
    # The drop-in is no unit that could be stopped.
    assert removed == f"rm -f {docker.DROP_IN}"
    assert "/var/lib/docker" in caplog.text


@dataclass
class _Connection:
    """A login by one path; a new one over the LAN succeeds or not."""

    via: str = "lan"
    answers: bool = True

    def new_login(self, path: str) -> None:
        if path != "lan" or not self.answers:
            raise ConnectError(f"{path} does not answer")


@dataclass
class _Host(LocalHost):
    def log_styled(self, sentence: str, **_: object) -> None:
        assert "stays" in sentence


def _steps(connection: _Connection, **declared: object) -> list[str]:
    """The steps that are taken until one fails."""
    host = _Host(facts={OwnedFiles: [tailnet.DROP_IN]}, connector=connection)
    taken: list[str] = []
    with ctx_host.use(host):
        for step in operations.only._inner(
            settings=_settings(**declared), capabilities=owned.REMOVED
        ):
            if isinstance(step, FunctionCommand):
                if not step.function(None, host, *step.args):
                    return taken
            else:
                taken.append(step.get_raw_value())
    return taken


def test_the_tailnet_goes_after_a_login_over_the_lan() -> None:
    lan = {"lan_address": "10.0.0.2", "ssh_hostname": "10.0.0.2"}
    there = "! systemctl cat tailscaled.service >/dev/null 2>&1"
    gone = [f"{there} || systemctl disable --now tailscaled.service", f"rm -f {tailnet.DROP_IN}"]
    assert _steps(_Connection()) == gone
    # The name that is tried first may be that of the LAN.
    assert _steps(_Connection(via="tailnet"), **lan) == gone


@pytest.mark.parametrize("connection", [_Connection(answers=False), _Connection(via="tailnet")])
def test_the_tailnet_stays_without_one(connection: _Connection) -> None:
    assert _steps(connection) == []


def test_the_fact_finds_files_and_no_folder(tmp_path: Path) -> None:
    (tmp_path / "holdfast-a.service").touch()
    (tmp_path / "holdfast-a.service.d").mkdir()
    (tmp_path / "another.service").touch()
    host = LocalHost()
    found = host.get_fact(OwnedFiles, patterns=[f"{tmp_path}/holdfast-a*.*", f"{tmp_path}/none*"])
    assert found == [f"{tmp_path}/holdfast-a.service"]
