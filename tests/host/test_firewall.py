"""The firewall: the kernel's policies and rules, listening programs, and the rules of a boot."""

from __future__ import annotations

import ipaddress
import re

import pytest
from testinfra.host import Host

from facts import sections
from facts.firewall import BLOCK_BEGIN, GUARD, PROGRAM, ROLLBACK_STATE
from holdfast.firewall import (
    DOCKER_USER,
    FAMILIES,
    ROLLBACK_UNIT,
    TIMER,
    UNTIL_TAILNET,
    Family,
    Hole,
    container_rules,
    holes,
)
from holdfast.registry import declared_services
from holdfast.settings import HostSettings

Answers = dict[str, list[str]]
TAILNET = [ipaddress.ip_network("100.64.0.0/10"), ipaddress.ip_network("fd7a:115c:a1e0::/48")]
DHCP_CLIENT = {("udp", 68), ("udp", 546)}


@pytest.fixture(scope="module")
def found(host: Host) -> Answers:
    """All facts for the tests below, in one command."""
    questions = {
        "listeners": "ss -Htulpn",
        "default routes": "ip -o route show default; ip -6 -o route show default",
        "nftables": "systemctl show --property=LoadState,ActiveState nftables.service",
        "ufw": "systemctl is-enabled ufw.service; systemctl is-active ufw.service;"
        " grep -h ^ENABLED= /etc/ufw/ufw.conf",
        "persistent": "dpkg-query --show --showformat='${db:Status-Status} ${Package}\\n'"
        " iptables-persistent netfilter-persistent | grep ^installed",
        "blocks": f"grep -l '^{BLOCK_BEGIN}' /etc/ufw/after.rules /etc/ufw/after6.rules",
        "unproved": f"ls {ROLLBACK_STATE}/armed;"
        " systemctl is-active holdfast-firewall-rollback.timer",
        "proved": f"{PROGRAM} proved && echo yes",
        "watch": f"systemctl is-enabled {TIMER}; systemctl is-active {TIMER}",
        "at boot": f"systemctl is-enabled {ROLLBACK_UNIT}",
        "filter4": "iptables -S",
        "filter6": "ip6tables -S",
        "mangle4": "iptables -t mangle -S",
        "mangle6": "ip6tables -t mangle -S",
    }
    done = host.run(f"PATH=$PATH:/usr/sbin:/sbin; {sections.probe(questions)}")
    return sections.answers(done.stdout.splitlines())


@pytest.fixture(scope="module")
def declared(settings: HostSettings) -> list[Hole]:
    """The ports that other machines may reach.

    SSH on the LAN is closed once the host has a tailnet.
    """
    closed = settings.ssh.lan_access == "keep" or settings.tailnet is not None
    lan_ssh = None if closed else UNTIL_TAILNET
    return holes(settings, declared_services(settings), lan_ssh=lan_ssh)


def _network(hole: Hole) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(hole.source)


def _open(rule: str, family: Family) -> tuple[str, int, object, str | None]:
    """Protocol, port, source and interface of an accepting rule."""
    options = dict(re.findall(r"(-[a-z]|--dport) (\S+)", rule))
    anywhere = "0.0.0.0/0" if family == 4 else "::/0"
    source = ipaddress.ip_network(options.get("-s", anywhere))
    return options["-p"], int(options["--dport"]), source, options.get("-i")


@pytest.mark.parametrize("family", FAMILIES)
def test_undeclared_packets_are_dropped(found: Answers, family: Family) -> None:
    policies = {line for line in found[f"filter{family}"] if line.startswith("-P ")}
    assert policies == {"-P INPUT DROP", "-P FORWARD DROP", "-P OUTPUT ACCEPT"}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_kernel_accepts_exactly_the_declared_ports(
    found: Answers, declared: list[Hole], family: Family
) -> None:
    chain = f"-A ufw{'6' if family == 6 else ''}-user-input "
    rules = [line for line in found[f"filter{family}"] if line.startswith(chain)]
    assert all(rule.endswith("-j ACCEPT") for rule in rules), rules
    assert {_open(rule, family) for rule in rules} == {
        (hole.protocol, hole.port, _network(hole), hole.interface)
        for hole in declared
        if hole.family == family and not hole.container
    }


# Every network needs these: answers, errors and neighbours, and addresses by DHCP.
_NEEDED = re.compile(
    r"-i lo|-m conntrack --ctstate RELATED,ESTABLISHED|(-s fe80::/10 )?-p (icmp|ipv6-icmp) .*"
    r"|-p udp -m udp --sport 67 --dport 68"
    r"|-s fe80::/10 -d fe80::/10 -p udp -m udp --sport 547 --dport 546"
)


