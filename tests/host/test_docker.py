"""The container engine answers, has our settings, and starts after the firewall."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest
from testinfra.host import Host

from facts import sections
from facts.docker import DockerEngine
from holdfast import docker_networks
from holdfast.docker import DAEMON_JSON, LINKS_SCRIPT, enforced
from holdfast.firewall import DOCKER_USER_SCRIPT
from holdfast.settings import Docker, HostSettings

Answers = dict[str, list[str]]


@pytest.fixture(scope="module")
def wanted(settings: HostSettings) -> Docker:
    if settings.docker is None:
        pytest.skip("the inventory declares no container engine for this host")
    return settings.docker


@pytest.fixture(scope="module")
def found(host: Host, wanted: Docker) -> Answers:
    """All facts for the tests below, in one command."""
    questions = {
        "info": "docker info --format '{{json .}}'",
        "bridge": "docker network inspect bridge --format '{{json .Options}}'",
        "containers": "docker ps --quiet | xargs --no-run-if-empty docker inspect"
        " --format '{{.Name}} {{json .HostConfig.LogConfig}}'",
        "daemon.json": f"cat {DAEMON_JSON}; echo",
        "times": 'date -d "$(systemctl show --property=InactiveExitTimestamp --value'
        f' docker.service)" +%s; stat --format=%Y {DAEMON_JSON}',
        "group": "getent group docker | cut -d: -f4",
        "socket": "stat --format='%a %U %G' /run/docker.sock",
        "advertised": "cd /proc/sys/net/ipv6/conf && grep -H . */accept_ra",
        "order": "systemctl show --property=After --value docker.service",
        "hooks": "systemctl show --property=ExecStartPre,ExecStartPost docker.service",
        "running": "docker ps --quiet | xargs --no-run-if-empty docker inspect",
        "written": f"stat --format=%Y {DAEMON_JSON}",
    }
    return sections.answers(host.run(sections.probe(questions)).stdout.splitlines())


@pytest.fixture(scope="module")
def running(found: Answers) -> list[dict[str, Any]]:
    """The running containers, from `docker inspect`."""
    parsed: list[dict[str, Any]] = json.loads("\n".join(found["running"]) or "[]")
    return parsed


@pytest.fixture(scope="module")
def sovereign(wanted: Docker) -> set[str]:
    names = {network.name for network in wanted.networks if network.tier == "T1"}
    if not names:
        pytest.skip("this host has no T1 network")
    return names


def _on(container: dict[str, Any]) -> set[str]:
    return set(container["NetworkSettings"]["Networks"])


@pytest.fixture(scope="module")
def info(found: Answers) -> dict[str, Any]:
    """The engine's own `docker info`."""
    parsed: dict[str, Any] = json.loads("\n".join(found["info"]))
    return parsed


def test_it_answers(info: dict[str, Any]) -> None:
    assert info["ServerVersion"], info.get("ServerErrors")


def test_our_settings_are_in_its_file(found: Answers, info: dict[str, Any], wanted: Docker) -> None:
    major = int(info["ServerVersion"].split(".")[0])
    content = json.loads("\n".join(found["daemon.json"]))
    for key, value in enforced(wanted, major).items():
        if isinstance(value, dict):
            assert value.items() <= content[key].items()
        else:
            assert content[key] == value


def test_it_runs_with_them(found: Answers, info: dict[str, Any]) -> None:
    assert info["LiveRestoreEnabled"] is True
    assert info["LoggingDriver"] == "json-file"
    # Before 23 (Debian 12 has 20.10) the engine does not show the settings that it read.
    if int(info["ServerVersion"].partition(".")[0]) >= 23:
        assert any("no-new-privileges" in option for option in info["SecurityOptions"])
    started, written = map(int, found["times"])
    assert started >= written, "daemon.json was changed after the engine read it"


