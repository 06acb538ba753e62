"""Tenants: what follows from a service that Holdfast runs itself."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from facts import tenants as facts
from holdfast import egress, firewall, owned, registry, service, tenants
from holdfast import programs as programs_of
from holdfast.python_environment import directory
from holdfast.secrets import Secret
from holdfast.settings import HostSettings
from operations import program as programs
from operations import tenants as operations
from tests.unit.local_host import LocalHost
from tests.unit.site_data import SHA256, good

IMAGE = f"registry.house.example:5000/pictures@sha256:{SHA256}"
UNIT = "/etc/systemd/system/holdfast-tenant-pictures.service"
PYTHON = "/etc/systemd/system/holdfast-tenant-notes.service"
SOCKET = "/run/holdfast/holdfast-tenant-notes/http.sock"
LOCK = Path(__file__).resolve().parents[2] / "locks" / "uv.txt"
UUID = "GPU-8f1c3a52-0000-1111-2222-333344445555"


def _rack(inside: dict[str, Any] | None = None, **changes: Any) -> HostSettings:
    """A rack with one container; ``inside`` are changes of ``container``."""
    declared = {
        "name": "pictures",
        "container": {"image": IMAGE, **(inside or {})},
        "tier": "T1",
        "network": "home",
        "listens": [{"port": 8188}],
        "data": [{"path": "/srv/pictures", "backup": "state"}],
        "health": {"url": "http://127.0.0.1:8188/health", "contains": "ok"},
    }
    card = {"name": "one", "device": "2204", "vram_mib": 24576, "uuid": UUID}
    site = {
        "docker": {"dns": ["192.168.1.1"], "networks": [{"name": "home", "tier": "T1"}]},
        "gpus": {
            "cards": [card],
            "card_sets": [
                {
                    "name": "desk",
                    "cards": ["one"],
                    "default": "paint",
                    "modes": [{"name": "paint", "services": ["pictures"]}, {"name": "rest"}],
                }
            ],
        },
    }
    return HostSettings.model_validate(good()["rack"] | site | {"services": [declared | changes]})


def _lines(settings: HostSettings) -> list[str]:
    texts = service.texts(tenants.programs(settings))
    return next(text for path, text in texts.items() if path in (UNIT, PYTHON)).splitlines()


def _words(line: str) -> list[str]:
    """The words of a command, as systemd reads them."""
    found = re.findall(r"'((?:[^'\\]|\\.)*)'|(\S+)", line)
    words = [re.sub(r"\\(.)", r"\1", quoted) or bare for quoted, bare in found]
    return [word.replace("%%", "%").replace("$$", "$") for word in words]


def _said(settings: HostSettings, directive: str) -> list[list[str]]:
    """The words of each line of a directive."""
    values = [line.partition("=") for line in _lines(settings)]
    return [_words(value) for name, _, value in values if name == directive]


def _run(settings: HostSettings) -> list[str]:
    (words,) = _said(settings, "ExecStart")
    return words


def test_a_container_may_do_nothing_that_is_not_declared() -> None:
    words = _run(_rack())
    assert words[:3] == ["/usr/bin/docker", "run", "--rm"]
    assert {"--cap-drop=ALL", "--security-opt=no-new-privileges", "--read-only"} <= set(words)
    assert {"--user=65532:65532", "--tmpfs=/tmp", "--pull=never", "--network=home"} <= set(words)
    assert words[-1] == IMAGE
    assert not [word for word in words if word.startswith(("--cap-add", "--privileged", "--env"))]


def test_what_it_needs_beyond_is_given_alone() -> None:
    reason = "its entry point changes the owner of its files"
    words = _run(_rack({"relaxed": {"root": reason, "writable": reason, "CHOWN": reason}}))
    assert {"--user=0:0", "--cap-drop=ALL", "--cap-add=CHOWN"} <= set(words)
    assert "--read-only" not in words
    assert [word for word in words if word.startswith("--cap-add")] == ["--cap-add=CHOWN"]


def test_its_words_reach_it_as_they_are_written() -> None:
    command = ["serve", "--rate=10%", "$HOME", "a b", "it's", 'a "b"', "back\\slash", "%n;", ";"]
    words = _run(_rack({"command": command, "environment": {"CAPTION": "100 % $ours"}}))
    assert words[-len(command) :] == command
    assert words[-len(command) - 1] == IMAGE
    assert "--env=CAPTION=100 % $ours" in words
    # What systemd would replace.
    (line,) = [
        line for line in _lines(_rack({"command": command})) if line.startswith("ExecStart=")
    ]
    assert "--rate=10%%" in line
    assert "$$HOME" in line


@pytest.mark.parametrize(
    ("listen", "published"),
    [
        ({}, ["--publish=127.0.0.1:8188:80/tcp"]),
        ({"scope": "tailnet"}, ["--publish=0.0.0.0:8188:80/tcp"]),
        ({"protocol": "udp"}, ["--publish=127.0.0.1:8188:80/udp"]),
    ],
)
def test_a_port_is_published_where_it_is_declared(
    listen: dict[str, Any], published: list[str]
) -> None:
    listens = [{"port": 8188} | listen]
    words = _run(_rack({"ports": {8188: 80}}, listens=listens, health=None))
    assert [word for word in words if word.startswith("--publish")] == published


def test_a_network_with_ipv6_is_published_by_ipv6_too() -> None:
    rack = _rack(listens=[{"port": 8188, "scope": "tailnet"}])
    assert rack.docker
    network = rack.docker.networks[0].model_copy(update={"subnets": ["fd99:8::/64"]})
    docker = rack.docker.model_copy(update={"networks": [network]})
    words = _run(rack.model_copy(update={"docker": docker}))
    assert "--publish=[::]:8188:8188/tcp" in words


def test_its_port_is_opened_before_docker_and_not_for_the_machine_itself() -> None:
    lan = {"port": 8188, "scope": "lan", "interface": "eth1", "sources": ["192.168.1.0/24"]}
    rack = _rack(listens=[lan])
    holes = firewall.holes(rack, registry.declared_services(rack), lan_ssh=None)
    (hole,) = [hole for hole in holes if hole.port == 8188]
    assert hole.container


def test_another_tier_is_published_at_its_own_address() -> None:
    rack = _rack(tier="T2", network=None, health=None)
    assert "--publish=127.0.0.2:8188:8188/tcp" in _run(rack)


def test_a_card_is_given_by_its_uuid_alone() -> None:
    rack = _rack(cards=["one"], gpu_mib=8000)
    assert [word for word in _run(rack) if "nvidia" in word] == [f"--device=nvidia.com/gpu={UUID}"]
    assert "After=docker.service holdfast-gpu-cdi.service" in _lines(rack)


def test_in_a_mode_it_runs_with_the_mode_and_not_at_boot() -> None:
    (unit,) = programs.settled(tenants.programs(_rack(cards=["one"], gpu_mib=8000)))
    assert unit.along_with == ["holdfast-mode-paint.target"]


def test_a_secret_is_in_a_file_and_in_no_word() -> None:
    rack = _rack({"secrets": {"token": "PICTURES_TOKEN"}})
    (program,) = tenants.programs(rack)
    (credential,) = program.credentials
    assert credential.text(lambda name: Secret(f"{name} in .env")) == "PICTURES_TOKEN in .env"
    folder = "/run/holdfast/holdfast-tenant-pictures/secrets"
    assert f"--mount=type=bind,source={folder},target=/run/secrets,readonly" in _run(rack)
    placed = [words for words in _said(rack, "ExecStartPre") if words[-1] == f"{folder}/token"]
    assert placed[0][-2] == credential.path
    assert [claim.name for claim in registry.secret_claims(rack) if "PICTURES" in claim.name]


def test_its_data_is_mounted_and_waited_for() -> None:
    rack = _rack({"mounts": {"/srv/pictures": "/data"}, "user": "1000:1001"})
    assert "--mount=type=bind,source=/srv/pictures,target=/data" in _run(rack)
    assert "RequiresMountsFor=/srv/pictures" in _lines(rack)
    made = [words[-1] for words in _said(rack, "ExecStartPre") if "/srv/pictures" in words[-1]]
    assert made == [
        "test -e /srv/pictures || install -d -m 700 -o 1000 -g 1001 /srv/pictures",
    ]


def test_it_counts_as_started_when_its_health_question_is_answered(tmp_path: Path) -> None:
    contains = "it's 100 % $fine"
    rack = _rack(health={"url": "http://127.0.0.1:8188/a%20b", "contains": contains})
    ((shell, option, script),) = _said(rack, "ExecStartPost")
    said = tmp_path / "said"
    curl = tmp_path / "curl"
    curl.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/asked\ncat {said}\n')
    curl.chmod(0o755)
    host = LocalHost(programs=tmp_path)
    said.write_text(f"before {contains} after\n")
    alive = f"MAINPID=$$; export MAINPID; exec {shell} {option} {shlex.quote(script)}"
    assert host._run(alive).returncode == 0
    assert "http://127.0.0.1:8188/a%20b" in (tmp_path / "asked").read_text().splitlines()
    # One that has ended is not waited for.
    said.write_text("starting\n")
    asked = f"timeout 20 {shell} {option} {shlex.quote(script)}"
    assert host._run(f"sleep 0 & MAINPID=$!; wait; export MAINPID; {asked}").returncode == 1


def test_it_ends_and_starts_with_the_engine() -> None:
    lines = _lines(_rack())
    assert "Requires=docker.service" in lines
    assert "Restart=always" in lines
    assert "WantedBy=multi-user.target docker.service" in lines


def test_a_container_of_before_is_gone_before_it_starts_and_when_it_has_ended() -> None:
    gone = ["-/usr/bin/docker", "rm", "--force", "holdfast-tenant-pictures"]
    assert _said(_rack(), "ExecStartPre")[-1] == gone
    assert _said(_rack(), "ExecStopPost") == [gone]
    assert _said(_rack({"stop_seconds": 30}), "ExecStop") == [
        ["/usr/bin/docker", "stop", "--time=30", "holdfast-tenant-pictures"]
    ]


def test_another_digest_is_a_restart() -> None:
    (unit,) = programs.settled(tenants.programs(_rack()))
    assert UNIT in unit.restart_after
    other = IMAGE.replace("9f86", "0f86")
    assert _lines(_rack()) != _lines(_rack({"image": other}))


def test_what_holds_a_user_of_this_host_holds_no_container() -> None:
    rack = _rack()
    assert egress.drop_ins(rack) == {}
    assert "pictures" not in {wall.name for wall in egress.walls(rack)}
    assert "pictures" not in {claim.owner for claim in registry.user_claims(rack)}


def test_it_leaves_with_its_entry_and_its_data_stays() -> None:
    rack = _rack({"secrets": {"token": "PICTURES_TOKEN"}})
    own = {UNIT, "/etc/holdfast/credentials/holdfast-tenant-pictures.token"}
    assert own <= set(owned.declared(rack))
    assert not own & set(owned.declared(rack.model_copy(update={"services": []})))
    for path in own:
        assert any(Path(path).match(pattern) for pattern in owned.patterns()), path
    assert not any(Path("/srv/pictures").match(pattern) for pattern in owned.patterns())


def _program(inside: dict[str, Any] | None = None, **changes: Any) -> HostSettings:
    """A rack with one Python program; ``inside`` are changes of ``python``."""
    python = {"lock": str(LOCK), "command": ["serve", "--uds", SOCKET], **(inside or {})}
    declared = {
        "name": "notes",
        "python": python,
        "tier": "T1",
        "listens": [{"port": 8300}],
        "data": [{"path": "/srv/notes", "backup": "derived"}],
        "health": {"url": "http://127.0.0.1:8300/health", "contains": "ok"},
    }
    return HostSettings.model_validate(good()["rack"] | {"services": [declared | changes]})


def test_a_program_runs_from_its_environment_as_its_own_user_without_a_network() -> None:
    lines = _lines(_program())
    folder = directory("holdfast-tenant-notes", LOCK.read_text(), "debian13")
    assert f"ExecStart={folder}/bin/serve --uds {SOCKET}" in lines
    assert {"User=tenant-notes", "PrivateNetwork=yes", "MemoryDenyWriteExecute=yes"} <= set(lines)
    assert "tenant-notes" in {claim.user for claim in registry.user_claims(_program())}
    assert "notes" in programs_of.without_network(_program())


def test_a_program_that_calls_has_a_network_and_its_wall() -> None:
    rack = _program(peers=[{"network": "192.168.1.30/32", "port": 5432}])
    assert "PrivateNetwork=yes" not in _lines(rack)
    assert "IPAddressAllow=192.168.1.30/32" in _lines(rack)
    assert "notes" in {wall.name for wall in egress.walls(rack)}
    assert egress.drop_ins(rack) == {}


def test_a_programs_port_is_a_proxys_that_leads_to_its_socket() -> None:
    texts = service.texts(tenants.programs(_program()))
    door = texts["/etc/systemd/system/holdfast-tenant-notes-loopback.socket"]
    assert "ListenStream=127.0.0.1:8300" in door
    assert SOCKET in texts["/etc/holdfast/tenants/notes-loopback.cfg"]
    units = {unit.name: unit for unit in programs.settled(tenants.programs(_program()))}
    assert not units["holdfast-tenant-notes-tailnet.socket"].running
    rack = _program(listens=[{"port": 8300, "scope": "tailnet"}])
    units = {unit.name: unit for unit in programs.settled(tenants.programs(rack))}
    assert units["holdfast-tenant-notes-tailnet.socket"].running


def test_a_program_may_write_its_data_and_is_asked_at_its_socket() -> None:
    assert "ReadWritePaths=-/srv/notes" in _lines(_program())
    made = "test -e /srv/notes || install -d -m 700 -o tenant-notes -g tenant-notes /srv/notes"
    assert _said(_program(), "ExecStartPre")[0][-1] == made
    ((*_, script),) = _said(_program(), "ExecStartPost")
    assert f"--unix-socket {SOCKET} http://127.0.0.1:8300/health" in script


def test_a_programs_words_and_variables_reach_it_as_they_are_written() -> None:
    command = ["serve", SOCKET, "100 % $ours", "%n"]
    rack = _program({"command": command, "environment": {"CAPTION": "100 % $ours"}})
    ((_, *words),) = _said(rack, "ExecStart")
    assert words == command[1:]
    assert "Environment='CAPTION=100 %% $ours'" in _lines(rack)


def test_a_programs_secret_is_systemds_to_hand_over() -> None:
    rack = _program({"secrets": {"key": "NOTES_KEY"}})
    path = "/etc/holdfast/credentials/holdfast-tenant-notes.key"
    assert f"LoadCredential=key:{path}" in _lines(rack)


def test_code_that_a_program_makes_needs_a_reason() -> None:
    lines = _lines(_program({"executable_memory": "it compiles its queries"}))
    at = lines.index("MemoryDenyWriteExecute=no")
    assert lines[at - 1] == "# it compiles its queries"


def test_a_program_leaves_with_its_entry() -> None:
    own = set(service.paths(tenants.programs(_program())))
    assert own <= set(owned.declared(_program()))
    for path in own:
        assert any(Path(path).match(pattern) for pattern in owned.patterns()), path
    left = facts.SourcesState(environments=("holdfast-tenant-notes", "holdfast-tenant-old"))
    host = LocalHost(facts={facts.TenantSources: left})
    kept = {"images": [], "environments": ["holdfast-tenant-notes"]}
    assert host.planned(operations.pruned, **kept) == ["rm -rf /opt/holdfast/holdfast-tenant-old"]


OTHER = IMAGE.replace("9f86", "0f86")


def test_an_image_is_recorded_and_pulled_once() -> None:
    missing = facts.SourcesState()
    host = LocalHost(facts={facts.TenantSources: missing})
    (command,) = host.planned(operations.pulled, images=[IMAGE])
    assert command.index(f"echo {IMAGE} >> {facts.RECORD}") < command.index("docker pull")
    there = LocalHost(facts={facts.TenantSources: facts.SourcesState((IMAGE,), frozenset({IMAGE}))})
    assert there.planned(operations.pulled, images=[IMAGE]) == []


def test_an_image_that_no_tenant_names_goes_and_those_of_others_stay() -> None:
    host = LocalHost(facts={facts.TenantSources: facts.SourcesState((OTHER, IMAGE), frozenset())})
    removal, record = host.planned(operations.pruned, images=[IMAGE], environments=[])
    assert f"docker image rm {OTHER}" in removal
    assert IMAGE not in removal
    assert record == f"cat > {facts.RECORD}"
    assert host.planned(operations.pruned, images=[IMAGE, OTHER], environments=[]) == []


def test_the_fact_asks_the_engine_for_each_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "RECORD", str(tmp_path / "images"))
    (tmp_path / "images").write_text(f"{OTHER}\n{OTHER}\n")
    docker, systemctl = tmp_path / "docker", tmp_path / "systemctl"
    docker.write_text(f'#!/bin/sh\n[ "$*" = "image inspect {IMAGE}" ]\n')
    systemctl.write_text("#!/bin/sh\nexit 0\n")
    for program in (docker, systemctl):
        program.chmod(0o755)
    found = LocalHost(programs=tmp_path).get_fact(facts.TenantSources, wanted=[IMAGE, OTHER])
    assert found == facts.SourcesState((OTHER,), frozenset({IMAGE}))
