"""The watch over a membership: what it makes of recorded answers, and which door it opens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from facts.firewall import FirewallState
from holdfast import tailnet_membership
from holdfast.firewall import WITHOUT_TAILNET, lan_ssh_rules, lan_ssh_wanted
from holdfast.host_programs import firewall as firewall_program
from holdfast.host_programs import tailnet_membership as program
from holdfast.shipping import text_of
from tests.unit.test_firewall import BARE, _settings

RECORDED = Path(__file__).parent / "recorded"
MINUTE = 60.0
LAN = "10.77.0.0/24"

_TAILSCALE = """#!/bin/sh
case $1 in
status) [ -e {0}/says ] && cat {0}/says ;;
ping)
    for address; do :; done
    echo "$address" >> {0}/asked
    cat {0}/pong 2>/dev/null && exit 0
    echo "ping \\"$address\\" timed out"
    echo no reply >&2
    exit 1
    ;;
esac
"""
# What ufw 0.36 does to its files for the commands of this program, and no other.
_UFW = """#!{1} -I
import sys
from pathlib import Path

words = sys.argv[1:]
if Path("{0}/ufw-fails").exists():
    sys.exit("ERROR: problem running ufw-init")
named = dict(zip(words, words[1:]))
way = "in_" + named["on"] if "on" in named else "in"
six = ":" in named["from"]
path = Path("{0}/user6.rules" if six else "{0}/user.rules")
anywhere = "::/0" if six else "0.0.0.0/0"
target = f"{{named['proto']}} {{named['port']}} {{anywhere}}"
rule = f"### tuple ### allow {{target}} any {{named['from']}} {{way}}"
lines = [line for line in path.read_text().splitlines() if line.partition(" comment=")[0] != rule]
if "delete" not in words:
    lines.append(rule + " comment=" + named["comment"].encode().hex())
path.write_text("".join(line + "\\n" for line in lines))
"""


def recorded(name: str) -> dict[str, Any]:
    """What `tailscale status --json` said."""
    text = (RECORDED / f"{name}.txt").read_text().partition("-- preferences --")[0]
    said: dict[str, Any] = json.loads(text)
    return said


@dataclass
class Box:
    """A host with a tailscaled and a ufw; its clock is the test's."""

    folder: Path
    config: dict[str, Any]
    now: float = 0.0
    seen: program.Seen | None = None
    alerts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, text in {
            "tailscale": _TAILSCALE.format(self.folder),
            "ufw": _UFW.format(self.folder, sys.executable),
            "systemctl": f'#!/bin/sh\necho "$@" >> {self.folder}/systemctl-calls\n',
        }.items():
            (self.folder / name).write_text(text)
            (self.folder / name).chmod(0o755)
        for path in program.RULES:
            Path(path).touch()
        self.says(recorded("facts/TailnetNode"))

    def says(self, answer: dict[str, Any] | str | None) -> None:
        """Have tailscaled say this; None: it does not answer."""
        says = self.folder / "says"
        says.unlink(missing_ok=True)
        if answer is not None:
            says.write_text(answer if isinstance(answer, str) else json.dumps(answer))

    def looks(self, minutes: int, every: int = 1) -> list[str]:
        """Look once in so many minutes; what was alerted of meanwhile."""
        alerts: list[str] = []
        for _ in range(0, minutes, every):
            self.now += every * MINUTE
            self.seen, new = program.look(self.config, self.seen, self.now)
            alerts += new
        return alerts

    @property
    def rules(self) -> list[str]:
        """The rules of ufw, those for IPv6 last."""
        return [
            line.removeprefix(program.TUPLE)
            for path in program.RULES
            for line in Path(path).read_text().splitlines()
        ]


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Box:
    monkeypatch.setattr(program, "RULES", (f"{tmp_path}/user.rules", f"{tmp_path}/user6.rules"))
    path = f"{tmp_path}:{os.environ['PATH']}"
    monkeypatch.setattr(program, "ENVIRONMENT", {"PATH": path, "LC_ALL": "C.UTF-8"})
    return Box(tmp_path, configured())


def configured(**ssh: Any) -> dict[str, Any]:
    """The configuration of a host whose SSH is like this."""
    settings = _settings(ssh={"lan_sources": [LAN, "fd77::/64"]} | ssh)
    config: dict[str, Any] = json.loads(tailnet_membership.config(settings))
    return config