def test_its_firewall_backend_has_our_chain(info: dict[str, Any]) -> None:
    backend = info.get("FirewallBackend") or {"Driver": "iptables"}
    assert backend["Driver"].startswith("iptables")


def test_a_port_without_an_address_is_published_to_this_host_only(found: Answers) -> None:
    options = json.loads("\n".join(found["bridge"]))
    assert options["com.docker.network.bridge.host_binding_ipv4"] == "127.0.0.1"


def test_the_logs_of_every_container_are_bounded(found: Answers, wanted: Docker) -> None:
    unbounded = []
    for line in found["containers"]:
        name, _, text = line.partition(" ")
        log = json.loads(text)
        # A container may use another driver. One that is older than our settings has no limit.
        if log["Type"] == "json-file" and "max-size" not in (log["Config"] or {}):
            unbounded.append(name)
    assert unbounded == []


def test_its_group_has_no_members(found: Answers) -> None:
    assert found["group"] == [""]
    assert found["socket"] == ["660 root docker"]


def test_it_starts_behind_the_firewall(found: Answers) -> None:
    assert "ufw.service" in found["order"][0].split()
    hooks = {line.partition("=")[0] for line in found["hooks"] if DOCKER_USER_SCRIPT in line}
    assert hooks == {"ExecStartPre", "ExecStartPost"}


@pytest.fixture(scope="module")
def advertised(found: Answers) -> dict[str, int]:
    """Link to its accept_ra: with 1 it accepts routers' advertisements until the host forwards."""
    told = [line.partition("/accept_ra:") for line in found["advertised"]]
    return {link: int(value) for link, _, value in told}


def test_the_hosts_links_keep_the_routes_that_routers_advertise(
    found: Answers, advertised: dict[str, int], settings: HostSettings
) -> None:
    assert {link for link in settings.interfaces if advertised.get(link) == 1} == set()
    assert any(LINKS_SCRIPT in line for line in found["hooks"] if line.startswith("ExecStartPre="))


def test_no_link_of_containers_takes_a_route(advertised: dict[str, int]) -> None:
    theirs = ("all", "default", "docker", "br-", "veth")
    taking = {link for link, value in advertised.items() if value == 2 and link.startswith(theirs)}
    assert taking == set()


def test_its_networks_are_the_declared_ones(host: Host, wanted: Docker) -> None:
    state = DockerEngine().process(host.run(DockerEngine().command()).stdout.splitlines())
    assert list(docker_networks.commands(wanted.networks, state)) == []


def test_the_container_of_a_declared_service_is_on_its_network_alone(
    running: list[dict[str, Any]], settings: HostSettings
) -> None:
    on_networks = [service for service in settings.services if service.network]
    found = [
        (service.network, container)
        for service in on_networks
        for listen in service.listens
        for container in running
        for ports in container["NetworkSettings"]["Ports"].values()
        for port in ports or ()
        if listen.container and port["HostPort"] == str(listen.port)
    ]
    if not found:
        pytest.skip("no running container publishes the port of a service on a network")
    for network, container in found:
        assert _on(container) == {network}, container["Name"]


def test_containers_on_a_t1_network_are_on_no_other(
    running: list[dict[str, Any]], sovereign: set[str]
) -> None:
    elsewhere = {each["Name"] for each in running if _on(each) & sovereign and len(_on(each)) > 1}
    assert elsewhere == set()


def test_containers_on_a_t1_network_ask_the_declared_resolvers(
    found: Answers, running: list[dict[str, Any]], sovereign: set[str]
) -> None:
    # A container gets its resolvers when it starts; an older one still makes the engine ask.
    written = int(found["written"][0])
    older = {
        each["Name"]
        for each in running
        if _on(each) & sovereign
        # Docker writes nine digits, but Python 3.11 reads six.
        and datetime.fromisoformat(each["State"]["StartedAt"][:19] + "+00:00").timestamp() < written
    }
    assert older == set(), "restart these containers: they have old resolvers"
