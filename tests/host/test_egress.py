"""The addresses that each service may reach: the kernel's rules, tried as their users."""

from __future__ import annotations

import json
import re
import shlex

import pytest
from testinfra.host import Host

from facts import sections
from holdfast import egress
from holdfast.host_programs.egress import LOG_PREFIX, TABLE
from holdfast.settings import HostSettings

Answers = dict[str, list[str]]

_LISTING = f"nft --stateless --terse list table inet {TABLE}"
_TRY = """
import errno, json, socket, sys
said = {}
for protocol, address, port in json.loads(sys.argv[1]):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    try:
        with socket.socket(family, kind) as call:
            call.settimeout(5)
            call.connect((address, port))
            call.send(b"holdfast")
            if protocol == "udp" and sys.argv[2:]:
                # From behind a bridge a datagram is sent, and its refusal comes later.
                call.recv(64)
        said[f"{protocol} {address} {port}"] = "sent"
    except OSError as error:
        said[f"{protocol} {address} {port}"] = errno.errorcode.get(error.errno or 0, str(error))
print(json.dumps(said))
"""
_BEHIND = """
import ipaddress, json, subprocess, sys
# As a container: a network of its own with one end of a cable, the other end in the bridge. Docker
# gives out addresses from the low end.
bridge, subnets, calls, tries = sys.argv[1], *map(json.loads, sys.argv[2:4]), sys.argv[4]
run = lambda *words: subprocess.run(words, check=True, capture_output=True, text=True).stdout
inside = ("ip", "netns", "exec", "holdfast-test")
try:
    run("ip", "netns", "add", "holdfast-test")
    cable = ("type", "veth", "peer", "eth0", "netns", "holdfast-test")
    run("ip", "link", "add", "holdfast-test", *cable)
    run("ip", "link", "set", "holdfast-test", "master", bridge, "up")
    run(*inside, "ip", "link", "set", "eth0", "up")
    for subnet, gateway in subnets:
        network = ipaddress.ip_network(subnet)
        own = f"{network[-2]}/{network.prefixlen}"
        # Docker does not tell the one of IPv6 that it has chosen.
        gateway = gateway or str(network[1])
        run(*inside, "ip", "address", "add", own, "dev", "eth0", *(["nodad"] if ":" in own else []))
        run(*inside, "ip", "route", "add", "default", "via", gateway)
        calls += [("tcp", gateway, 22), ("udp", gateway, 53)]
    print(run(*inside, sys.executable, "-c", tries, json.dumps(calls), "behind"))
finally:
    subprocess.run(["ip", "link", "delete", "holdfast-test"], capture_output=True)
    subprocess.run(["ip", "netns", "delete", "holdfast-test"], capture_output=True)
"""
REFUSED = {"ECONNREFUSED", "EPERM"}
REFUSED_BEHIND = {"ECONNREFUSED", "EHOSTUNREACH", "EACCES"}
"""The answers to a refused container: to TCP, to IPv4 datagrams, and to IPv6 datagrams."""
NO_WAY = {"ENETUNREACH", "EHOSTUNREACH", "EADDRNOTAVAIL", "EAFNOSUPPORT"}
"""Answers of a machine without a route, or without IPv6; it sends nothing either."""


def _calls(settings: HostSettings) -> list[tuple[str, str, int]]:
    """Calls that T1 users may not make, to addresses for documentation, which no machine has."""
    return [
        *(("tcp", address, 443) for address in ("192.0.2.1", "2001:db8::1")),
        *(("udp", address, 53) for address in ("192.0.2.1", "2001:db8::1", "127.0.0.1", "::1")),
        ("udp", "127.0.0.53", 53),
        ("tcp", "127.0.0.1", settings.ssh.port),
    ]


@pytest.fixture(scope="module")
def sovereign(settings: HostSettings) -> list[egress.Wall]:
    walls = [wall for wall in egress.walls(settings) if wall.tier == "T1"]
    if not walls:
        pytest.skip("this host has no T1 service with a user of its own")
    return walls


@pytest.fixture(scope="module")
def found(host: Host, settings: HostSettings) -> Answers:
    """All facts for the tests that change nothing, in one command."""
    users = " ".join(shlex.quote(wall.user) for wall in egress.walls(settings))
    units = f"{egress.SERVICE} {egress.TIMER}"
    answer = "systemctl show --property=Id,Before,UnitFileState,ActiveState,Result"
    questions = {
        "table": _LISTING,
        "file": f"cat {egress.RULES}",
        # The same file, loaded into a network namespace of its own and listed by nft.
        "as written": f"unshare --net sh -c 'nft --file {egress.RULES} && {_LISTING}'",
        "ids": f"for user in {users}; do echo $user $(id --user $user); done",
        "units": f"{answer} {units}",
        "socket": "stat --format=%a /run/tailscale",
    }
    done = host.run(f"PATH=$PATH:/usr/sbin:/sbin; {sections.probe(questions)}")
    return sections.answers(done.stdout.splitlines())


_REST = (
    f"systemctl start {egress.WATCH};"
    f" if systemctl --quiet is-active {egress.TIMER}; then"
    f" systemctl stop {egress.TIMER}; trap 'systemctl start {egress.TIMER}' EXIT; fi;"
    " since=$(date +%s)"
)