def ending(after: timedelta, said: dict[str, Any] | None = None) -> dict[str, Any]:
    """A member whose node key ends that much from now."""
    said = said or recorded("facts/TailnetNode")
    end = (datetime.now(UTC) + after).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {**said, "Self": {**said["Self"], "KeyExpiry": end}}


LOSSES = {
    "expired": "its node key has expired",
    "logged-out": "tailscaled is in NeedsLogin",
    "no-state": "tailscaled is in NoState: State store failed to initialize",
    "refused": "tailscaled is in NeedsLogin: Tailscale is starting",
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_lost_membership_opens_ssh_on_the_lan_after_thirty_minutes(box: Box, name: str) -> None:
    assert box.looks(60) == []
    box.says(recorded(f"tailnet-{name}"))
    # The end of a key is reported at once.
    early = box.looks(30)
    assert [sentence[:33] for sentence in early] == (
        ["the node key of this host ended o"] if name == "expired" else []
    )
    assert box.rules == []
    (alert,) = box.looks(60)
    assert not (box.folder / "systemctl-calls").exists()
    assert alert.startswith(f"not a member of the tailnet for 30 minutes ({LOSSES[name]}")
    assert alert.endswith(": SSH is open on the LAN")
    assert [rule.partition(" comment=")[0] for rule in box.rules] == [
        f"allow tcp 22 0.0.0.0/0 any {LAN} in",
        "allow tcp 22 ::/0 any fd77::/64 in",
    ]


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        (None, "tailscaled does not answer"),
        ("failed to connect", "tailscaled does not answer"),
        ("[]", "tailscaled does not answer"),
        ({}, "tailscaled is in no state"),
        ({"BackendState": "Stopped", "Self": {"Online": True}}, "tailscaled is in Stopped"),
        (
            {"BackendState": "Starting", "Health": ["no\nroute"]},
            "tailscaled is in Starting: no route",
        ),
        ({"BackendState": "Running", "Self": None}, "its control server does not see it online"),
        (
            {"BackendState": "Running", "Self": {"Online": False}},
            "its control server does not see it online",
        ),
        ({"BackendState": "Running", "Self": {"Online": True}}, None),
    ],
)
def test_why_a_host_is_no_member(box: Box, says: Any, reason: str | None) -> None:
    box.says(says)
    assert program.absence(program.status()) == reason


def with_peers(*peers: dict[str, Any]) -> dict[str, Any]:
    """A member that knows these peers, each with an address of its own."""
    known = {
        f"nodekey:{number}": {"Online": True, "OS": "linux", "TailscaleIPs": [f"100.64.0.{number}"]}
        | peer
        for number, peer in enumerate(peers, 2)
    }
    return {**recorded("facts/TailnetNode"), "Peer": known}


def asked(box: Box) -> list[str]:
    """The peers that were asked."""
    file = box.folder / "asked"
    return file.read_text().split() if file.exists() else []


def test_a_host_that_no_peer_answers_is_no_member_though_its_status_is_a_members(box: Box) -> None:
    # As it is at a headscale that has deleted the node.
    box.says(with_peers({}, {}))
    (box.folder / "pong").write_text("pong\n")
    assert box.looks(60) == []
    # One peer that answers is enough, three times in half an hour.
    assert asked(box) == ["100.64.0.2"] * 6
    (box.folder / "pong").unlink()
    (alert,) = box.looks(60)
    assert "(no online peer answers it): SSH is open on the LAN" in alert
    # Its own status is wrong until it asks the control server, and a deploy believes that status.
    assert (box.folder / "systemctl-calls").read_text() == (
        "--no-block restart tailscaled.service\n"
    )
    (box.folder / "pong").write_text("pong\n")
    assert box.looks(40) == []
    assert box.rules == []


@pytest.mark.parametrize(
    "peers",
    [[], [{"Online": False}], [{"OS": "iOS"}, {"OS": "android"}], [{"TailscaleIPs": None}]],
)
def test_a_host_without_a_peer_to_ask_is_judged_by_its_status(box: Box, peers: list[Any]) -> None:
    box.says(with_peers(*peers))
    assert box.looks(60) == []
    assert asked(box) == []