@pytest.mark.parametrize("family", FAMILIES)
def test_ufw_accepts_nothing_by_itself(found: Answers, family: Family) -> None:
    chain = rf"-A ufw{'6' if family == 6 else ''}-(?:before|after)-(?:input|forward) "
    lets = [
        rule[1]
        for line in found[f"filter{family}"]
        if (rule := re.fullmatch(rf"{chain}(.*) -j ACCEPT", line))
    ]
    assert lets
    assert [rule for rule in lets if not _NEEDED.fullmatch(rule)] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_no_rule_accepts_packets_before_ufw(found: Answers, family: Family) -> None:
    rules = [line for line in found[f"filter{family}"] if line.startswith("-A INPUT ")]
    ufw = f"-j ufw{'6' if family == 6 else ''}-before-input"
    ahead = rules[: next(i for i, rule in enumerate(rules) if rule.endswith(ufw))]
    # Tailscale accepts packets of its own interface, and of no other.
    others = [rule for rule in ahead if "ufw" not in rule and not rule.endswith("-j ts-input")]
    assert others == []


def test_only_declared_ports_listen_off_this_host(
    found: Answers, declared: list[Hole], settings: HostSettings
) -> None:
    expected = {(hole.protocol, hole.port) for hole in declared} | {
        (listen.protocol, listen.port)
        for service in declared_services(settings)
        for listen in service.listens
        if listen.scope != "loopback"
    }
    unexpected = []
    for line in found["listeners"]:
        protocol, _, _, _, local, *rest = line.split()
        address, _, port = local.rpartition(":")
        address = address.strip("[]").partition("%")[0]
        if address != "*":
            where = ipaddress.ip_address(address)
            if where.is_loopback or any(where in network for network in TAILNET):
                continue
        # Ports that Docker publishes are guarded by other rules, which the next tests check.
        if "docker-proxy" in " ".join(rest):
            continue
        if (protocol, int(port)) not in expected | DHCP_CLIENT:
            unexpected.append(line)
    assert unexpected == []


@pytest.mark.parametrize("family", FAMILIES)
def test_containers_are_reached_only_as_declared(
    found: Answers, declared: list[Hole], settings: HostSettings, family: Family
) -> None:
    if settings.docker is None:
        assert not any("-j DOCKER" in line for line in found[f"filter{family}"])
        return
    routed = {name for line in found["default routes"] for name in re.findall(r"dev (\S+)", line)}
    for chain, table in ((DOCKER_USER, "filter"), (GUARD, "mangle")):
        rules = [line for line in found[f"{table}{family}"] if line.startswith(f"-A {chain} ")]
        dropped = {name for rule in rules for name in re.findall(r"-i (\S+) -j DROP$", rule)}
        assert {*settings.interfaces, *routed} - {"tailscale0"} <= dropped, chain
        assert rules == container_rules(chain, declared, dropped, family)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_guard_of_containers_comes_first(
    found: Answers, settings: HostSettings, family: Family
) -> None:
    if settings.docker is None:
        assert not any("-j DOCKER" in line for line in found[f"filter{family}"])
        return
    forward = [line for line in found[f"filter{family}"] if line.startswith("-A FORWARD ")]
    deciding = [line for line in forward if "-j DOCKER" in line or line.endswith("-j ACCEPT")]
    assert deciding[0] == f"-A FORWARD -j {DOCKER_USER}"
    mangled = [line for line in found[f"mangle{family}"] if line.startswith("-A FORWARD ")]
    assert mangled[0] == f"-A FORWARD -j {GUARD}"


def test_a_boot_brings_the_same_rules_back(found: Answers) -> None:
    assert found["ufw"] == ["enabled", "active", "ENABLED=yes"]
    assert found["blocks"] == ["/etc/ufw/after.rules", "/etc/ufw/after6.rules"]


def test_nothing_else_loads_or_flushes_rules(found: Answers) -> None:
    assert set(found["nftables"]) == {"LoadState=masked", "ActiveState=inactive"}
    assert found["persistent"] == []


def test_no_change_waits_for_its_proof(found: Answers) -> None:
    assert found["unproved"] == ["inactive"]


def test_a_login_proved_the_rules_in_force(found: Answers) -> None:
    assert found["proved"] == ["yes"]


def test_it_is_watched_now_and_at_boot(found: Answers) -> None:
    assert found["watch"] == ["enabled", "active"]


def test_a_boot_undoes_what_was_not_proved(found: Answers) -> None:
    assert found["at boot"] == ["enabled"]
