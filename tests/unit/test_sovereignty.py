"""Who can leave a host, and who tried: told of declarations, counters and the journal."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from facts.egress import Attempt, Attempts, EgressAttempts, OpenSocket
from holdfast.programs import programs
from holdfast.service.units import service_unit
from holdfast.settings import Docker, HostSettings, Peer, Tailnet
from holdfast.sovereignty import Row, rows, sockets
from tests.unit.recorded_facts import read
from tests.unit.site_data import good
from tests.unit.test_clouds import host

SOCKETS = """\
#= sockets
u_str LISTEN 0 4096 /run/dbus/system_bus_socket 8254 * 0 users:(("dbus-daemon",pid=177,fd=3),\
("systemd",pid=1,fd=79))
u_str ESTAB 0 0 /run/dbus/system_bus_socket 8268 * 8269 users:(("dbus-daemon",pid=177,fd=9))
u_str LISTEN 0      4096   /run/systemd/private 8252 * 0     users:(("systemd",pid=1,fd=23))
u_dgr ESTAB  0      0      /run/systemd/notify 8253 * 0      users:(("systemd",pid=1,fd=37))
u_str LISTEN 0      128    @ISCSIADM_ABSTRACT_NAMESPACE 9 * 0 users:(("iscsid",pid=300,fd=8))
u_str LISTEN 0      128    /var/spool/postfix/public/cleanup 7 * 0 users:(("master",pid=301,fd=5))
u_dgr ESTAB  0      0      * 8254 * 8255                     users:(("cron",pid=176,fd=2))
#= programs
1 root
177 messagebus
300 root
301 root
#= may be opened
/run/dbus/system_bus_socket
/run/systemd/notify
/var/spool/postfix/public/cleanup
"""
EVERYBODYS = (
    OpenSocket("SOCK_STREAM", "/run/dbus/system_bus_socket", "dbus-daemon", "messagebus"),
    OpenSocket("SOCK_DGRAM", "/run/systemd/notify", "systemd", "root"),
    OpenSocket("SOCK_STREAM", "/var/spool/postfix/public/cleanup", "master", "root"),
    OpenSocket("SOCK_STREAM", "@ISCSIADM_ABSTRACT_NAMESPACE", "iscsid", "root"),
)
SEEN = Attempts(
    enforced=True,
    refused={"album": 7},
    calls=(
        Attempt("album", "2026-11-21T23:10:01+00:00", "tcp", "192.0.2.1", 443),
        Attempt("album", "2026-11-21T23:10:02+00:00", "icmpv6", "2001:db8::1", None),
    ),
)


def _settings(**album: object) -> HostSettings:
    data = good()["rack"]
    own = {"name": "album", "unit": "album.service", "user": "album", "tier": "T1"}
    data["services"].append(own | album)
    return HostSettings.model_validate(data)


def _told(settings: HostSettings, seen: Attempts) -> dict[str, Row]:
    return {row.service: row for row in rows(settings, seen)}


def test_the_fact_reads_counters_and_the_journal() -> None:
    assert read(EgressAttempts) == SEEN
    assert read(EgressAttempts, ["#= counters", "#= calls"]) == Attempts()


def test_the_fact_reads_where_programs_listen_for_every_user() -> None:
    assert read(EgressAttempts, SOCKETS.splitlines()) == Attempts(sockets=EVERYBODYS)


def test_sockets_that_any_user_may_open_are_named_with_who_sees_them() -> None:
    seen = replace(SEEN, sockets=EVERYBODYS)
    with_bus = _settings(run_paths=["/run/dbus"])
    said = Console(width=200, record=True, file=io.StringIO())
    said.print(sockets("rack", with_bus, seen))
    lines = said.export_text().splitlines()

    def line(path: str) -> list[str]:
        (found,) = [each for each in lines if path in each]
        return [cell.strip() for cell in found.split("│")[1:-1]]

    bus = "/run/dbus/system_bus_socket"
    assert line(bus) == ["dbus-daemon", "messagebus", bus, "album"]
    assert line("/run/systemd/notify")[3] == "photos, album"
    assert line("cleanup")[3] == "all"
    assert line("@ISCSIADM")[3] == "those in this machine's network"


def test_a_service_that_tried_is_told_with_its_last_call() -> None:
    row = _told(_settings(), SEEN)["album"]
    assert (row.tier, row.may_call) == ("T1: never leaves", "this machine")
    assert row.tried == (
        "7 packets since the rules were loaded; last icmpv6 to 2001:db8::1,"
        " 2026-11-21T23:10:02+00:00"
    )


def test_peers_are_named() -> None:
    peers = [Peer(network="192.168.1.31/32", port=5432), Peer(network="10.0.0.0/8")]
    row = _told(_settings(peers=[peer.model_dump() for peer in peers]), SEEN)["album"]
    assert row.may_call == "this machine, and 192.168.1.31 port 5432, 10.0.0.0/8"


def test_what_has_no_network_calls_nothing() -> None:
    row = _told(_settings(), SEEN)["floor"]
    assert (row.may_call, row.tried) == ("nothing: it has no network", "nothing")


def test_what_nothing_holds_is_said() -> None:
    container = {"port": 9000, "container": True}
    held = _told(_settings(listens=[container], user="root", unit="docker.service"), SEEN)
    assert held["album"].may_call == "any machine, through its container: no rule restricts it"
    assert held["ssh"].may_call == "any machine: no rule restricts it"
    assert held["ssh"].tried == "not watched"


def test_clouds_are_named() -> None:
    row = _told(_settings(tier="T3", clouds=[{"name": "api.example"}]), SEEN)["album"]
    assert row.may_call == "this machine, and api.example port 443"
    assert row.tried.startswith("7 packets")


def test_containers_are_told_of_by_their_network() -> None:
    container = {"port": 9000, "container": True}
    settings = _settings(listens=[container], user="root", unit="docker.service", network="home")
    networks = [
        {"name": "home", "tier": "T1", "peers": [{"network": "10.0.0.9/32", "port": 5432}]},
        {"name": "lab", "tier": "T2", "clouds": [{"name": "api.example"}]},
        {"name": "free", "tier": "T3"},
    ]
    docker = Docker.model_validate({"dns": ["192.168.1.1"], "networks": networks})
    seen = Attempts(enforced=True, refused={"home": 3})
    told = _told(settings.model_copy(update={"docker": docker}), seen)
    assert told["album"].may_call == "what containers on home may"
    assert told["album"].tried == "3 packets since the rules were loaded"
    assert told["containers on home"].may_call == "each other, 10.0.0.9 port 5432"
    assert told["containers on home"].tried == "3 packets since the rules were loaded"
    assert told["containers on lab"].may_call == ("each other, this machine, api.example port 443")
    assert told["containers on free"].may_call == "any machine: no rule restricts it"


def test_what_tailscaled_may_call_is_said() -> None:
    tailnet = {"control_server": "https://control.example"}
    held = _settings().model_copy(update={"tailnet": Tailnet.model_validate(tailnet)})
    told = _told(held, replace(SEEN, refused={"tailscaled": 3}))["tailscaled"]
    assert told.may_call.startswith(
        "any address by UDP; by TCP this machine, private networks, and"
    )
    assert "control.example port 443" in told.may_call
    assert told.tried == "3 packets since the rules were loaded"


def test_without_the_rules_no_service_is_said_to_be_held() -> None:
    row = _told(_settings(), Attempts())["album"]
    assert (row.may_call, row.tried) == ("any machine: no rule restricts it", "not watched")


def test_those_that_must_not_leave_come_first() -> None:
    tiers = [row.tier for row in rows(_settings(), SEEN)]
    assert tiers == sorted(tiers)


def test_the_report_says_no_network_of_those_whose_units_have_none() -> None:
    settings = host(profile="private", clouds=[], keys=[], api_key="CALLERS_KEY", queue={})
    for each in (settings, host()):
        isolated = {
            program.service.name
            for program in programs(each)
            if "PrivateNetwork=yes" in service_unit(program).splitlines()
        }
        assert {"floor", "vllm-a"} < _without(each) == isolated & _told(each, SEEN).keys()
    assert {"queue-home"} < _without(settings)
    assert {"ledger"} < _without(host())


def _without(settings: HostSettings) -> set[str]:
    return {row.service for row in rows(settings, SEEN) if row.may_call.startswith("nothing")}
