"""Who may reach what, from declarations: walls, the rules' text, systemd's side, units, program."""

from __future__ import annotations

import json
import os
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from facts.egress import DROP_IN, TierDropIns
from facts.places import SYSTEM
from holdfast import alerts, egress
from holdfast.host_programs import egress as egress_program
from holdfast.host_programs.egress import Loaded
from holdfast.sandbox import EXPOSURE_MAX_ROOT
from holdfast.service import texts
from holdfast.settings import HostSettings
from tests.unit.recorded_facts import read
from tests.unit.site_data import good


def rack(**changes: Any) -> HostSettings:
    """A host with a T1 service, a T2 service that declares peers and a T3 service that does not.

    Their users are on every Debian, so that a kernel can be tried with them.
    """
    data: dict[str, Any] = {
        "hostname": "rack",
        "distribution": "debian13",
        "interfaces": {"eth0": {"role": "lan"}},
        "services": [
            {
                "name": "photos",
                "unit": "photos.service",
                "user": "games",
                "tier": "T1",
                "listens": [
                    {
                        "port": 2342,
                        "scope": "lan",
                        "interface": "eth0",
                        "sources": ["10.77.0.0/24", "fd77::/64"],
                    },
                    {"port": 8080},
                ],
                "peers": [
                    {"network": "10.77.0.30/32", "port": 2049},
                    {"network": "fd77::30/128", "port": 2049},
                ],
            },
            {
                "name": "router",
                "unit": "router.service",
                "user": "news",
                "tier": "T2",
                "listens": [{"port": 4000}],
                "peers": [{"network": "192.0.2.1/32", "port": 443}],
            },
            {"name": "free", "unit": "free.service", "user": "mail", "tier": "T3"},
            {
                "name": "trainer",
                "unit": "trainer.service",
                "user": "man",
                "tier": "T3",
                "clouds": [{"name": "cloud.example", "port": 443}],
            },
            {
                "name": "page",
                "unit": "docker.service",
                "user": "root",
                "tier": "T1",
                "network": "home",
                "listens": [
                    {
                        "port": 2343,
                        "container": True,
                        "scope": "lan",
                        "interface": "eth0",
                        "sources": ["10.77.0.0/24", "fd77::/64"],
                    }
                ],
            },
        ],
        "docker": {
            "dns": ["10.77.0.30", "fd77::30"],
            "networks": [
                {
                    "name": "home",
                    "tier": "T1",
                    "peers": [
                        {"network": "10.77.0.30/32", "port": 2049},
                        {"network": "fd77::30/128", "port": 2049},
                        # The machine itself, on every port: the other tier's stays shut.
                        {"network": "10.77.0.10/32"},
                    ],
                },
                {
                    "name": "lab",
                    "tier": "T2",
                    "clouds": [{"name": "cloud.example", "port": 443}],
                },
                {"name": "open", "tier": "T3"},
            ],
        },
    }
    return HostSettings.model_validate({**data, **changes})


def _with(**changes: Any) -> HostSettings:
    """The rack whose T1 service is declared otherwise."""
    photos, *others = rack().services
    return rack(services=[photos.model_copy(update=changes), *others])


def test_each_t1_service_has_a_wall_and_so_has_who_declares_peers() -> None:
    assert {(wall.name, wall.user, wall.tier) for wall in egress.walls(rack())} == {
        ("photos", "games", "T1"),
        ("router", "news", "T2"),
        ("trainer", "man", "T3"),
    }
    assert {(wall.name, wall.bridge, wall.tier) for wall in egress.bridges(rack())} == {
        ("home", "br-home", "T1"),
        ("lab", "br-lab", "T2"),
    }
    rich = HostSettings.model_validate(good()["rack"])
    assert {wall.user for wall in egress.walls(rich)} == {"holdfast-floor", "photos"}