@pytest.fixture(scope="module")
def tried(host: Host, settings: HostSettings, sovereign: list[egress.Wall]) -> Answers:
    """The attempts of every T1 user, and the reports of the watch about them.

    The timer is stopped meanwhile, and the watch is run by hand, so that no alert remains. Earlier
    reports are flushed first.
    """
    calls = shlex.quote(json.dumps(_calls(settings)))
    attempts = {
        wall.user: f"setpriv --reuid={wall.user} --regid=$(id --group {wall.user}) --clear-groups"
        f" python3 -c {shlex.quote(_TRY)} {calls}"
        for wall in sovereign
    }
    questions = {
        **attempts,
        "by hand": f"{egress.PROGRAM} watch 2>&1; echo $?",
        "by its unit": f"systemctl start {egress.WATCH}; echo $?",
        "log": f"journalctl --dmesg --quiet --since=@$since --grep='{LOG_PREFIX} ' --output=cat",
    }
    done = host.run(f"{_REST}; {sections.probe(questions)}")
    return sections.answers(done.stdout.splitlines())


_ASIDE = {"by hand", "by its unit", "log"}
"""The output of `behind`, and the networks by name."""


@pytest.fixture(scope="module")
def behind(host: Host, settings: HostSettings) -> Answers:
    """The attempts from behind every T1 network, in the same form as `tried`."""
    walls = [wall for wall in egress.bridges(settings) if wall.tier == "T1"]
    if not walls:
        pytest.skip("this host has no T1 network")
    calls = [
        *(("tcp", address, 443) for address in ("192.0.2.1", "2001:db8::1")),
        *(("udp", address, 53) for address in ("192.0.2.1", "2001:db8::1")),
    ]
    names = " ".join(wall.name for wall in walls)
    told = json.loads(host.check_output(f"docker network inspect {names}"))
    questions = {}
    for wall, network in zip(walls, told, strict=True):
        subnets = [(each["Subnet"], each.get("Gateway")) for each in network["IPAM"]["Config"]]
        words = (wall.bridge, json.dumps(subnets), json.dumps(calls), _TRY)
        questions[wall.name] = f"python3 -c {shlex.quote(_BEHIND)} {shlex.join(words)}"
    questions |= {
        "by hand": f"{egress.PROGRAM} watch 2>&1; echo $?",
        # A container that has just started may also have tried something; its alert exists by now.
        "by its unit": f"systemctl start {egress.WATCH}; systemctl reset-failed {egress.WATCH}",
        "log": f"journalctl --dmesg --quiet --since=@$since --grep='{LOG_PREFIX} ' --output=cat",
    }
    done = host.run(f"PATH=$PATH:/usr/sbin:/sbin; {_REST}; {sections.probe(questions)}")
    return sections.answers(done.stdout.splitlines())


def test_the_kernel_has_the_declared_rules_untouched(
    found: Answers, settings: HostSettings
) -> None:
    assert found["file"] == egress.rules(settings).splitlines()
    assert found["as written"]
    added = [line.strip() for line in found["table"] if line not in found["as written"]]
    assert [line for line in found["table"] if line.strip() not in added] == found["as written"]
    leads = [line for line in added if "goto from-" in line]
    *known, unknown = [line for line in added if line not in leads]
    # Ids above those of accounts may call nothing, except those that an account has or was lent.
    assert unknown == "meta skuid 65536-4294967294 goto deny-unknown_users"
    assert [re.sub(r"skuid .* accept", "accept", line) for line in known] in ([], ["meta accept"])
    held = [
        (re.findall(r"\d+", line.partition(" goto ")[0])[0], line.rpartition(" goto ")[2])
        for line in leads
    ]
    ids = dict(line.split() for line in found["ids"])
    assert held == [(ids[wall.user], wall.chain) for wall in egress.walls(settings)]


def test_no_t1_user_can_send_anything_out(
    tried: Answers, settings: HostSettings, sovereign: list[egress.Wall]
) -> None:
    for wall in sovereign:
        outcomes = json.loads(tried[wall.user][0])
        assert len(outcomes) == len(_calls(settings))
        assert set(outcomes.values()) <= REFUSED | NO_WAY, (wall.user, outcomes)
        # Every machine has loopback.
        assert outcomes["udp 127.0.0.1 53"] == "EPERM"


def test_nothing_behind_a_t1_networks_bridge_can_send_anything_out(behind: Answers) -> None:
    for name, lines in behind.items():
        if name in _ASIDE:
            continue
        outcomes = json.loads(lines[0])
        if outcomes["tcp 2001:db8::1 443"] in NO_WAY:
            # The kernel limits how often it reports that there is no route.
            del outcomes["udp 2001:db8::1 53"]
        assert set(outcomes.values()) <= REFUSED_BEHIND | NO_WAY, (name, outcomes)
        # Every machine has a route to this address, so the call was refused and not lost.
        assert outcomes["tcp 192.0.2.1 443"] == "ECONNREFUSED", (name, outcomes)


