"""Plans `deploys/site.py` for racks on pyinfra's fake connector; prints its files as JSON.

Run as a program, as `plan_on_fakes` is. Its hosts together declare every capability there is, so
that a rule about all files of ours is tried on all of them.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from pyinfra.api import Config, Inventory, State
from pyinfra.api.connect import connect_all
from pyinfra.api.state import StateStage
from pyinfra.context import ctx_inventory, ctx_state
from pyinfra_cli.inventory import make_inventory_from_files
from pyinfra_cli.util import load_deploy_file

from holdfast import base, render, secrets, site
from holdfast.settings import HostSettings
from operations.host_files import HostDirectory, HostFile
from tests.unit import test_clouds, test_gpu_modes

ROOT = Path(__file__).resolve().parents[2]
INVENTORIES = ("drill", "example", "reference")


def _hosts() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name in INVENTORIES:
        inventory = make_inventory_from_files(f"inventories/{name}.py", cwd=str(ROOT))
        found |= {f"{name}-{host.name}": dict(host.data.dict()) for host in inventory}
    return found | {
        "clouds": _data(test_clouds.host()) | {"floor": None},
        "modes": _data(test_gpu_modes.rack()),
    }


def _data(settings: HostSettings) -> dict[str, Any]:
    data: dict[str, Any] = settings.model_dump(mode="json", by_alias=True)
    wanted = {engine["checkpoint"] for engine in data["vllm"]["engines"]}
    data["storage"]["checkpoints"] = [
        {
            "name": name,
            "source": f"https://models.example/v1/{name}",
            "sha256": "ab" * 32,
            "size_mib": 15400.0,
            "description": str(ROOT),
        }
        for name in sorted(wanted)
    ]
    return data


def _unchecked() -> None:
    """Have nothing refused: these hosts share names, have no secrets, and stand on one ground."""
    base.refusals = lambda *_: []
    site.check_host = site.check_site = lambda *_: []  # type: ignore[assignment]
    site.check_secrets = lambda *_: []
    secrets.read = lambda name, root=None: SecretStr(name)


def _noted(kind: type, seen: list[dict[str, Any]]) -> None:
    """Have every instance of a dataclass that is made from now on be noted."""
    make = vars(kind)["__init__"]

    def note(self: Any, *given: Any, **named: Any) -> None:
        make(self, *given, **named)
        seen.append(asdict(self))

    setattr(kind, "__init__", note)  # noqa: B010


def main(ground: str) -> None:
    """Print the files, the folders and the templates of the whole plan."""
    files: list[dict[str, Any]] = []
    directories: list[dict[str, Any]] = []
    templates: set[str] = set()
    _unchecked()
    _noted(HostFile, files)
    _noted(HostDirectory, directories)
    environment = render._environment()
    get = environment.get_template

    def noted(name: Any, *given: Any, **named: Any) -> Any:
        templates.add(str(name))
        return get(name, *given, **named)

    environment.get_template = noted  # type: ignore[method-assign]
    state = State(check_for_changes=False)
    with ctx_state.use(state):
        fakes = []
        for name, data in _hosts().items():
            release = Path(ground).read_text()
            answers = {"cat /etc/os-release": release.splitlines()}
            data |= {"distribution": "debian13", "fake_responses": answers}
            fakes.append((f"@fake/{name}", {**data, "fake_delay": 0.0, "fake_delay_jitter": 0.0}))
        inventory = Inventory((fakes, {}))  # type: ignore[no-untyped-call]
        with ctx_inventory.use(inventory):
            state.init(inventory, Config())  # type: ignore[no-untyped-call]
            state.set_stage(StateStage.Connect)
            connect_all(state)
            state.set_stage(StateStage.Prepare)
            load_deploy_file(state, str(ROOT / "deploys" / "site.py"))
    print(json.dumps({"files": files, "directories": directories, "templates": sorted(templates)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
