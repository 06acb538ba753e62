"""The examples of docs/adding.md do what the page says."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from facts.packages import InstalledPackages
from holdfast import owned, programs, registry, service, tenants
from holdfast.capabilities import CAPABILITIES
from holdfast.checks import check_host
from holdfast.registry import declared_services
from holdfast.settings import HostSettings
from operations import packages
from operations import program as operations
from tests.unit.local_host import LocalHost
from tests.unit.site_data import good

PAGE = (Path(__file__).resolve().parents[2] / "docs/adding.md").read_text()
EXAMPLES = dict(re.findall(r"```python\n# (.+?)\n(.*?)```", PAGE, re.DOTALL))


def _run(name: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(EXAMPLES[name], names)  # noqa: S102 - this repository's own page
    return names


def _rack(**changes: Any) -> HostSettings:
    return HostSettings.model_validate(good()["rack"] | changes)


def test_the_entry_of_a_service_is_all_that_it_needs() -> None:
    photos = ast.literal_eval(EXAMPLES['inventory: "services"'])
    declared = declared_services(_rack(services=[photos]))
    assert "photos" in {each.name for each in declared}


def _tenant(name: str) -> dict[str, str]:
    """The files of the tenant in an example, on a rack that has what the page names."""
    docker = {"dns": ["192.168.1.1"], "networks": [{"name": "home", "tier": "T1"}]}
    uuid = "GPU-8f1c3a52-0000-1111-2222-333344445555"
    cards = [{"name": "one", "device": "2204", "vram_mib": 24576, "uuid": uuid}]
    entry = ast.literal_eval(EXAMPLES[name])
    rack = _rack(services=[entry], docker=docker, gpus={"cards": cards})
    findings = check_host("rack", {"rack": rack}, {"rack"})
    # The page's addresses are examples.
    assert [str(each) for each in findings if "example" not in str(each)] == []
    return service.texts(tenants.programs(rack))


def test_a_container_is_its_entry() -> None:
    unit = _tenant("container")["/etc/systemd/system/holdfast-tenant-pictures.service"]
    assert "--publish=0.0.0.0:8188:80/tcp" in unit
    assert "--device=nvidia.com/gpu=GPU-8f1c3a52-0000-1111-2222-333344445555" in unit
    assert "--user=65532:65532" in unit and "--cap-add=CHOWN" in unit
    assert "target=/run/secrets,readonly" in unit


def test_a_python_service_is_its_entry() -> None:
    unit = _tenant("python")["/etc/systemd/system/holdfast-tenant-notes.service"]
    assert "User=tenant-notes" in unit
    assert "PrivateNetwork=yes" in unit
    assert "LoadCredential=key:/etc/holdfast/credentials/holdfast-tenant-notes-key" in unit


def test_a_programs_units_follow_from_its_declaration() -> None:
    exporter = _run("program")["exporter"]
    texts = service.texts([exporter])
    unit = texts["/etc/systemd/system/holdfast-node-exporter.service"]
    assert "User=node-exporter" in unit
    assert "MemoryMax=64M" in unit
    assert "# its figures are those of /proc\nProcSubset=all" in unit
    assert "OnFailure=holdfast-notify@%n.service" in unit
    (settled,) = operations.settled([exporter])
    assert (settled.name, settled.running) == (exporter.unit, True)


def test_a_capability_on_the_list_is_known_to_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = _run("program")["capability"]
    unit = "/etc/systemd/system/holdfast-node-exporter.service"
    assert "node-exporter" not in {each.name for each in declared_services(_rack())}
    for module in (registry, programs):
        monkeypatch.setattr(module, "CAPABILITIES", [*CAPABILITIES, toy])
    monkeypatch.setattr(owned, "REMOVED", [*owned.REMOVED, toy])
    settings = _rack()
    assert 9100 in {claim.port for claim in registry.port_claims(settings)}
    assert unit in {each.path("service") for each in programs.programs(settings)}
    assert unit in owned.declared(settings)
    assert operations.needed_packages(toy.programs(settings)) == ["prometheus-node-exporter"]


def test_a_package_is_installed_by_its_name() -> None:
    call = ast.parse(EXAMPLES["operation"]).body[-1]
    assert isinstance(call, ast.Expr) and isinstance(call.value, ast.Call)
    told = {str(each.arg): ast.literal_eval(each.value) for each in call.value.keywords}
    assert told.pop("name")
    host = LocalHost(facts={InstalledPackages: {}})
    commands = host.planned(packages.present, **told)
    assert any(" install nano" in command for command in commands), commands


def test_a_check_yields_what_is_wrong_and_the_mend() -> None:
    long = good()["rack"]["services"][0] | {"name": "a-name-of-25-characters-x"}
    (finding,) = _run("check")["long_names"](_rack(services=[long]))
    assert (finding.key, finding.mend) == ("services[0].name", "shorten it")
