"""Docker's networks: made as declared, removed when they are not, refused where that would hurt."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from facts.docker import BridgeNetwork, DockerEngine, DockerState
from holdfast import docker_networks
from holdfast.settings import DockerNetwork, HostSettings
from operations.docker_engine import networked
from tests.unit.local_host import LocalHost
from tests.unit.recorded_facts import read, recorded
from tests.unit.site_data import good

RECORDED = recorded(DockerEngine)
HOME = DockerNetwork(name="home", tier="T1", subnets=["fd00:30:1::/64"])
LAB = DockerNetwork(name="lab", tier="T2")
FREE = DockerNetwork(name="free", tier="T3")
ALL = [HOME, LAB, FREE]
STATE: DockerState = read(DockerEngine)


def _settings(*declared: DockerNetwork) -> HostSettings:
    data = good()["rack"]
    dns = ["192.168.1.1"]
    data["docker"] = {"dns": dns, "networks": [each.model_dump() for each in declared]}
    return HostSettings.model_validate(data)


def _planned(declared: list[DockerNetwork], state: DockerState = STATE) -> list[str]:
    return LocalHost(facts={DockerEngine: state}).planned(networked, declared=declared)


def test_what_is_on_a_host_is_read() -> None:
    assert STATE.networks["home"] == BridgeNetwork(
        "br-home", ("172.18.0.0/16", "fd00:30:1::/64"), internal=False, ours=True
    )
    assert not STATE.networks["bridge"].ours
    assert STATE.users("home") == ["two"]
    assert STATE.users("lab") == []
    assert {"br-home", "eth0"} <= STATE.links


def test_a_network_that_was_given_nothing_is_read() -> None:
    """Docker hands back what it was told, and some tell it null."""
    bare = [re.sub(r'"(Options|Labels)": \{\}', r'"\1": null', line) for line in RECORDED]
    assert bare != RECORDED
    state: DockerState = read(DockerEngine, bare)
    assert state.networks.keys() == STATE.networks.keys()


def test_nothing_is_run_when_all_is_so() -> None:
    assert _planned(ALL) == []


def test_a_network_is_made_with_a_bridge_that_the_rules_know() -> None:
    bare = DockerState(None, None, (), unruled=False)
    first, second, _ = _planned(ALL, bare)
    assert first == (
        "docker network create --label=holdfast --opt=com.docker.network.bridge.name=br-home"
        " --opt=com.docker.network.bridge.host_binding_ipv4=127.0.0.1"
        " --ipv6 --subnet=fd00:30:1::/64 home"
    )
    assert "bridge.name=br-lab" in second
    assert "--ipv6" not in second


def test_one_that_is_declared_no_more_goes_and_others_stay() -> None:
    # The recorded host has one of its owner's, "custom", and Docker's own.
    assert _planned([HOME, LAB]) == ["docker network rm free"]


@pytest.mark.parametrize(
    "changes",
    [
        {"bridge": "br-0123456789ab"},
        {"internal": True},
        {"subnets": ("172.18.0.0/16",)},
        {"subnets": ("172.18.0.0/16", "fd00:99::/64")},
    ],
)
def test_one_that_is_otherwise_is_made_anew(changes: dict[str, Any]) -> None:
    other = replace(STATE.networks["home"], **changes)
    state = replace(STATE, networks={**STATE.networks, "home": other})
    removal, creation = _planned(ALL, state)
    assert removal == "docker network rm home"
    assert creation == docker_networks.creation(HOME)


def test_a_declared_subnet_of_ipv4_counts() -> None:
    (subnet,) = STATE.networks["lab"].subnets
    assert docker_networks.is_as_declared(
        LAB.model_copy(update={"subnets": [subnet]}), STATE.networks["lab"]
    )
    other = LAB.model_copy(update={"subnets": ["172.30.9.0/24"]})
    assert not docker_networks.is_as_declared(other, STATE.networks["lab"])


def test_one_that_containers_use_is_not_taken_from_them() -> None:
    assert docker_networks.refusals("rack", _settings(*ALL), STATE) == []
    (gone,) = docker_networks.refusals("rack", _settings(LAB, FREE), STATE)
    assert re.search("'home': .* no longer declared, and containers use it: two;", str(gone))
    moved = HOME.model_copy(update={"subnets": ["fd00:99::/64"]})
    (other,) = docker_networks.refusals("rack", _settings(moved, LAB, FREE), STATE)
    assert re.search("'home': .* is not as declared, and containers use it: two;", str(other))


def test_a_bridge_of_somebody_else_is_left_alone() -> None:
    lan = DockerNetwork(name="lan", tier="T2")
    state = replace(STATE, links=STATE.links | {"br-lan"})
    (refusal,) = docker_networks.refusals("rack", _settings(*ALL, lan), state)
    assert "an interface br-lan that is not a Docker network" in str(refusal)
    assert docker_networks.refusals("rack", _settings(*ALL, lan), STATE) == []