def test_a_peer_that_cannot_be_asked_says_nothing(box: Box) -> None:
    box.says(with_peers({}))
    script = (box.folder / "tailscale").read_text().replace("timed out", "has no such ping")
    (box.folder / "tailscale").write_text(script)
    assert box.looks(60) == []
    assert asked(box)


def test_a_member_is_left_alone(box: Box) -> None:
    assert box.looks(24 * 60, every=10) == []
    assert box.rules == []


def test_a_membership_that_comes_and_goes_opens_nothing(box: Box) -> None:
    for _ in range(4):
        box.says(None)
        assert box.looks(29) == []
        box.says(recorded("facts/TailnetNode"))
        assert box.looks(1) == []
    assert box.rules == []


def test_the_door_is_shut_when_membership_has_lasted(box: Box) -> None:
    box.says(None)
    assert len(box.looks(60)) == 1
    box.says(recorded("facts/TailnetNode"))
    assert box.looks(30) == []
    assert len(box.rules) == 2
    box.says(None)
    box.looks(5)
    box.says(recorded("facts/TailnetNode"))
    # It has not lasted: the half hour begins again.
    box.looks(30)
    assert len(box.rules) == 2
    assert box.looks(1) == []
    assert box.rules == []


def test_it_is_open_after_a_boot_until_membership_has_lasted(box: Box) -> None:
    box.says(None)
    box.looks(60)
    box.seen, box.now = None, 0
    box.says(recorded("facts/TailnetNode"))
    box.looks(30)
    assert len(box.rules) == 2
    box.looks(1)
    assert box.rules == []


def test_each_loss_is_alerted_of_once_and_each_has_its_own(box: Box) -> None:
    for _ in range(2):
        box.says(None)
        assert len(box.looks(24 * 60, every=10)) == 1
        box.says(recorded("facts/TailnetNode"))
        assert box.looks(60) == []


def test_a_rule_that_was_taken_away_is_put_back_with_an_alert(box: Box) -> None:
    box.says(None)
    box.looks(60)
    Path(program.RULES[0]).write_text("")
    assert len(box.looks(2)) == 1
    assert len(box.rules) == 2


@pytest.mark.parametrize("ssh", [{"lan_return": False}, {"lan_access": "keep"}])
def test_nothing_is_opened_where_the_inventory_says_so_but_there_is_an_alert(
    box: Box, ssh: dict[str, Any]
) -> None:
    box.config = configured(**ssh)
    box.says(None)
    assert box.looks(24 * 60, every=10) == [
        "not a member of the tailnet for 30 minutes (tailscaled does not answer)"
    ]
    assert box.rules == []


def test_a_rule_of_others_is_neither_changed_nor_taken_away(box: Box) -> None:
    theirs = f"allow tcp 22 0.0.0.0/0 any {LAN} in comment={b'by hand'.hex()}"
    Path(program.RULES[0]).write_text(f"{program.TUPLE}{theirs}\n")
    box.says(None)
    assert len(box.looks(60)) == 1
    assert box.rules[0] == theirs
    assert len(box.rules) == 2
    box.says(recorded("facts/TailnetNode"))
    box.looks(60)
    assert box.rules == [theirs]


def test_what_the_inventory_opens_anyway_is_not_among_the_rules() -> None:
    opening = {"port": 22, "sources": [LAN], "reason": "a jump host"}
    settings = _settings(ssh={"lan_sources": [LAN]}, firewall={"openings": [opening]})
    assert json.loads(tailnet_membership.config(settings))["rules"] == []


def test_a_ufw_that_fails_is_alerted_of_until_it_does_not(box: Box) -> None:
    (box.folder / "ufw-fails").touch()
    box.says(None)
    alerts = box.looks(33)
    assert len(alerts) == 3
    assert "SSH on the LAN cannot be changed: ufw allow proto tcp from" in alerts[0]
    assert "problem running ufw-init" in alerts[0]
    (box.folder / "ufw-fails").unlink()
    assert box.looks(1)[0].endswith("SSH is open on the LAN")


def test_both_figures_are_settings() -> None:
    settings = _settings(tailnet={"lost_minutes": 5, "key_warning_days": 30})
    config = json.loads(tailnet_membership.config(settings))
    assert (config["lost_minutes"], config["key_warning_days"]) == (5, 30)
    assert (configured()["lost_minutes"], configured()["key_warning_days"]) == (30, 14)


