"""The examples of docs/adding.md do what the page says."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
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

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/adding.md").read_text()
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
    assert "--user=65532:65532" in unit and "--cap-drop=ALL" in unit
    assert "--read-only" not in unit
    assert "target=/run/secrets,readonly" in unit


def test_a_python_service_is_its_entry() -> None:
    unit = _tenant("python")["/etc/systemd/system/holdfast-tenant-notes.service"]
    assert "User=tenant-notes" in unit
    assert "PrivateNetwork=yes" in unit
    assert "LoadCredential=key:/etc/holdfast/credentials/holdfast-tenant-notes.key" in unit


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


PRODUCT = ("holdfast", "deploys", "operations", "facts", "templates", "locks", "inventories")
SERVER = "holdfast/servers/sglang.py"
STEM = "/etc/systemd/system/holdfast-sglang-draft"


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a rack is with an engine of the example's server, in a copy with that one more file."""
    copy = tmp_path_factory.mktemp("holdfast")
    for folder in (*PRODUCT, "tests/unit", "tests/doubles"):
        shutil.copytree(
            ROOT / folder,
            copy / folder,
            ignore=shutil.ignore_patterns("__pycache__", "recorded", "test_*"),
        )
    shutil.copy(ROOT / ".env.example", copy)
    (copy / "tests/__init__.py").touch()
    (copy / SERVER).write_text(EXAMPLES[SERVER])
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.another_server"],
        cwd=copy,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["holdfast"] == str(copy / "holdfast/__init__.py")
    return found


def test_another_server_is_installed_and_started(another: dict[str, Any]) -> None:
    plan = another["plan"]
    assert {"== Engines | Install sglang", "== Engines, their doors | Keep one older sglang"} <= {
        *plan
    }
    placed = [line.split()[1] for line in plan if line.startswith("file ")]
    assert set(another["files"]) <= set(placed)
    for unit in (".service", "-loopback.socket", "-tailnet.socket", "-watch.timer"):
        assert f"{STEM}{unit}" in placed
        assert f"unit holdfast-sglang-draft{unit} enabled, running" in plan
    assert "  && base64 -d > /etc/holdfast/sglang/draft.yaml.next" in plan
    assert "sglang-draft" in another["services"]
    assert "sglang-draft" in another["without_network"]
    assert "sglang.engines[0].api_key DRAFT_API_KEY" in another["secrets"]


def test_the_units_of_another_server_are_those_of_an_engine(another: dict[str, Any]) -> None:
    files = another["files"]
    unit = files[f"{STEM}.service"]
    assert "SGLANG_API_KEY=$$(cat %d/key) exec /opt/holdfast/sglang/" in unit
    start = "bin/python -m sglang.launch_server --config /etc/holdfast/sglang/draft.yaml"
    assert start in unit
    assert {
        "PrivateNetwork=yes",
        "User=sglang-draft",
        "ExecStartPost=/usr/bin/curl --config %d/probe",
    } <= set(unit.splitlines())
    watch = files[f"{STEM}-watch.service"]
    assert "--busy sglang:num_running_reqs --busy sglang:num_queue_reqs" in watch
    # Both are on one card, and measure it.
    other = files["/etc/systemd/system/holdfast-vllm-client.service"]
    assert "After=holdfast-sglang-draft.service" in other.splitlines()
    assert "model-path: /var/lib/holdfast/models/" in another["configuration"]["draft"]
    job = json.loads(files["/etc/holdfast/engines/draft.json"])
    assert job["model_key"] == "model-path"
    assert job["running_metric"] == "sglang:num_running_reqs"


def test_another_server_is_measured_and_replaced(another: dict[str, Any]) -> None:
    assert "bin/python -m sglang.bench_serving --backend sglang-oai --port 8102" in another["bench"]
    assert ["sglang", "draft", "other"] in another["replaced"]
    assert ["vllm", "chat", "llama-8b"] in another["replaced"]
    assert (
        "SGLang's engine draft: Holdfast does not know how much memory it needs" in another["said"]
    )


def test_another_server_goes_when_it_leaves_the_inventory(another: dict[str, Any]) -> None:
    (command,) = another["removed"]
    steps = command.split(" && ")
    assert "holdfast-sglang-draft.service" in steps[1].split()
    own = {path for path in another["files"] if "draft" in path}
    keys = {f"/etc/holdfast/credentials/holdfast-sglang-draft-{name}" for name in ("key", "probe")}
    assert own | keys | {"/etc/holdfast/sglang/draft.yaml"} == set(steps[3].split()) - {"rm", "-f"}


def test_what_is_wrong_with_another_server_is_refused(another: dict[str, Any]) -> None:
    assert another["refused"] == {
        "right": [],
        "unknown": [
            "sglang.engines[0].flags.chunked-prefil-size: SGLang 0.5.0 has no such flag;"
            " write 'chunked-prefill-size'"
        ],
        "held": [
            "sglang.engines[0].flags.port: an inventory must not set this flag;"
            " write the engine's port"
        ],
        "wrong": [
            "sglang.engines[0].flags.chunked-prefill-size: SGLang takes an integer here;"
            " write a value that SGLang accepts"
        ],
        "no lock": [
            "sglang.lock: no lock of SGLang comes with Holdfast;"
            " write the output of 'uv pip compile --generate-hashes'"
        ],
        "name": ["vllm.engines[1].name: sglang.engines[0] has this name; rename one"],
        "router": [
            "routers[0].engines[0]: sglang.engines and vllm.engines declare no such engine;"
            " write 'draft'"
        ],
    }