def test_attempts_behind_a_bridge_are_reported_by_network(behind: Answers) -> None:
    *told, status = behind["by hand"]
    assert status == "1", told
    for name in behind.keys() - _ASIDE:
        sentence = rf"(?m)^{name} was refused (\d+) attempts"
        (count,) = re.findall(sentence, "\n".join(told))
        assert int(count) >= 4


def test_the_journal_has_the_calls_of_containers(behind: Answers) -> None:
    for name in behind.keys() - _ASIDE:
        lines = [line for line in behind["log"] if f"{LOG_PREFIX} {name}:" in line]
        assert any("IN=br-" in line and "DST=" in line for line in lines), behind["log"]


def test_clouds_have_the_addresses_of_their_names(host: Host, settings: HostSettings) -> None:
    walls = [wall for wall in [*egress.walls(settings), *egress.bridges(settings)] if wall.clouds]
    if not walls:
        pytest.skip("no service of this host may call a cloud")
    timer = host.check_output(
        f"systemctl show --property=ActiveState --value {egress.RESOLVE_TIMER}"
    )
    assert timer == "active"
    told = host.check_output(f"PATH=$PATH:/usr/sbin nft --json list sets table inet {TABLE}")
    sets = {
        each["set"]["name"]: each["set"].get("elem", [])
        for each in json.loads(told)["nftables"]
        if "set" in each
    }
    for wall in walls:
        elements = sets[f"clouds-ip-{wall.name}"] + sets[f"clouds-ip6-{wall.name}"]
        ports = {each["elem"]["val"]["concat"][1] for each in elements}
        assert ports == {cloud.port for cloud in wall.clouds}, "a name does not resolve"


def test_each_attempt_is_reported_once_by_name(
    tried: Answers, sovereign: list[egress.Wall]
) -> None:
    *told, status = tried["by hand"]
    assert status == "1", told
    for wall in sovereign:
        refused = [each for each in json.loads(tried[wall.user][0]).values() if each in REFUSED]
        sentence = rf"(?m)^{wall.name} was refused (\d+) attempts"
        (count,) = re.findall(sentence, "\n".join(told))
        assert int(count) >= len(refused)
        assert any(f"'{LOG_PREFIX} {wall.name}:'" in line for line in told)
    # The watch would have left an alert.
    assert tried["by its unit"] == ["0"]


def test_the_journal_has_the_calls_of_each_user(
    tried: Answers, sovereign: list[egress.Wall]
) -> None:
    for wall in sovereign:
        lines = [line for line in tried["log"] if f"{LOG_PREFIX} {wall.name}:" in line]
        assert any("DST=" in line and "UID=" in line for line in lines), tried["log"]


def test_the_rules_come_before_the_network_at_boot_and_are_watched(found: Answers) -> None:
    units = {}
    for block in "\n".join(found["units"]).split("\n\n"):
        values = dict(line.partition("=")[::2] for line in block.splitlines())
        units[values["Id"]] = values
    for unit in units.values():
        assert (unit["UnitFileState"], unit["ActiveState"]) == ("enabled", "active"), unit
    assert units[egress.SERVICE]["Result"] == "success"
    assert "network-pre.target" in units[egress.SERVICE]["Before"].split()


def test_only_root_can_make_tailscale_call(found: Answers, settings: HostSettings) -> None:
    if settings.tailnet is None:
        pytest.skip("this host has no tailnet")
    assert found["socket"] == ["700"]


def test_no_key_makes_the_kernel_ask_a_resolver(host: Host) -> None:
    if not host.exists("keyctl"):
        pytest.skip("this host has no keyutils, so the kernel can start no program")
    # Otherwise /etc/hosts answers it.
    asked = host.run("keyctl request2 dns_resolver localhost '' @s")
    assert (asked.rc, asked.stdout) == (1, "")


def test_systemd_restricts_units_that_are_only_named(host: Host, settings: HostSettings) -> None:
    drop_ins = egress.drop_ins(settings)
    if not drop_ins:
        pytest.skip("this host has no T1 service with a unit that the inventory only names")
    for unit in drop_ins:
        shown = "LoadState,NeedDaemonReload,DropInPaths,IPAddressDeny"
        values = dict(
            line.partition("=")[::2]
            for line in host.check_output(f"systemctl show --property={shown} {unit}").splitlines()
        )
        if values["LoadState"] == "loaded":
            assert values["NeedDaemonReload"] == "no"
            assert egress.drop_in_path(unit) in values["DropInPaths"].split()
            assert {"0.0.0.0/0", "::/0"} <= set(values["IPAddressDeny"].split())


def test_no_program_of_a_t1_user_sees_the_sockets_of_others(
    host: Host, sovereign: list[egress.Wall]
) -> None:
    users = " ".join(wall.user for wall in sovereign)
    # A unit of T1 has a /run of its own; a program that is started elsewhere sees the machine's.
    seen = host.check_output(
        f"for user in {users}; do for pid in $(pgrep --uid $user); do"
        " if [ /proc/$pid/root/run -ef /run ]; then ps -o user=,pid=,args= -p $pid; fi; done; done"
    )
    assert seen == ""
