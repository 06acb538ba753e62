"""What a tailnet peer reaches through our chains in a kernel. Needs root, nft, ip.

It is not skipped where it cannot run: a wall that was never run into is no wall. Everything is
tried twice, with the rules and without them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from holdfast import tailnet_rules
from holdfast.render import render
from holdfast.settings import HostSettings
from tests.unit import tailnet_stage as stage
from tests.unit.site_data import good

ROOT = Path(__file__).resolve().parents[2]
_PLAY = """
pids=
for beside in 1 2; do unshare --net sleep 120 & pids="$pids $!"; done
trap 'kill $pids; kill 0' EXIT
for pid in $pids; do
    until [ "$(readlink /proc/$pid/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do
        sleep 0.05
    done
done
unshare --net "$0" -m tests.unit.tailnet_stage "$1" $pids "$2"
"""

Said = dict[str, Any]


def _rack() -> HostSettings:
    def service(port: int, **listen: Any) -> dict[str, Any]:
        listens = [{"port": port, "scope": "tailnet", **listen}]
        return {"name": f"web-{port}", "unit": "docker.service", "user": "root", "tier": "T4"} | {
            "listens": listens
        }

    data = good()["rack"]
    data["floor"] |= {"port": stage.DECLARED}
    data["services"] = [
        service(stage.DATAGRAMS, protocol="udp"),
        service(stage.PUBLISHED, container=True),
        {**service(stage.NOBODYS), "listens": [{"port": stage.NOBODYS}]},
    ]
    return HostSettings.model_validate(data)


def _play(folder: Path, wall: str) -> Said:
    rules = folder / "tailnet.nft"
    rules.write_text(tailnet_rules.rules(_rack(), [stage.SSH]))
    text = render(
        "tailnet/holdfast-tailnet.j2", table=tailnet_rules.TABLE, rules=rules, run=f"..{folder}"
    )
    (folder / "holdfast-tailnet").write_text(text)
    sudo = [] if os.geteuid() == 0 else ["sudo", "--non-interactive"]
    done = subprocess.run(
        [*sudo, "setsid", "bash", "-c", _PLAY, sys.executable, str(folder), wall],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stdout, done.stderr
    said: Said = json.loads(done.stdout)
    return said


@pytest.fixture(scope="module")
def walled(tmp_path_factory: pytest.TempPathFactory) -> Said:
    return _play(tmp_path_factory.mktemp("wall"), "wall")


@pytest.fixture(scope="module")
def unwalled(tmp_path_factory: pytest.TempPathFactory) -> Said:
    return _play(tmp_path_factory.mktemp("none"), "none")


OPEN = {
    *(f"tcp {address} {port}" for address in stage.RACK.values() for port in (22, stage.DECLARED)),
    f"udp {stage.RACK[4]} {stage.DATAGRAMS}",
    f"tcp {stage.RACK[4]} {stage.PUBLISHED}",
    # What comes by other interfaces is ufw's to judge.
    f"tcp {stage.ON_THE_LAN} {stage.NOBODYS}",
}


def test_without_the_wall_a_peer_reaches_everything(unwalled: Said) -> None:
    assert set(unwalled["tried"].values()) == {"hello", "answered"}
    assert len(unwalled["tried"]) == 13


def test_a_peer_reaches_what_is_declared_and_is_told_so_at_once(walled: Said) -> None:
    tried = walled["tried"]
    assert {call for call, said in tried.items() if said == "hello"} == OPEN
    assert tried.pop("ping") == "answered"
    for call, said in tried.items():
        if call not in OPEN:
            assert said == ("ECONNREFUSED" if call.startswith("tcp") else "EHOSTUNREACH"), call
    # A packet each.
    assert walled["refused"] == len(tried) - len(OPEN)


def test_the_rack_may_call_its_peers(walled: Said) -> None:
    assert walled["called"] == "hello"


@pytest.mark.parametrize(("what", "words"), [("changed", "changed by hand"), ("gone", "was gone")])
def test_a_table_that_is_tampered_with_is_told_of_and_put_back(
    walled: Said, what: str, words: str
) -> None:
    assert walled["untouched"] == [0, ""]
    (status, said), second = walled[what]
    assert status == 1
    assert words in said
    assert second == [0, ""]
    assert walled["tried after it was gone"][f"tcp {stage.RACK[4]} {stage.NOBODYS}"] != "hello"
