"""The rules in a kernel: who sends what, and what arrives on the other side. Needs root, nft, ip.

It is not skipped where it cannot run: a wall that was never run into is no wall. Everything is
tried twice, with the rules and without them, for packets that could not be counted would pass too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from holdfast import egress
from tests.unit.egress_stage import (
    GROUP_OF_NEW_ADDRESS,
    OF_AN_ADDRESS,
    ORDINARY,
    SOURCE_SPECIFIC,
)
from tests.unit.test_egress import rack

ROOT = Path(__file__).resolve().parents[2]
_PLAY = """
unshare --net sleep 300 &
far=$!
trap 'kill $far' EXIT
until [ "$(readlink /proc/$far/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
unshare --net "$0" -m tests.unit.egress_stage "$1" $far "$2"
"""
REFUSED_AT_ONCE = {"ECONNREFUSED", "EPERM"}
"""TCP and UDP."""
_EARLY = "tailscaled before names resolve"
LOCAL_PORTS = [53, 853, 4000, 5353, 8080]

Said = dict[str, Any]


def _play(folder: Path, wall: str) -> Said:
    settings = rack(tailnet={"control_server": "https://control.example"})
    (folder / "egress.nft").write_text(egress.rules(settings))
    (folder / "users.json").write_text(egress.users(settings))
    (folder / "clouds.json").write_text(egress.clouds(settings))
    (folder / "networks.json").write_text(egress.sovereign_networks(settings))
    sudo = [] if os.geteuid() == 0 else ["sudo", "--non-interactive"]
    done = subprocess.run(
        [*sudo, "bash", "-c", _PLAY, sys.executable, str(folder), wall],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said: Said = json.loads(done.stdout)
    return said


@pytest.fixture(scope="module")
def walled(tmp_path_factory: pytest.TempPathFactory) -> Said:
    return _play(tmp_path_factory.mktemp("wall"), "wall")


@pytest.fixture(scope="module")
def unwalled(tmp_path_factory: pytest.TempPathFactory) -> Said:
    return _play(tmp_path_factory.mktemp("none"), "none")


@pytest.mark.parametrize("user", ["games", "news", "mail", "man", "root"])
def test_without_the_wall_everything_arrives(unwalled: Said, user: str) -> None:
    assert set(unwalled[user]["outcomes"].values()) == {"sent"}
    assert unwalled[user]["away"] == 13
    assert unwalled[user]["ports"] == LOCAL_PORTS
    assert set(unwalled["answers"].values()) == set(unwalled["handed"].values()) == {"hello"}


def test_a_t1_user_reaches_its_peers_and_its_tier_alone(walled: Said) -> None:
    outcomes = walled["games"]["outcomes"]
    assert set(outcomes.values()) == {"sent", *REFUSED_AT_ONCE}
    assert {name for name, outcome in outcomes.items() if outcome == "sent"} == {
        *("tcp4 nas, declared port", "tcp6 nas, declared port"),
        *("own tier 127.0.0.1", "own tier ::1"),
    }
    # The two calls to the NAS; on this machine only the service of its own tier was asked.
    assert walled["games"]["away"] == 2
    assert walled["games"]["ports"] == [8080]


def test_a_t2_user_with_peers_reaches_those_and_this_machine(walled: Said) -> None:
    assert walled["news"]["outcomes"]["tcp4 world"] == "sent"
    assert walled["news"]["outcomes"]["tcp6 world"] == "ECONNREFUSED"
    assert walled["news"]["away"] == 1
    assert walled["news"]["ports"] == LOCAL_PORTS


def _sent(tried: Said) -> set[str]:
    return {name for name, outcome in tried["outcomes"].items() if outcome == "sent"}


def _datagrams(tried: Said) -> set[str]:
    """A container learns of a datagram's refusal later, and by then it has sent it."""
    return {name for name in tried["outcomes"] if name.startswith(("udp", "dns"))}


@pytest.mark.parametrize("network", ["home", "lab"])
def test_without_the_wall_all_that_a_container_sends_arrives(unwalled: Said, network: str) -> None:
    refused = {"tcp4 other network", "tcp6 other network"}  # No program listens there.
    assert set(unwalled[network]["outcomes"]) - _sent(unwalled[network]) == refused
    assert unwalled[network]["away"] == 15
    assert unwalled[network]["ports"] == [53, 4000, 8080]
    assert set(unwalled["containers answer"].values()) == {"hello"}


def test_a_t1_networks_container_reaches_its_peers_alone(walled: Said) -> None:
    tried = walled["home"]
    # The machine is declared for IPv4, and even so its resolver and its other tiers are shut.
    assert _sent(tried) - _datagrams(tried) == {
        *("tcp4 nas, declared port", "tcp6 nas, declared port"),
        "own tier, tcp4 machine",
    }
    assert tried["away"] == 2
    assert tried["ports"] == [8080]
    refused = set(tried["outcomes"]) - _sent(tried)
    assert {tried["outcomes"][name] for name in refused} == {"ECONNREFUSED"}


def test_a_t1_networks_container_answers_those_who_may_call_it(walled: Said) -> None:
    machine = {"this machine": "hello", "this machine, IPv6": "hello"}
    assert walled["containers answer"] == {"lan": "hello", "lan6": "hello", "world": "", **machine}


CLOUD = {"tcp4 world", "tcp6 world"}


def test_before_a_cloud_resolves_no_address_is_called(walled: Said) -> None:
    for who in ("man", "lab"):
        tried = walled["before names resolve"][who]
        assert not CLOUD & _sent(tried)
        # Two resolvers are asked, and they are known from the first.
        assert tried["away"] == 2


def test_who_has_clouds_calls_them_and_their_resolvers_and_this_machine(walled: Said) -> None:
    # That a set was filled is no tampering.
    assert walled["after names resolve"]["first"] == 0
    trainer = walled["man"]
    beyond = {name for name in _sent(trainer) if "world" in name or "nas" in name}
    assert beyond == CLOUD | {"dns4 nas", "dns6 nas"}
    assert trainer["away"] == 4
    assert trainer["ports"] == LOCAL_PORTS
    lab = walled["lab"]
    beyond = {name for name in _sent(lab) - _datagrams(lab) if "world" in name or "nas" in name}
    assert beyond == CLOUD
    assert lab["away"] == 4
    assert lab["ports"] == [53, 4000, 8080]


def test_what_a_set_holds_is_no_tampering_and_comes_back(walled: Said) -> None:
    assert walled["a set was changed"]["first"] == 0
    assert walled["refused meanwhile"] == "ECONNREFUSED"
    assert walled["let through again"] == "sent"


@pytest.mark.parametrize("user", ["mail", "root"])
def test_others_are_left_alone(walled: Said, unwalled: Said, user: str) -> None:
    assert walled[user] == unwalled[user]


@pytest.mark.parametrize("listener", ["answers", "handed"])
def test_a_t1_user_answers_those_who_may_call_it(walled: Said, listener: str) -> None:
    assert walled[listener] == {"lan": "hello", "lan6": "hello", "world": ""}


def test_a_doors_socket_answers_and_makes_no_call(walled: Said, unwalled: Said) -> None:
    assert (walled["by a door"], unwalled["by a door"]) == ("ECONNREFUSED", "sent")


def test_tailscaled_tells_its_control_servers_name_to_no_relay_of_others(
    walled: Said, unwalled: Said
) -> None:
    control = {"control", "control, IPv6"}
    others = {"control, another port", "another relay"}
    peers = {"a peer by udp", "the router of the LAN"}
    assert set(unwalled["by tailscaled"].values()) == {"sent"}
    for when, refused in (("by tailscaled", others), (_EARLY, {*control, *others})):
        said = walled[when]
        assert {name for name, outcome in said.items() if outcome == "ECONNREFUSED"} == refused
        assert {name for name, outcome in said.items() if outcome == "sent"} >= peers
    # It tries by itself, and whenever its server is away: that is no alert.
    assert not any("tailscaled" in line for line in walled["attempts"]["said"])


def test_what_neighbours_ask_each_other_is_not_forwarded(walled: Said, unwalled: Said) -> None:
    assert (walled["away as neighbours"], unwalled["away as neighbours"]) == (0, 6)


def test_what_this_machine_sends_to_a_group_is_no_attempt_of_a_network(walled: Said) -> None:
    assert walled["to a group on a bridge"]["of this machine"] == 0
    assert walled["to a group on a bridge"]["of a container"] > 0


def test_a_connection_from_before_the_wall_carries_nothing_more(walled: Said) -> None:
    assert walled["away from an open connection"] == 0


def test_attempts_are_told_of_once_and_by_name(walled: Said) -> None:
    told = walled["attempts"]
    assert (told["first"], told["second"]) == (1, 0)
    doors, unknown, photos, router, trainer, home, lab = told["said"]
    assert doors.startswith("our_doors was refused ")
    assert unknown.startswith("unknown_users was refused ")
    assert photos.startswith("photos was refused ")
    assert router.startswith("router was refused ")
    assert trainer.startswith("trainer was refused ")
    assert home.startswith("home was refused ")
    assert lab.startswith("lab was refused ")
    assert "--grep 'holdfast egress photos:'" in photos


def test_attempts_that_a_reload_would_forget_are_told_of(walled: Said) -> None:
    told = walled["loaded before anybody looked"]
    assert (told["first"], told["second"]) == (1, 0)
    assert told["said"][0].startswith("photos was refused ")


@pytest.mark.parametrize(("what", "word"), [("changed", "was changed by hand"), ("gone", "gone")])
def test_a_table_that_is_tampered_with_is_loaded_again(walled: Said, what: str, word: str) -> None:
    assert (walled[what]["first"], walled[what]["second"]) == (1, 0)
    assert len(walled[what]["said"]) == 1
    assert word in walled[what]["said"][0]
    assert walled["away after it was gone"] == 2


def test_an_id_of_no_account_may_call_nothing(walled: Said, unwalled: Said) -> None:
    # systemd-nsresourced lends such ids to every local user that asks.
    nobodys = (str(524_288), str(2**31))
    assert {walled["by ids"][each] for each in nobodys} == {"ECONNREFUSED"}
    # What /etc/subuid lends to a user of T1 is held as that user, and to a user of no wall is not.
    assert walled["by ids"]["700000"] == "ECONNREFUSED"
    assert walled["by ids"]["800000"] == "sent"
    assert set(unwalled["by ids"].values()) == {"sent"}


def test_groups_of_a_users_choice_are_not_told_to_the_network(walled: Said, unwalled: Said) -> None:
    chosen = {*ORDINARY, OF_AN_ADDRESS, SOURCE_SPECIFIC}
    assert walled["memberships"]["joined"] == unwalled["memberships"]["joined"] == "sent"
    assert chosen <= set(unwalled["memberships"]["heard"])
    assert not chosen & set(walled["memberships"]["heard"])
    # All groups of a report of IGMPv3 or MLDv2 are in its body.
    bodies = {"224.0.0.22", "ff02::16"}
    assert bodies <= set(unwalled["memberships"]["heard from a kernel that is not set"])
    assert not bodies & set(walled["memberships"]["heard from a kernel that is not set"])


def test_the_group_of_a_new_address_is_told(walled: Said) -> None:
    assert GROUP_OF_NEW_ADDRESS in walled["memberships"]["heard"]


def test_ids_that_a_user_is_lent_are_that_users(walled: Said) -> None:
    assert walled["ids were lent"]["first"] == 0
    assert "meta skuid { 5, 700000-700099 } goto from-photos" in walled["table"]
    assert "meta skuid { 9, 800000-800099 } goto from-router" in walled["table"]


def test_a_user_who_is_gone_keeps_no_other_wall_from_standing(walled: Said) -> None:
    assert walled["a user went"]["first"] == 0
    assert "goto from-photos" in walled["table without the user"]
    assert "goto from-router" not in walled["table without the user"]