def test_a_wall_follows_from_where_the_service_listens_and_whom_it_calls() -> None:
    photos, *_ = egress.walls(rack())
    assert photos.callers == {
        "ip": ["127.0.0.0/8", "10.77.0.0/24"],
        "ip6": ["::1", "fd77::/64"],
    }
    assert photos.peers == [
        "ip daddr 10.77.0.30/32 tcp dport 2049",
        "ip6 daddr fd77::30/128 tcp dport 2049",
    ]
    floor, _ = egress.walls(HostSettings.model_validate(good()["rack"]))
    assert floor.callers["ip"] == ["127.0.0.0/8", "100.64.0.0/10"]
    assert floor.peers == []
    # Who may call a container may be answered by its network, but for loopback: that is the host.
    home, _ = egress.bridges(rack())
    assert home.callers == {"ip": ["10.77.0.0/24"], "ip6": ["fd77::/64"]}


def test_tailscaled_is_held_where_the_control_server_is_not_tailscales() -> None:
    assert egress.tailscaled(rack()) == []
    relays = [{"name": "derp.example", "port": 8443}]
    (wall,) = egress.tailscaled(
        rack(tailnet={"control_server": "https://control.example:28443", "relays": relays})
    )
    assert [(cloud.name, cloud.port) for cloud in wall.clouds] == [
        *(("control.example", port) for port in (28443, 443, 80)),
        ("derp.example", 8443),
    ]
    (wall,) = egress.tailscaled(rack(tailnet={"control_server": "http://[2001:db8::9]:8080"}))
    assert wall.clouds == []
    assert "ip6 daddr 2001:db8::9 tcp dport 8080" in wall.peers


def test_ports_of_other_tiers_are_a_way_out() -> None:
    assert egress.other_tiers(rack()) == {"tcp": [22, 4000], "udp": [41641]}


@pytest.mark.parametrize(
    ("network", "within"),
    [
        *((network, True) for network in ("10.0.0.0/8", "192.168.1.30/32", "100.64.0.0/10")),
        *((network, True) for network in ("fd00::/8", "::1/128", "fd7a:115c:a1e0::/48")),
        *(
            (network, False)
            for network in ("0.0.0.0/0", "192.0.0.0/8", "100.0.0.0/8", "8.8.8.8/32")
        ),
        *((network, False) for network in ("::/0", "2001:db8::/32", "169.254.0.0/16", "fe80::/10")),
    ],
)
def test_where_data_of_t1_may_go(network: str, within: bool) -> None:
    assert egress.is_sovereign(network) is within


@pytest.mark.parametrize(
    "settings",
    [
        rack(),
        rack(services=[]),
        HostSettings.model_validate(good()["rack"]),
        HostSettings.model_validate(good()["station"]),
        # Names that mean something to nftables.
        *(_with(name=name) for name in ("tcp", "counter", "log", "x-1", "ct")),
        _with(peers=[], listens=[]),
        rack(tailnet=None, ssh={"lan_access": "keep"}),
        rack(services=[], docker=None, tailnet={"control_server": "https://control.example"}),
        rack(tailnet={"control_server": "http://[2001:db8::9]:8080"}),
    ],
    ids=range(13),
)
def test_nftables_reads_the_rules_as_often_as_they_are_loaded(settings: HostSettings) -> None:
    namespace = ["unshare", "--net"] + ([] if os.geteuid() == 0 else ["--map-root-user"])
    twice = egress.rules(settings) * 2
    done = subprocess.run(
        [*namespace, "nft", "--check", "--file", "-"],
        input=twice,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_systemd_holds_t1_units_of_others_to_the_same() -> None:
    drop_ins = egress.drop_ins(_with(run_paths=["/run/postgresql"]))
    assert {
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6",
        "NoNewPrivileges=yes",
        "TemporaryFileSystem=/run:ro",
        "BindReadOnlyPaths=/run/systemd/notify /run/systemd/journal/socket"
        " /run/systemd/journal/dev-log",
        "BindPaths=/run/postgresql",
    } <= set(drop_ins["photos.service"].splitlines())
    # What its socket unit hands over is held by the socket unit's list alone.
    for unit, section in {"photos.service": "[Service]", "photos.socket": "[Socket]"}.items():
        lines = drop_ins[unit].splitlines()
        assert {section, "IPAddressDeny=any"} <= set(lines)
        assert [line.partition("=")[2] for line in lines if line.startswith("IPAddressAllow=")] == [
            *("127.0.0.1/32", "::1/128", "10.77.0.0/24", "fd77::/64"),
            *("10.77.0.30/32", "fd77::30/128"),
        ]
    assert egress.drop_in_path("photos.service") == (
        f"/etc/systemd/system/photos.service.d/{DROP_IN}"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"tier": "T2"},
        {"user": "root"},
        {"unit": "photos.timer"},
        {"listens": [rack().services[0].listens[0].model_copy(update={"container": True})]},
    ],
)
def test_systemd_is_told_nothing_of_what_it_cannot_hold(changes: dict[str, Any]) -> None:
    assert egress.drop_ins(_with(**changes)) == {}


