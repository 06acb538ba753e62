"""What each service may reach: the rules in the kernel, tried as the users they hold."""

from __future__ import annotations

import json
import re
import shlex

import pytest
from testinfra.host import Host

from facts import sections
from holdfast import egress
from holdfast.egress_program import LOG_PREFIX, TABLE
from holdfast.settings import HostSettings

Answers = dict[str, list[str]]

_LISTING = f"nft --stateless list table inet {TABLE}"
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
        said[f"{protocol} {address} {port}"] = "sent"
    except OSError as error:
        said[f"{protocol} {address} {port}"] = errno.errorcode.get(error.errno or 0, str(error))
print(json.dumps(said))
"""
REFUSED = {"ECONNREFUSED", "EPERM"}
NO_WAY = {"ENETUNREACH", "EHOSTUNREACH", "EADDRNOTAVAIL", "EAFNOSUPPORT"}
"""A machine without a route there, or without IPv6, sends nothing either."""


def _calls(settings: HostSettings) -> list[tuple[str, str, int]]:
    """What no T1 user may do. The addresses are documentation's: nobody has them."""
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
    """What is asked of the host without touching anything, in one command."""
    users = " ".join(shlex.quote(wall.user) for wall in egress.walls(settings))
    units = f"{egress.SERVICE} {egress.TIMER}"
    answer = "systemctl show --property=Id,Before,UnitFileState,ActiveState,Result"
    questions = {
        "table": _LISTING,
        "file": f"cat {egress.RULES}",
        # The same file in a network of its own, as nft would list it had nobody touched it.
        "as written": f"unshare --net sh -c 'nft --file {egress.RULES} && {_LISTING}'",
        "ids": f"for user in {users}; do echo $user $(id --user $user); done",
        "units": f"{answer} {units}",
        "socket": "stat --format=%a /run/tailscale",
    }
    done = host.run(f"PATH=$PATH:/usr/sbin:/sbin; {sections.probe(questions)}")
    return sections.answers(done.stdout.splitlines())


@pytest.fixture(scope="module")
def tried(host: Host, settings: HostSettings, sovereign: list[egress.Wall]) -> Answers:
    """Every T1 user's attempts, and what the watch has to tell of them.

    The timer rests meanwhile and the watch is run by hand, so that no alert is left of it. What it
    had to tell before is told first.
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
    rest = (
        f"systemctl start {egress.WATCH};"
        f" if systemctl --quiet is-active {egress.TIMER}; then"
        f" systemctl stop {egress.TIMER}; trap 'systemctl start {egress.TIMER}' EXIT; fi;"
        " since=$(date +%s)"
    )
    done = host.run(f"{rest}; {sections.probe(questions)}")
    return sections.answers(done.stdout.splitlines())


def test_the_kernel_has_the_declared_rules_untouched(
    found: Answers, settings: HostSettings
) -> None:
    assert found["file"] == egress.rules(settings).splitlines()
    leads = [line.strip() for line in found["table"] if "skuid" in line and "goto" in line]
    assert found["as written"]
    assert [line for line in found["table"] if line.strip() not in leads] == found["as written"]
    held = [
        (re.findall(r"\d+", line.partition(" goto ")[0])[0], line.rpartition(" goto ")[2])
        for line in leads
    ]
    ids = dict(line.split() for line in found["ids"])
    assert held == [(ids[wall.user], wall.chain) for wall in egress.walls(settings)]


def test_no_t1_user_gets_anything_out(
    tried: Answers, settings: HostSettings, sovereign: list[egress.Wall]
) -> None:
    for wall in sovereign:
        outcomes = json.loads(tried[wall.user][0])
        assert len(outcomes) == len(_calls(settings))
        assert set(outcomes.values()) <= REFUSED | NO_WAY, (wall.user, outcomes)
        # Loopback is on every machine.
        assert outcomes["udp 127.0.0.1 53"] == "EPERM"


def test_each_attempt_is_told_of_by_name_and_once(
    tried: Answers, sovereign: list[egress.Wall]
) -> None:
    *told, status = tried["by hand"]
    assert status == "1", told
    for wall in sovereign:
        refused = [each for each in json.loads(tried[wall.user][0]).values() if each in REFUSED]
        sentence = rf"(?m)^{wall.name} was kept from leaving (\d+) times"
        (count,) = re.findall(sentence, "\n".join(told))
        assert int(count) >= len(refused)
        assert any(f"'{LOG_PREFIX} {wall.name}:'" in line for line in told)
    # Which would have left an alert.
    assert tried["by its unit"] == ["0"]


def test_the_journal_holds_whom_each_called(tried: Answers, sovereign: list[egress.Wall]) -> None:
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


def test_nobody_but_root_has_tailscale_call_for_them(
    found: Answers, settings: HostSettings
) -> None:
    if settings.tailnet is None:
        pytest.skip("this host has no tailnet")
    assert found["socket"] == ["700"]


def test_systemd_holds_units_of_others_to_their_tier(host: Host, settings: HostSettings) -> None:
    drop_ins = egress.drop_ins(settings)
    if not drop_ins:
        pytest.skip("this host has no T1 service whose unit is its owner's")
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