@pytest.mark.parametrize(
    ("after", "alerts"),
    [
        (timedelta(days=15), 0),
        (timedelta(days=13, hours=23), 3),
        (timedelta(hours=1), 3),
        (timedelta(hours=-1), 3),
    ],
)
def test_the_end_of_a_key_is_reported_once_a_day_from_two_weeks_before(
    box: Box, after: timedelta, alerts: int
) -> None:
    box.says(ending(after))
    said = box.looks(3 * 24 * 60, every=60)
    assert len(said) == alerts
    verb = "ends" if after > timedelta() else "ended"
    assert all(f"the node key of this host {verb} on 2" in sentence for sentence in said)


@pytest.mark.parametrize("text", [None, "", "soon", "0001-01-01T00:00:00Z", "2026-01-01", 17])
def test_a_key_that_does_not_end_is_not_reported(box: Box, text: Any) -> None:
    said = recorded("facts/TailnetNode")
    box.says({**said, "Self": {**said["Self"], "KeyExpiry": text}})
    assert box.looks(2) == []


def test_a_deploy_leaves_the_door_to_the_host_and_adds_nothing() -> None:
    settings = _settings(ssh={"lan_sources": [LAN]})
    (rule,) = [each["rule"] for each in json.loads(tailnet_membership.config(settings))["rules"]]
    state = _with(BARE, rule)
    assert lan_ssh_rules(state, WITHOUT_TAILNET) == [rule]
    assert lan_ssh_wanted(settings, state) == WITHOUT_TAILNET
    forbidden = _settings(ssh={"lan_sources": [LAN], "lan_return": False})
    assert lan_ssh_wanted(forbidden, state) is None


def _with(state: FirewallState, rule: str) -> FirewallState:
    return replace(state, v4=replace(state.v4, rules=(*state.v4.rules, rule)))


def test_ssh_that_returned_to_the_lan_is_no_change_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = f"-A ufw-user-input -s {LAN} -p tcp -m tcp --dport 22 -j ACCEPT"
    config = configured(lan_sources=[LAN])
    (tmp_path / "membership.json").write_text(json.dumps(config))
    monkeypatch.setattr(firewall_program, "UFW", str(tmp_path))
    monkeypatch.setattr(firewall_program, "CONF", f"{tmp_path}/ufw.conf")
    assert tailnet_membership.CONFIG == firewall_program.MEMBERSHIP
    monkeypatch.setattr(firewall_program, "MEMBERSHIP", f"{tmp_path}/membership.json")
    monkeypatch.setattr(firewall_program, "_families", lambda: ["iptables"])
    in_force = {"filter": ["-P INPUT DROP", live], "mangle": []}
    monkeypatch.setattr(firewall_program, "_list", lambda _, table: in_force[table])
    # The same rule without the comment that this watch gives it is another's.
    assert live in firewall_program.listing()
    rule = config["rules"][0]["rule"]
    (tmp_path / "user.rules").write_text(f"{program.TUPLE}{rule}\n{live}\n")
    assert live not in firewall_program.listing()
    assert "-P INPUT DROP" in firewall_program.listing()
    for broken in ("", "{}", "half of"):
        (tmp_path / "membership.json").write_text(broken)
        assert live in firewall_program.listing()


def test_as_a_host_runs_it(tmp_path: Path) -> None:
    # The text that is placed, with Python's own library alone; the files are this test's.
    text = text_of(program)
    for path, own in {
        program.CONFIG: "config.json",
        program.STATE: "state.json",
        "/usr/sbin:/usr/bin": f"{tmp_path}:/usr/sbin:/usr/bin",
    }.items():
        assert path in text
        text = text.replace(path, own if ":" in own else f"{tmp_path}/{own}")
    (tmp_path / "program").write_text(text)
    (tmp_path / "config.json").write_text(json.dumps(configured()))
    said = json.dumps(ending(timedelta(days=1)))
    (tmp_path / "tailscale").write_text(f"#!/bin/sh\ncat <<'END'\n{said}\nEND\n")
    (tmp_path / "tailscale").chmod(0o755)

    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", f"{tmp_path}/program"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    first = run()
    assert first.returncode == 1
    assert first.stderr.startswith("<3>the node key of this host ends on ")
    # What it remembers is in its file.
    second = run()
    assert (second.returncode, second.stderr) == (0, "")
    (tmp_path / "state.json").write_text("half of")
    assert run().returncode == 1