def test_the_plan_says_what_ubuntu_is_not_held_to() -> None:
    assert egress.not_held(rack()) is None
    sentence = egress.not_held(rack(distribution="ubuntu2404"))
    assert sentence
    assert "snapd" in sentence
    assert "started in another way as games can" in sentence
    assert egress.not_held(rack(distribution="ubuntu2404", services=[])) is None


def test_drop_ins_that_are_there_are_found() -> None:
    path = egress.drop_in_path("photos.service")
    assert read(TierDropIns, [path]) == [path]
    assert DROP_IN in TierDropIns().command()


def test_the_program_is_told_which_user_is_held_by_which_wall() -> None:
    assert json.loads(egress.users(rack())) == {
        "games": "photos",
        "news": "router",
        "man": "trainer",
    }


def test_the_program_is_told_which_clouds_each_may_call_and_which_networks_are_t1() -> None:
    assert json.loads(egress.clouds(rack())) == {
        "clouds": {"trainer": [["cloud.example", 443]], "lab": [["cloud.example", 443]]},
        "resolvers": ["10.77.0.30", "fd77::30"],
    }
    assert json.loads(egress.sovereign_networks(rack())) == {"home": "br-home"}


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the program reads, for the rack."""
    (tmp_path / "clouds").write_text(egress.clouds(rack()))
    (tmp_path / "resolv.conf").write_text(
        "search lan\nnameserver 10.77.0.1\nnameserver fe80::1%eth0\nnameserver nonsense\n"
    )
    monkeypatch.setattr(egress_program, "CLOUDS", str(tmp_path / "clouds"))
    paths = (str(tmp_path / "resolv.conf"), str(tmp_path / "none"))
    monkeypatch.setattr(egress_program, "RESOLVERS", paths)


@pytest.mark.usefixtures("told")
def test_an_address_may_be_called_for_six_hours_after_it_was_seen() -> None:
    seen = {"cloud.example": {"192.0.2.1": 100.0, "192.0.2.9": 5000.0, "2001:db8::1": 5000.0}}
    later = 100.0 + 6 * 3600
    for name in ("trainer", "lab"):
        assert f"flush set inet holdfast_egress clouds-ip-{name}\n" in egress_program.sets(
            seen, later
        )
    text = egress_program.sets(seen, later)
    assert "192.0.2.1 ." not in text
    assert "clouds-ip-lab { 192.0.2.9 . 443 timeout 4900s }" in text
    assert "clouds-ip6-lab { 2001:db8::1 . 443 timeout 4900s }" in text
    assert "192.0.2.1 . 443 timeout 1s" in egress_program.sets(seen, later - 1)


@pytest.mark.usefixtures("told")
def test_who_is_asked_for_names_is_the_hosts_and_dockers_to_say() -> None:
    text = egress_program.sets({}, 0)
    assert "resolvers-ip { 10.77.0.30, 10.77.0.1 }" in text
    assert "resolvers-ip6 { fd77::30, fe80::1 }" in text


@pytest.mark.usefixtures("told")
def test_a_name_without_an_address_is_told_of_after_an_hour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(egress_program.time, "monotonic", lambda: now)
    monkeypatch.setattr(egress_program, "_nft", lambda *_, **__: "")
    loaded = egress_program.Loaded()

    def told_at(at: float, *addresses: str) -> list[str]:
        nonlocal now
        now = at
        answer = {"cloud.example": list(addresses)}
        return list(egress_program._let_through(loaded, answer))

    assert told_at(1000) == []
    assert told_at(4000) == []
    (sentence,) = told_at(4700)
    assert sentence.startswith("cloud.example has had no address for 62 minutes")
    assert told_at(4800, "192.0.2.1") == []
    assert told_at(8300) == []
    assert len(told_at(8500)) == 1
    # It is let through as before, until it is too long ago.
    assert loaded.addresses == {"cloud.example": {"192.0.2.1": 4800}}
    told_at(4800 + 6 * 3600)
    assert loaded.addresses == {"cloud.example": {}}


def test_a_container_that_the_rules_do_not_hold_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def container(name: str, *networks: str) -> dict[str, Any]:
        return {"Names": [f"/{name}"], "NetworkSettings": {"Networks": dict.fromkeys(networks)}}

    monkeypatch.setattr(egress_program, "LINKS", str(tmp_path))
    (tmp_path / "br-home").touch()
    running = [
        container("good", "home"),
        container("other", "lab", "bridge"),
        container("both", "lab", "home"),
        container("remade", "vault"),
    ]
    sovereign = {"home": "br-home", "vault": "br-vault"}
    assert list(egress_program.astray(running, sovereign)) == [
        "the container both is on the T1 network home and on lab: it can send through the other",
        "the container remade is on the T1 network vault, whose bridge br-vault is gone:"
        " no rule restricts it",
    ]


@contextmanager
def _docker(folder: Path, answer: bytes) -> Iterator[None]:
    """An engine that says one thing to all who ask who runs."""

    class Engine(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            asked = self.rfile.readline()
            status = b"200 OK" if asked.split()[1] == b"/containers/json" else b"404 Not Found"
            self.wfile.write(b"HTTP/1.0 %s\r\n\r\n%s" % (status, answer))

    with socketserver.UnixStreamServer(str(folder / "docker.sock"), Engine) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        (folder / "docker.pid").touch()
        yield
        server.shutdown()
    (folder / "docker.pid").unlink()


def test_the_watch_asks_docker_who_is_on_its_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Loaded(text="rules", listing="the rules")
    monkeypatch.setattr(egress_program, "wanted", lambda: loaded.text)
    monkeypatch.setattr(egress_program, "_listing", lambda: loaded.listing)
    monkeypatch.setattr(egress_program, "_counts", dict)
    for name in ("NETWORKS", "LINKS", "DOCKER", "DOCKER_RUNS"):
        files = {"DOCKER": "docker.sock", "DOCKER_RUNS": "docker.pid"}
        monkeypatch.setattr(egress_program, name, str(tmp_path / files.get(name, name)))

    def told(answer: bytes, **networks: str) -> list[str]:
        (tmp_path / "NETWORKS").write_text(json.dumps(networks))
        (tmp_path / "docker.sock").unlink(missing_ok=True)
        with _docker(tmp_path, answer):
            return list(egress_program._problems(loaded))

    page = {"Names": ["/page"], "NetworkSettings": {"Networks": {"home": {}, "lab": {}}}}
    (tmp_path / "LINKS").mkdir()
    (tmp_path / "LINKS" / "br-home").touch()
    (sentence,) = told(json.dumps([page]).encode(), home="br-home")
    assert sentence.startswith("the container page is on the T1 network home and on lab")
    # Where Docker says nothing that can be read, that is reported: silence is not innocence.
    (sentence,) = told(b"not json", home="br-home")
    assert sentence.startswith("Docker did not list the containers on T1 networks")
    assert told(b"not json") == [], "no network of this host is T1's"
    # An engine that is stopped has no containers, and is not started by a question.
    (tmp_path / "NETWORKS").write_text(json.dumps({"home": "br-home"}))
    assert list(egress_program._problems(loaded)) == []


def test_a_users_ids_are_its_own_and_those_it_was_lent() -> None:
    lent = "games:100000:65536\nnews:200000:65536\n5:300000:1\ngames:400000:0\n"
    assert egress_program.ids("games", lent) == ["5", "100000-165535", "300000-300000"]
    with pytest.raises(KeyError):
        egress_program.ids("nobody-here", lent)


@pytest.mark.parametrize(
    "line",
    ["games", "games:", "games::", "games:100000", "games:x:1", "games:4294967295:9", "\xff"],
)
def test_a_line_that_lends_nothing_keeps_no_wall_from_standing(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"RULES": "table inet x {}\n", "USERS": '{"games": "photos"}'}
    for name, text in {**files, "SUBUID": f"{line}\ngames:100000:65536\n"}.items():
        (tmp_path / name).write_text(text, encoding="latin-1")
        monkeypatch.setattr(egress_program, name, str(tmp_path / name))
    assert "skuid { 5, 100000-165535 } goto from-photos\n" in egress_program.wanted()


@pytest.mark.parametrize("kept", ["", '{"text": "half a rec', '{"of": "another release"}', "[]"])
def test_a_record_that_cannot_be_read_is_none(
    kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(egress_program, "RECORD", str(tmp_path / "loaded.json"))
    (tmp_path / "loaded.json").write_text(kept)
    with egress_program._record() as loaded:
        assert loaded == Loaded()
        loaded.text = "rules"
    with egress_program._record() as loaded:
        assert loaded.text == "rules"


def test_a_file_of_resolvers_may_hold_any_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "resolv.conf").write_bytes(b"# caf\xe9\nnameserver 192.0.2.1\n")
    monkeypatch.setattr(egress_program, "RESOLVERS", (str(tmp_path / "resolv.conf"), "/nowhere"))
    assert egress_program._resolvers() == ["192.0.2.1"]


def test_the_rules_are_in_force_before_the_network_is() -> None:
    text = texts(egress.programs(rack()))[f"{SYSTEM}/{egress.SERVICE}"]
    lines = text.splitlines()
    assert "DefaultDependencies=no" in lines
    assert "Wants=network-pre.target" in lines
    assert "Before=sysinit.target network-pre.target shutdown.target" in lines
    assert "WantedBy=sysinit.target" in lines


def test_systemd_reads_the_units_and_judges_the_sandbox_as_declared(tmp_path: Path) -> None:
    for path, text in {
        **texts(egress.programs(rack())),
        **texts([alerts.NOTIFY]),
    }.items():
        (tmp_path / Path(path).name).write_text(text.replace(egress.PROGRAM, "/bin/true"))
    units = [tmp_path / name for name in (egress.SERVICE, egress.WATCH, egress.RESOLVE)]
    timers = [tmp_path / name for name in (egress.TIMER, egress.RESOLVE_TIMER)]
    verified = subprocess.run(
        ["systemd-analyze", "verify", *units, *timers],
        capture_output=True,
        text=True,
        check=False,
    )
    assert [line for line in verified.stderr.splitlines() if str(tmp_path) in line] == []
    threshold = f"--threshold={EXPOSURE_MAX_ROOT * 10:.0f}"
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", threshold, *units],
        capture_output=True,
        text=True,
        check=False,
    )
    assert judged.returncode == 0, judged.stdout.splitlines()[-1:] + [judged.stderr]
