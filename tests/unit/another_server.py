"""Runs in a copy of the repository that has one more module in `holdfast/servers/`.

Prints, as JSON, what a rack with an engine of that server is: the plan of its deploy, its files,
its benchmark, its refusals, and what its removal does.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import holdfast
from facts.owned import OwnedFiles
from holdfast import owned
from holdfast.checks import check_host
from holdfast.commands.plan import _show
from holdfast.engines import throughput, units
from holdfast.engines.replacement import with_model
from holdfast.engines.server import Load
from holdfast.engines.servers import declared_engines
from holdfast.programs import without_network
from holdfast.registry import declared_services, secret_claims
from holdfast.service import texts
from holdfast.settings import HostSettings
from operations import owned as operations
from tests.unit import plans
from tests.unit.local_host import LocalHost
from tests.unit.site_data import filled_in

ENGINE = {
    "name": "draft",
    "checkpoint": "llama-8b",
    "cards": ["always"],
    "port": 8102,
    "scope": "tailnet",
    "api_key": "DRAFT_API_KEY",
    "context_tokens": 4096,
    "utilisation": 0.1,
    "flags": {"chunked-prefill-size": 2048},
}
ROOT = Path.cwd()


def _rack(**server: Any) -> HostSettings:
    said: dict[str, Any] = {}
    exec(filled_in(ROOT / "inventories/complete.py"), said)  # noqa: S102
    ((_, rack),) = said["hosts"]
    if server:
        rack["sglang"] |= server
    return HostSettings.model_validate(rack)


def _refused(rack: HostSettings) -> list[str]:
    found = check_host("rack", {"rack": rack}, {"rack"})
    return [f"{each.key}: {each.wrong}; {each.mend}" for each in found]


def _flags(**flags: Any) -> list[str]:
    changed = {name.replace("_", "-"): value for name, value in flags.items()}
    return _refused(_rack(engines=[ENGINE | {"flags": changed}]))


def _two_models(rack: HostSettings) -> HostSettings:
    other = rack.storage.checkpoints[0].model_copy(update={"name": "other"})
    both = [*rack.storage.checkpoints, other]
    storage = rack.storage.model_copy(update={"checkpoints": both})
    return rack.model_copy(update={"storage": storage})


def main() -> None:
    """Print it."""
    (ROOT / "sglang.txt").write_text("sglang==0.5.0 --hash=sha256:00\n")
    inventory = ROOT / "inventories/complete.py"
    declared = {"lock": str(ROOT / "sglang.txt"), "engines": [ENGINE]}
    inventory.write_text(f"{inventory.read_text()}\n_rack['sglang'] = {declared!r}\n")
    with (ROOT / ".env.example").open("a") as example:
        example.write("DRAFT_API_KEY=\n")
    rack = _rack()
    without = rack.model_copy(update={"sglang": None})
    host = LocalHost(facts={OwnedFiles: owned.declared(rack)})
    (engine,) = (each for each in declared_engines(rack) if each.name == "draft")
    router = rack.routers[0].model_copy(update={"engines": ["drat"]})
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        _show("rack", rack)
    found = {
        "holdfast": holdfast.__file__,
        "files": texts(units.programs(rack)),
        "configuration": {
            names.engine.name: units.configuration(rack, names) for names in units.every(rack)
        },
        "services": [each.name for each in declared_services(rack)],
        "without_network": sorted(without_network(rack)),
        "secrets": [f"{each.key} {each.name}" for each in secret_claims(rack)],
        "said": said.getvalue(),
        "bench": throughput.script(rack, engine, Load()),
        "removed": host.planned(operations.only, settings=without, capabilities=owned.REMOVED),
        "replaced": [
            [name, each.name, each.checkpoint]
            for changed in with_model({"rack": _two_models(rack)}, "draft", "other").values()
            for name, server in changed.servers.items()
            for each in server.engines
        ],
        "refused": {
            "right": _refused(rack),
            "unknown": _flags(chunked_prefil_size=1),
            "held": _flags(port=1),
            "wrong": _flags(chunked_prefill_size="8k"),
            "no lock": _refused(_rack(lock=None)),
            "name": _refused(_rack(engines=[ENGINE | {"name": "client"}])),
            "router": _refused(rack.model_copy(update={"routers": [router]})),
        },
    }
    plans.ask_verbs()
    with tempfile.TemporaryDirectory() as folder:
        plans._prepare_secrets(Path(folder))
        (plan,) = plans.plans("complete", "debian13", "debian13").values()
    print(json.dumps({**found, "plan": plan.lines}))


if __name__ == "__main__":
    main()
