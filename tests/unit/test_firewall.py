"""What the firewall must be, from the inventory and a recorded host; packets walked through it."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from facts.firewall import Firewall, FirewallState, external_interfaces
from holdfast import firewall
from holdfast.firewall import (
    DOCKER_USER_SCRIPT,
    LOAD,
    UNTIL_TAILNET,
    Family,
    Hole,
    container_rules,
    deletion,
    holes,
    lan_ssh_wanted,
    plan,
)
from holdfast.registry import declared_services
from holdfast.settings import HostSettings
from tests.unit.recorded_facts import read

BARE = read(
    Firewall,
    [
        f"#= {name}"
        for name in (
            "options",
            "rules",
            "lets",
            "lines",
            "block",
            "live",
            "rules6",
            "lets6",
            "lines6",
            "block6",
            "live6",
        )
    ]
    + ["#= links", "eth1 device", "lo", "#= routes", "#= ipv6", "yes", "#= armed", "#= proved"],
)


def _settings(**changes: Any) -> HostSettings:
    data: dict[str, Any] = {
        "hostname": "rack",
        "distribution": "debian13",
        "interfaces": {"eth1": {"role": "lan"}},
        "firewall": {
            "openings": [
                {
                    "port": 8444,
                    "sources": ["10.77.0.20/32", "fd77::20/128"],
                    "interface": "eth1",
                    "reason": "probe of a host port",
                },
                {
                    "port": 8443,
                    "sources": ["10.77.0.0/24", "fd77::/64"],
                    "interface": "eth1",
                    "container": True,
                    "reason": "probe of a container port",
                },
            ]
        },
    }
    return HostSettings.model_validate({**data, **changes})


def _plan(state: FirewallState, settings: HostSettings | None = None) -> list[str]:
    settings = settings or _settings()
    wanted = holes(settings, declared_services(settings), lan_ssh=lan_ssh_wanted(settings, state))
    return plan(settings, wanted, state).commands


@pytest.fixture
def rack() -> FirewallState:
    """A converged Debian 13 with Docker 26, seven containers and SSH withdrawn from the LAN."""
    state: FirewallState = read(Firewall)
    return state


def test_a_converged_host_needs_nothing(rack: FirewallState) -> None:
    assert rack.external == {"eth1"}
    assert not rack.armed
    assert _plan(rack) == []


def test_a_bare_host_gets_its_rules_before_ufw_is_enabled() -> None:
    commands = _plan(BARE)
    assert commands[-3:] == ["ufw --force enable", LOAD, DOCKER_USER_SCRIPT]
    allowed = [command for command in commands if command.startswith("ufw allow")]
    assert allowed == [
        command
        for anywhere, neighbour in (("0.0.0.0/0", "10.77.0.20/32"), ("::/0", "fd77::20/128"))
        for command in (
            f"ufw allow proto tcp from {anywhere} to any port 22"
            " comment 'holdfast: ssh until the tailnet is proved'",
            f"ufw allow proto udp from {anywhere} to any port 41641 comment 'holdfast: tailscaled'",
            f"ufw allow in on eth1 proto tcp from {neighbour} to any port 8444"
            " comment 'holdfast: probe of a host port'",
        )
    ]


def _without(state: FirewallState, *lines: str) -> FirewallState:
    def strip(live: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(line for line in live if line not in lines)

    return dataclasses.replace(
        state,
        v4=dataclasses.replace(state.v4, live=strip(state.v4.live)),
        v6=dataclasses.replace(state.v6, live=strip(state.v6.live)),
    )


@pytest.mark.parametrize(
    ("gone", "mend"),
    [
        ("-P INPUT DROP", LOAD),
        ("-P FORWARD DROP", LOAD),
        ("-A INPUT -j ufw-before-input", LOAD),
        ("-A INPUT -j ufw6-before-input", LOAD),
        ("-A ufw-user-input -p udp -m udp --dport 41641 -j ACCEPT", LOAD),
        ("-A FORWARD -j DOCKER-USER", DOCKER_USER_SCRIPT),
        ("-A FORWARD -j HOLDFAST-FORWARD", DOCKER_USER_SCRIPT),
        ("-A DOCKER-USER -i eth1 -j DROP", DOCKER_USER_SCRIPT),
        ("-A HOLDFAST-FORWARD -i eth1 -j DROP", DOCKER_USER_SCRIPT),
    ],
)
def test_what_is_gone_from_the_kernel_comes_back(rack: FirewallState, gone: str, mend: str) -> None:
    assert {gone} & {*rack.v4.live, *rack.v6.live}, "the recording has no such line"
    assert _plan(_without(rack, gone)) == [mend]
    # From one address family alone, too: the other's rules are no excuse.
    less = _without(rack, gone)
    for family, there in (("v4", rack.v4), ("v6", rack.v6)):
        if gone in there.live:
            alone = dataclasses.replace(rack, **{family: getattr(less, family)})
            assert _plan(alone) == [mend], family


def test_a_disabled_ufw_is_enabled_and_nothing_else(rack: FirewallState) -> None:
    options = {**rack.options, "ENABLED": "no"}
    assert _plan(dataclasses.replace(rack, options=options)) == ["ufw --force enable", LOAD]


@pytest.mark.parametrize(
    ("option", "value"),
    [("IPV6", "no"), ("DEFAULT_INPUT_POLICY", "ACCEPT"), ("MANAGE_BUILTINS", "yes")],
)
def test_an_edited_default_is_set_back(rack: FirewallState, option: str, value: str) -> None:
    commands = _plan(dataclasses.replace(rack, options={**rack.options, option: value}))
    assert option in commands[0]
    assert commands[1:] == [LOAD]


def test_docker_that_asks_its_own_rules_first_is_mended(rack: FirewallState) -> None:
    jump = "-A FORWARD -j DOCKER-USER"
    late = (*(line for line in rack.v4.live if line != jump), jump)
    state = dataclasses.replace(rack, v4=dataclasses.replace(rack.v4, live=late))
    assert _plan(state) == [DOCKER_USER_SCRIPT]


def test_tailscale_may_stand_before_docker_user(rack: FirewallState) -> None:
    live = ("-A FORWARD -j ts-forward", *rack.v4.live)
    state = dataclasses.replace(rack, v4=dataclasses.replace(rack.v4, live=live))
    assert _plan(state) == []


def test_a_kernel_without_ipv6_is_not_asked_for_it(rack: FirewallState) -> None:
    state = dataclasses.replace(
        rack, v6=dataclasses.replace(rack.v6, live=()), ipv6_in_kernel=False
    )
    assert _plan(state) == []


def test_a_changed_reason_is_written_and_the_rule_stays(rack: FirewallState) -> None:
    settings = _settings()
    renamed = settings.firewall.openings[0].model_copy(update={"reason": "another reason"})
    firewall = settings.firewall.model_copy(
        update={"openings": [renamed, settings.firewall.openings[1]]}
    )
    commands = _plan(rack, settings.model_copy(update={"firewall": firewall}))
    *allowed, load = commands
    assert len(allowed) == 2
    assert all(re.match("ufw allow in on eth1 .*another reason", each) for each in allowed)
    assert load == LOAD


def test_a_new_interface_is_external_at_once(rack: FirewallState) -> None:
    state = dataclasses.replace(rack, external=rack.external | {"usb0"})
    commands = _plan(state)
    *blocks, load, guard = commands
    assert len(blocks) == 2
    assert all("-i usb0 -j DROP" in command for command in blocks)
    assert (load, guard) == (LOAD, DOCKER_USER_SCRIPT)


MDNS = "-A ufw-before-input -p udp -d 224.0.0.251 --dport 5353 -j ACCEPT"
SSDP = "-A ufw6-before-input -p udp -d ff02::f --dport 1900 -j ACCEPT"


def test_what_ufw_lets_in_by_itself_is_closed(rack: FirewallState) -> None:
    state = dataclasses.replace(
        rack,
        v4=dataclasses.replace(rack.v4, lets=(*rack.v4.lets, MDNS)),
        v6=dataclasses.replace(rack.v6, lets=(*rack.v6.lets, SSDP)),
    )
    *edits, load = _plan(state)
    assert load == LOAD
    assert [re.findall(r"/etc/ufw/\w+\.rules$", edit)[0] for edit in edits] == [
        *("/etc/ufw/before.rules", "/etc/ufw/after.rules"),
        *("/etc/ufw/before6.rules", "/etc/ufw/after6.rules"),
    ]
    assert len(plan(_settings(), holes(_settings(), [], lan_ssh=None), state).foreign) >= 2


@pytest.mark.parametrize(
    "line",
    [
        "-A ufw-before-input -d 224.0.0.251/32 -p udp -m udp --dport 5353 -j ACCEPT",
        "-A ufw-before-forward -j ACCEPT",
        "-A ufw-after-input -s 10.0.0.0/8 -j ACCEPT",
    ],
)
def test_what_ufw_lets_in_by_itself_is_closed_in_the_kernel(rack: FirewallState, line: str) -> None:
    live = (*rack.v4.live, line)
    state = dataclasses.replace(rack, v4=dataclasses.replace(rack.v4, live=live))
    assert _plan(state) == [LOAD]


def test_the_lines_are_taken_out_of_ufws_files_and_no_others(tmp_path: Path) -> None:
    file = tmp_path / "before.rules"
    kept = "*filter\n-A ufw-before-input -i lo -j ACCEPT\nCOMMIT\n"
    file.write_text(kept.replace("COMMIT", f"{MDNS}\nCOMMIT"))
    for _ in range(2):
        command = firewall._without(str(file), [MDNS, "-A ufw-before-input -j ACCEPT"])
        subprocess.run(["sh", "-c", command], check=True)
        assert file.read_text() == kept
    assert file.stat().st_mode & 0o777 == 0o640


def test_a_service_that_is_to_be_found_says_so(rack: FirewallState) -> None:
    found = {"port": 5353, "protocol": "udp", "scope": "lan", "sources": ["10.77.0.0/24"]}
    service = {"name": "avahi", "unit": "avahi-daemon.service", "user": "avahi", "tier": "T4"}
    commands = _plan(rack, _settings(services=[{**service, "listens": [found]}]))
    assert commands == [
        "ufw allow proto udp from 10.77.0.0/24 to any port 5353 comment 'holdfast: avahi'",
        LOAD,
    ]


# Rules that ufw 0.36.2 wrote by itself, and the commands that removed them from a real host.
FOREIGN = {
    "allow tcp 80,443 0.0.0.0/0 any 0.0.0.0/0 Web%20App - in": (
        "ufw delete allow in from 0.0.0.0/0 to 0.0.0.0/0 app 'Web App'"
    ),
    "limit tcp 2222 0.0.0.0/0 any 0.0.0.0/0 in": (
        "ufw delete limit in proto tcp from 0.0.0.0/0 to 0.0.0.0/0 port 2222"
    ),
    "route:allow tcp 80 ::/0 any ::/0 in_eth1!out_docker0": (
        "ufw route delete allow in on eth1 out on docker0 proto tcp from ::/0 to ::/0 port 80"
    ),
    "deny any any 0.0.0.0/0 any 1.2.3.4 in": "ufw delete deny in from 1.2.3.4 to 0.0.0.0/0",
    "allow_log udp 99 0.0.0.0/0 any 0.0.0.0/0 in": (
        "ufw delete allow in log proto udp from 0.0.0.0/0 to 0.0.0.0/0 port 99"
    ),
    "allow any 53 ::/0 any ::/0 out": "ufw delete allow out from ::/0 to ::/0 port 53",
    "allow udp any 0.0.0.0/0 53 10.0.0.0/8 in": (
        "ufw delete allow in proto udp from 10.0.0.0/8 port 53 to 0.0.0.0/0"
    ),
    "reject tcp 5 10.77.0.10 any 0.0.0.0/0 in_eth1": (
        "ufw delete reject in on eth1 proto tcp from 0.0.0.0/0 to 10.77.0.10 port 5"
    ),
    "route:deny any any ::/0 any fd00::/8 in": "ufw route delete deny from fd00::/8 to ::/0",
    "allow tcp 22 ::/0 any ::/0 in comment=" + b"holdfast: x".hex(): (
        "ufw delete allow in proto tcp from ::/0 to ::/0 port 22"
    ),
}


@pytest.mark.parametrize("rule", FOREIGN)
def test_any_rule_can_be_removed(rack: FirewallState, rule: str) -> None:
    assert deletion(rule) == FOREIGN[rule]
    v4 = dataclasses.replace(rack.v4, rules=(*rack.v4.rules, rule))
    settings = _settings()
    wanted = holes(settings, declared_services(settings), lan_ssh=None)
    found = plan(settings, wanted, dataclasses.replace(rack, v4=v4))
    assert found.commands == [FOREIGN[rule], LOAD]
    assert len(found.foreign) == (
        "holdfast" not in bytes.fromhex(rule.partition("comment=")[2]).decode()
    )


class TestSshOnTheLan:
    """Open at first, closed once proved, and never opened again by a repair."""

    def test_it_is_open_on_a_host_that_was_never_ours(self) -> None:
        assert lan_ssh_wanted(_settings(), BARE) == UNTIL_TAILNET

    def test_it_stays_closed(self, rack: FirewallState) -> None:
        assert not lan_ssh_wanted(_settings(), rack)
        disabled = dataclasses.replace(rack, options={**rack.options, "ENABLED": "no"})
        assert not lan_ssh_wanted(_settings(), disabled)

    def test_it_stays_closed_whichever_family_shows_that_the_host_is_ours(
        self, rack: FirewallState
    ) -> None:
        for family in ("v4", "v6"):
            found = getattr(rack, family)
            alone = dataclasses.replace(rack, **{family: dataclasses.replace(found, rules=())})
            assert not lan_ssh_wanted(_settings(), alone), family

    def test_it_stays_open_until_it_is_withdrawn(self, rack: FirewallState) -> None:
        rule = Hole(4, 22, "tcp", "0.0.0.0/0", None, False, "ssh until the tailnet is proved").rule
        v4 = dataclasses.replace(rack.v4, rules=(*rack.v4.rules, rule))
        assert lan_ssh_wanted(_settings(), dataclasses.replace(rack, v4=v4))

    def test_it_stays_open_when_it_was_kept_until_now(self, rack: FirewallState) -> None:
        kept = _settings(ssh={"lan_access": "keep", "lan_sources": ["10.77.0.0/24"]}, tailnet=None)
        rules = [hole.rule for hole in holes(kept, declared_services(kept), lan_ssh=None)]
        v4 = dataclasses.replace(rack.v4, rules=(*rack.v4.rules, *rules))
        assert lan_ssh_wanted(_settings(), dataclasses.replace(rack, v4=v4)) == UNTIL_TAILNET

    def test_without_a_tailnet_there_is_no_other_way_in(self, rack: FirewallState) -> None:
        assert lan_ssh_wanted(_settings(tailnet=None), rack)

    def test_kept_by_the_inventory_it_is_a_service_like_others(self, rack: FirewallState) -> None:
        settings = _settings(ssh={"lan_access": "keep", "lan_sources": ["10.77.0.0/24"]})
        assert not lan_ssh_wanted(settings, rack)
        assert _plan(rack, settings) == [
            "ufw allow in on eth1 proto tcp from 10.77.0.0/24 to any port 22"
            " comment 'holdfast: ssh'",
            LOAD,
        ]

    def test_only_the_named_networks(self) -> None:
        settings = _settings(ssh={"lan_sources": ["10.77.0.0/24"]})
        found = [hole for hole in holes(settings, [], lan_ssh=UNTIL_TAILNET) if hole.port == 22]
        assert [(hole.family, hole.source) for hole in found] == [(4, "10.77.0.0/24")]


@pytest.mark.parametrize(
    ("links", "routes", "expected"),
    [
        (["lo", "enp5s0 device"], [], {"enp5s0"}),
        (["enp5s0 device", "vlan7 enp5s0"], [], {"enp5s0", "vlan7"}),
        (["a device", "b device", "bond0 a b", "br0 bond0"], [], {"a", "b", "bond0", "br0"}),
        (["docker0 veth1", "veth1", "br-1f2e veth2", "veth2", "virbr0 vnet1"], [], set()),
        (["br-lan eth0", "eth0 device"], [], {"eth0", "br-lan"}),
        (["ppp0"], ["default dev ppp0 scope link"], {"ppp0"}),
        (["eth0"], ["default via fe80::1 dev eth0 proto ra metric 1024"], {"eth0"}),
        (["tailscale0"], ["default dev tailscale0"], set()),
        (["wlp3s0 device"], [], {"wlp3s0"}),
    ],
)
def test_external_interfaces(links: list[str], routes: list[str], expected: set[str]) -> None:
    assert external_interfaces(links, routes) == expected


@dataclasses.dataclass(frozen=True)
class Packet:
    """The first packet of a connection through FORWARD; ``asked`` is the port before DNAT."""

    into: str
    out: str
    source: str = "10.77.0.20"
    asked: int | None = None
    state: str = "NEW"


def _verdict(rules: list[str], packet: Packet) -> str:
    for rule in rules:
        options: dict[str, str] = dict(re.findall(r"(?:^| )(--?[a-z]+) (\"[^\"]*\"|\S+)", rule))

        def matches(name: str, interface: str, options: dict[str, str] = options) -> bool:
            wanted = options.get(name, interface)
            return wanted == interface or (
                wanted.endswith("+") and interface.startswith(wanted[:-1])
            )

        network = ipaddress.ip_network(options.get("-s", f"{packet.source}"))
        states = options.get("--ctstate", packet.state).split(",")
        if packet.asked is not None and "DNAT" in states:
            states.append(packet.state)
        port = int(options.get("--ctorigdstport", packet.asked or 0))
        if (
            matches("-i", packet.into)
            and matches("-o", packet.out)
            and ipaddress.ip_address(packet.source) in network
            and packet.state in states
            and port == (packet.asked or 0)
        ):
            return options["-j"]
    return "RETURN"


# FIELD-NOTES' table, and what was probed on a real host since.
@pytest.mark.parametrize(
    ("packet", "verdict"),
    [
        (Packet("eth1", "docker0", asked=8080), "DROP"),
        (Packet("eth1", "docker0", asked=8443), "RETURN"),
        (Packet("eth1", "docker0", asked=8443, source="10.99.0.1"), "DROP"),
        (Packet("eth0", "docker0", asked=8443), "DROP"),
        (Packet("eth1", "docker0"), "DROP"),
        (Packet("eth1", "br-0123456789ab"), "DROP"),
        (Packet("eth1", "weird0"), "DROP"),
        (Packet("tailscale0", "docker0", asked=8080, source="100.64.0.1"), "RETURN"),
        (Packet("docker0", "eth1", source="172.17.0.2"), "RETURN"),
        (Packet("br-0123456789ab", "eth1", source="172.18.0.2"), "RETURN"),
        (Packet("docker0", "docker0", source="172.17.0.2"), "RETURN"),
        (Packet("virbr0", "eth1", source="192.168.122.2"), "RETURN"),
        (Packet("virbr0", "docker0", source="192.168.122.2"), "DROP"),
        (Packet("wg0", "br-0123456789ab", source="10.9.0.2"), "DROP"),
        # A network of compose's whose bridge has a name of its own.
        (Packet("wg0", "web0", source="10.9.0.2", asked=8080), "DROP"),
        (Packet("eth1", "web0", asked=8443), "RETURN"),
        (Packet("usb0", "web0", asked=8443), "DROP"),
        (Packet("tailscale0", "web0", asked=8080, source="100.64.0.1"), "RETURN"),
        (Packet("web0", "eth1", source="172.18.0.2"), "RETURN"),
        (Packet("web0", "web0", source="172.18.0.2"), "RETURN"),
        (Packet("eth1", "docker0", state="ESTABLISHED"), "RETURN"),
        (Packet("docker0", "eth1", source="172.17.0.2", state="INVALID"), "DROP"),
    ],
)
def test_the_way_of_a_packet(packet: Packet, verdict: str) -> None:
    settings = _settings()
    declared = holes(settings, declared_services(settings), lan_ssh=UNTIL_TAILNET)
    rules = container_rules("DOCKER-USER", declared, {"eth0", "eth1"}, 4)
    assert _verdict(rules, packet) == verdict


@pytest.mark.parametrize("family", [4, 6])
def test_containers_are_no_hole_in_ufw_and_programs_none_in_docker_user(family: Family) -> None:
    settings = _settings()
    declared = holes(settings, declared_services(settings), lan_ssh=None)
    rules = container_rules("DOCKER-USER", declared, {"eth1"}, family)
    assert [rule for rule in rules if "8444" in rule or "41641" in rule] == []
    assert len([rule for rule in rules if "--ctorigdstport 8443" in rule]) == 1
    assert not any("to any port 8443" in command for command in _plan(BARE))


def test_a_program_and_a_container_at_one_port_are_two_holes() -> None:
    opening = {"port": 9000, "sources": ["10.77.0.0/24"], "reason": "first"}
    openings = [opening, {**opening, "container": True, "reason": "second"}]
    settings = _settings(firewall={"openings": openings})
    found = [hole for hole in holes(settings, [], lan_ssh=None) if hole.port == 9000]
    assert [hole.container for hole in found] == [False, True]


def test_two_declarations_of_one_hole_are_one_rule() -> None:
    opening = {"port": 22, "sources": ["0.0.0.0/0"], "public": True, "reason": "twice"}
    settings = _settings(firewall={"openings": [opening]})
    found = [hole for hole in holes(settings, [], lan_ssh=UNTIL_TAILNET) if hole.family == 4]
    assert [hole.why for hole in found] == ["ssh until the tailnet is proved"]
