"""The policy that follows from the declarations: grants, tags, what the server must find true."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from holdfast.refusal import Refused
from holdfast.settings import HostSettings
from holdfast.tailnet_policy import EVERYBODY, document
from tests.unit.site_data import good, keep_secrets
from tests.unit.test_inventories import DATA, ROOT, SECRETS

PEOPLE = {"group:family": ["alice@", "bob@"]}


def _web(port: int, *callers: str, **more: Any) -> dict[str, Any]:
    listen = {"port": port, "scope": "tailnet", "callers": list(callers), **more}
    name = f"web-{port}"
    return {"name": name, "unit": f"{name}.service", "user": name, "tier": "T2"} | {
        "listens": [listen]
    }


def _host(*services: dict[str, Any], ssh: list[str] | None = None, **tailnet: Any) -> HostSettings:
    data = good()["rack"]
    data["ssh"] |= {"callers": ssh or []}
    data["floor"] |= {"scope": "loopback"}
    data["services"] = list(services)
    data["tailnet"] |= tailnet
    return HostSettings.model_validate(data)


def _grants(policy: dict[str, Any]) -> set[tuple[str, str, str]]:
    return {
        (source, target, port)
        for grant in policy["grants"]
        for source in grant["src"]
        for target in grant["dst"]
        for port in grant["ip"]
    }


def _test(policy: dict[str, Any], source: str, protocol: str = "tcp") -> dict[str, list[str]]:
    (found,) = [
        test for test in policy["tests"] if (test["src"], test["proto"]) == (source, protocol)
    ]
    return {verdict: found.get(verdict, []) for verdict in ("accept", "deny")}


def test_every_declared_port_is_granted_to_its_callers_and_nothing_else_is() -> None:
    host = _host(
        _web(8090, "tag:office", "group:family"),
        _web(8091, "bob@", protocol="udp"),
        ssh=["alice@"],
        other_tags=["tag:office", "tag:phone"],
        groups=PEOPLE,
    )
    policy = document({"rack": host})
    assert _grants(policy) == {
        ("alice@", "tag:rack", "tcp:22"),
        ("tag:office", "tag:rack", "tcp:8090"),
        ("group:family", "tag:rack", "tcp:8090"),
        ("bob@", "tag:rack", "udp:8091"),
    }
    assert policy["groups"] == PEOPLE
    # A tag has no owner: an owner could hand it out.
    assert policy["tagOwners"] == {"tag:office": [], "tag:phone": [], "tag:rack": []}


def test_without_callers_every_member_may_call_and_no_stranger() -> None:
    policy = document({"rack": _host(_web(8090))})
    everybody = {(who, "tag:rack", port) for who in EVERYBODY for port in ("tcp:22", "tcp:8090")}
    assert _grants(policy) == everybody
    assert "*" not in str(policy)


def test_what_is_open_to_the_world_is_open_to_members_but_for_tailscales_own_port() -> None:
    host = _host(
        {**_web(8090), "listens": [{"port": 8090, "scope": "public"}]},
        {**_web(8092), "listens": [{"port": 8092, "scope": "loopback"}]},
    )
    ports = {port for _, _, port in _grants(document({"rack": host}))}
    assert ports == {"tcp:22", "tcp:8090"}


def test_each_caller_is_tested_and_each_who_is_none() -> None:
    host = _host(
        _web(8090, "tag:office"),
        _web(8091, "group:family"),
        ssh=["alice@", "tag:office"],
        other_tags=["tag:office"],
        groups=PEOPLE,
    )
    policy = document({"rack": host})
    everything = {"tag:rack:22", "tag:rack:8090", "tag:rack:8091", "tag:rack:1"}
    accepted = {
        "tag:office": {"tag:rack:22", "tag:rack:8090"},
        "alice@": {"tag:rack:22", "tag:rack:8091"},
        "bob@": {"tag:rack:8091"},
        "tag:rack": set[str](),
    }
    for source, ports in accepted.items():
        test = _test(policy, source)
        assert (set(test["accept"]), set(test["deny"])) == (ports, everything - ports)
    # A group is tested by its people: a server may ask of it that all get in, or that one does.
    assert not [test for test in policy["tests"] if test["src"].startswith("group:")]


def test_udp_is_tested_as_udp() -> None:
    host = _host(_web(8090, "tag:office", protocol="udp"), other_tags=["tag:office"])
    policy = document({"rack": host})
    assert _test(policy, "tag:office", "udp")["accept"] == ["tag:rack:8090"]
    assert "tag:rack:8090" not in str(_test(policy, "tag:office", "tcp"))


def test_a_host_is_named_by_the_tag_that_the_fewest_share() -> None:
    one = _host(_web(8090, "tag:gpu1"), tags=["tag:rack", "tag:gpu1"])
    two = _host(_web(8091), tags=["tag:rack"])
    policy = document({"one": one, "two": two})
    targets = {(target, port) for _, target, port in _grants(policy)}
    assert targets == {
        ("tag:gpu1", "tcp:22"),
        ("tag:gpu1", "tcp:8090"),
        ("tag:rack", "tcp:22"),
        ("tag:rack", "tcp:8091"),
    }


def test_a_machine_with_two_tags_is_not_said_to_be_denied_what_one_of_them_may() -> None:
    one = _host(_web(8090, "tag:gpu1"), tags=["tag:rack", "tag:gpu1"])
    test = _test(document({"one": one}), "tag:rack")
    assert "tag:gpu1:8090" not in [*test["accept"], *test["deny"]]


def test_an_opening_for_the_whole_world_is_one_for_members_and_one_for_the_lan_is_not() -> None:
    data = good()["rack"]
    world = {
        "port": 9100,
        "sources": ["0.0.0.0/0"],
        "public": True,
        "reason": "a test of the world",
    }
    data["firewall"]["openings"].append(world)
    policy = document({"rack": HostSettings.model_validate(data)})
    assert {port for _, _, port in _grants(policy)} == {"tcp:22", "tcp:8080", "tcp:9100"}


def test_the_program_prints_the_policy_or_says_why_there_is_none(tmp_path: Path) -> None:
    keep_secrets(tmp_path, {key: f"{key.lower()[:9]}-9fKq27xLmZ" for key in SECRETS})

    def run(inventory: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "holdfast", "policy", inventory],
            cwd=ROOT,
            env={"HOLDFAST_SECRETS": str(tmp_path), "HOLDFAST_LAB": str(DATA / "lab.json")},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    assert _grants(json.loads(run("inventories/drill.py").stdout)) == {
        ("tag:operator", "tag:rack", "tcp:22"),
        ("tag:operator", "tag:rack", "tcp:8080"),
        ("tag:guest", "tag:rack", "tcp:8085"),
    }
    untagged = good()["station"] | {"tailnet": {"auth_key": None}}
    (tmp_path / "untagged.py").write_text(f"hosts = [('@rack/station', {untagged!r})]")
    refused = run(str(tmp_path / "untagged.py"))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "station: tailnet.tags = []" in refused.stderr


@pytest.mark.parametrize(
    ("hosts", "words"),
    [
        ({}, "no host declares a tailnet"),
        (
            {"rack": _host(tags=[])},
            "rack: tailnet.tags = []: a policy identifies a host by its tag",
        ),
        (
            {"one": _host(), "two": _host(control_server="https://other.example")},
            "two: tailnet.control_server = 'https://other.example': one is on another tailnet",
        ),
    ],
)
def test_what_no_policy_can_be_of(hosts: dict[str, HostSettings], words: str) -> None:
    with pytest.raises(Refused) as refused:
        document(hosts)
    assert any(words in str(refusal) for refusal in refused.value.refusals)
