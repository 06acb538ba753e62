"""The engine's configuration: ours in force, the user's untouched; its packages and repository."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pyinfra.api import StringCommand
from pyinfra.api.exceptions import FactProcessError
from pyinfra.context import ctx_host

from facts.docker import DockerEngine, DockerState
from holdfast.docker import (
    LINKS_SCRIPT,
    enforced,
    major_version,
    merged,
    packages,
    refusals,
    vendor_repository,
)
from holdfast.settings import Docker
from operations.docker_engine import configured
from tests.unit.local_host import LocalHost
from tests.unit.recorded_facts import read

KEYS = enforced(Docker(), 29)
BRIDGE = "com.docker.network.bridge"


def test_recorded_state() -> None:
    state = read(DockerEngine)
    assert state.package_version == "26.1.5+dfsg1-9+deb13u1"
    assert state.group_members == ()
    assert not state.unruled
    assert merged(state.daemon_json, enforced(Docker(), 26)) is None


def test_a_machine_without_an_engine() -> None:
    names = "starting daemon_json version group unruled networks containers links until_forwarding"
    names += " started_with"
    headings = [f"#= {name}" for name in names.split()]
    assert read(DockerEngine, headings) == DockerEngine.default()


STARTS = """#!/bin/sh
# An engine that a boot is starting: active at the third question, where it comes up at all.
here=$(dirname "$0")
case $* in
"show --property=ActiveState --value docker.service")
    echo >> "$here/asked"
    if [ -e "$here/never" ] || [ "$(wc -l < "$here/asked")" -lt 3 ]; then echo activating
    else echo active; fi ;;
"--quiet is-active docker.service") [ "$(wc -l < "$here/asked")" -ge 3 ] ;;
esac
"""
ANSWERS = """#!/bin/sh
case $* in
"network ls"*) echo f00 ;;
"network inspect"*) cat "$(dirname "$0")/networks" ;;
esac
"""


@pytest.fixture
def booting(tmp_path: Path) -> LocalHost:
    """A host whose engine is starting, with one network."""
    told = {"Name": "sealed", "Options": {}, "Labels": {}, "Internal": True, "IPAM": {"Config": []}}
    (tmp_path / "networks").write_text(json.dumps([told]) + "\n")
    for name, text in {"systemctl": STARTS, "docker": ANSWERS, "sleep": "#!/bin/sh\n"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return LocalHost(programs=tmp_path)


def test_an_engine_that_is_starting_is_waited_for(booting: LocalHost) -> None:
    assert list(booting.get_fact(DockerEngine).networks) == ["sealed"]


def test_an_engine_that_never_comes_up_is_no_machine_without_networks(
    booting: LocalHost, tmp_path: Path
) -> None:
    (tmp_path / "never").touch()
    with pytest.raises(FactProcessError, match="still starting after 120 s"):
        booting.get_fact(DockerEngine)


@pytest.mark.parametrize("content", [None, "", "\n", "{}"])
def test_without_keys_of_the_user_it_is_ours_alone(content: str | None) -> None:
    text = merged(content, KEYS)
    assert text is not None
    assert json.loads(text) == KEYS
    assert merged(text, KEYS) is None


@pytest.mark.parametrize(
    "theirs",
    [
        {"runtimes": {"nvidia": {"path": "nvidia-container-runtime", "args": []}}},
        {"features": {"cdi": True}, "data-root": "/srv/docker", "registry-mirrors": ["https://m"]},
        {"log-opts": {"labels": "app"}, "experimental": True},
        {"default-network-opts": {"overlay": {"mtu": "1400"}}},
        {"firewall-backend": "iptables", "iptables": True, "userland-proxy": True},
        {"hosts": ["fd://"], "bridge": "", "ip-forward": True, "icc": False},
    ],
)
def test_the_user_s_keys_survive(theirs: dict[str, Any]) -> None:
    text = merged(json.dumps(theirs), KEYS)
    assert text is not None
    found = json.loads(text)
    for key, value in theirs.items():
        if isinstance(value, dict):
            assert value.items() <= found[key].items()
        else:
            assert found[key] == value
    assert found["ip"] == "127.0.0.1"
    assert found["log-opts"]["max-size"] == "10m"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ip", "0.0.0.0"),  # noqa: S104
        ("live-restore", False),
        ("log-driver", "syslog"),
        ("log-opts", {"max-size": "10g"}),
        ("default-network-opts", "nonsense"),
    ],
)
def test_ours_are_enforced(key: str, value: Any) -> None:
    text = merged(json.dumps({**KEYS, key: value}), KEYS)
    assert text is not None
    assert json.loads(text) == KEYS


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"debug": true,}', "not valid JSON"),
        ("[]", "is not a JSON object"),
        ('{"firewall-backend": "nftables"}', "no DOCKER-USER"),
        ('{"iptables": false}', "iptables to False.*published ports"),
        ('{"ip6tables": false}', "over IPv6"),
        ('{"iptables": 0, "ip6tables": null}', "ip6tables|iptables"),
        ('{"ip-forward": false}', "forwarding"),
        ('{"ip-forward-no-drop": true}', "forwards packets"),
        ('{"ip-masq": false}', "no rule covers"),
        ('{"allow-direct-routing": true}', "bypass the rules"),
        ('{"userland-proxy": false}', "loopback"),
        ('{"bridge": "br0"}', "no rule covers"),
        ('{"bridge": "none"}', "no rule covers"),
        ('{"group": "users"}', "are root"),
        ('{"hosts": ["fd://", "tcp://0.0.0.0:2375"]}', "root"),
        ('{"hosts": "tcp://127.0.0.1:2375"}', "root"),
        *(
            (json.dumps({"default-network-opts": {"bridge": {f"{BRIDGE}.{key}": value}}}), words)
            for key, value, words in (
                ("gateway_mode_ipv4", "nat-unprotected", "bypass the rules"),
                ("gateway_mode_ipv6", "routed", "bypass the rules"),
                ("enable_ip_masquerade", "false", "no rule covers"),
                ("trusted_host_interfaces", "eth0", "bypass the rules"),
            )
        ),
    ],
)
def test_what_cannot_be_merged_is_refused_in_one_sentence(content: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as refusal:
        merged(content, KEYS)
    assert "\n" not in str(refusal.value)


def test_a_refusal_of_the_plan_names_the_host_the_file_and_the_mend() -> None:
    (refusal,) = refusals("rack", '{"iptables": false}')
    assert str(refusal) == (
        "rack: docker = '/etc/docker/daemon.json': /etc/docker/daemon.json sets iptables to False,"
        " which leaves published ports and networks without a rule; remove that key."
    )
    assert not refusals("rack", None)
    assert not refusals("rack", GOOD.daemon_json)


STARTED = (
    "{ path=/usr/sbin/dockerd ; argv[]=/usr/sbin/dockerd -H fd:// $DOCKER_OPTS"
    " ; ignore_errors=no ; start_time=[n/a] ; pid=0 ; code=(null) ; status=0/0 }\n"
)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ('DOCKER_OPTS="--dns 192.168.1.1 --iptables=false"', "iptables as False.*published ports"),
        ("DOCKER_OPTS=--ip6tables=0", "over IPv6"),
        ("DOCKER_OPTS='--ip-forward=FALSE'", "forwarding"),
        ("OPTS=--ip-masq=0", "from addresses that no rule covers"),
        ("OPTS=--userland-proxy=false HTTP_PROXY=http://proxy:3128", "loopback"),
        ("{ argv[]=/usr/bin/dockerd --ip-forward-no-drop ; }", "forwards packets"),
        ("{ argv[]=/usr/bin/dockerd --allow-direct-routing=true ; }", "bypass the rules"),
        ("{ argv[]=/usr/bin/dockerd -H fd:// -H tcp://0.0.0.0:2375 ; }", "root"),
        ("{ argv[]=/usr/bin/dockerd -Htcp://0.0.0.0:2375 ; }", "root"),
        ("{ argv[]=/usr/bin/dockerd --host=tcp://127.0.0.1:2375 ; }", "root"),
        ("{ argv[]=/usr/bin/dockerd -b br0 ; }", "no rule covers"),
        ("{ argv[]=/usr/bin/dockerd -b=none ; }", "no rule covers"),
        ("{ argv[]=/usr/bin/dockerd --group users ; }", "are root"),
        ("{ argv[]=/usr/bin/dockerd --firewall-backend nftables ; }", "no DOCKER-USER"),
    ],
)
def test_an_engine_that_is_started_otherwise_is_refused(more: str, words: str) -> None:
    (refusal,) = refusals("rack", None, STARTED + more)
    assert re.search(words, str(refusal))
    assert "drop-ins or /etc/default/docker" in str(refusal)


@pytest.mark.parametrize(
    "more",
    [
        "",
        "OPTS=--iptables=true --ip6tables=1 -H unix:///run/docker.sock --group docker",
        "{ argv[]=/usr/bin/dockerd -H fd:// --containerd=/run/containerd/containerd.sock ; }",
    ],
)
def test_an_engine_that_is_started_as_usual_is_not(more: str) -> None:
    assert refusals("rack", None, STARTED + more) == []


def test_the_fact_asks_how_the_engine_is_started(tmp_path: Path) -> None:
    variables = tmp_path / "docker"
    variables.write_text('# OPTS=--x\nDOCKER_OPTS="--iptables=false"\nHTTP_PROXY=http://u:p@x\n')
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(
        "#!/bin/sh\ncase $2 in\n"
        f"*EnvironmentFiles) echo '{variables} (ignore_errors=yes)' ;;\n"
        "*ExecStart,Environment) echo 'argv[]=/usr/sbin/dockerd $DOCKER_OPTS' ;;\nesac\n"
    )
    systemctl.chmod(0o755)
    done = subprocess.run(
        ["sh", "-c", DockerEngine().command()],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    told = DockerEngine().process(done.stdout.splitlines()).started_with
    assert "argv[]=/usr/sbin/dockerd" in told
    assert "--iptables=false" in told
    assert "u:p" not in told
    assert "OPTS=--x" not in told


def test_whom_containers_ask_is_ours_when_declared() -> None:
    assert "dns" not in KEYS
    text = merged('{"dns": ["127.0.0.1"]}', enforced(Docker(dns=["192.168.1.1"]), 29))
    assert text is not None
    assert json.loads(text)["dns"] == ["192.168.1.1"]


def test_an_old_engine_is_not_given_keys_it_would_not_start_with() -> None:
    assert "default-network-opts" not in enforced(Docker(), 20)
    assert "default-network-opts" in enforced(Docker(), 24)


@pytest.mark.parametrize(
    ("version", "major"),
    [
        ("5:29.1.3-1~debian.13~trixie", 29),
        ("26.1.5+dfsg1-9+deb13u1", 26),
        ("20.10.24+dfsg1-1+deb12u1", 20),
        (None, None),
    ],
)
def test_major_version(version: str | None, major: int | None) -> None:
    assert major_version(version) == major


def test_packages_and_repository() -> None:
    distribution = Docker(source="distribution")
    assert packages(distribution, "debian13") == ["docker.io", "docker-cli"]
    assert packages(distribution, "debian12") == ["docker.io"]
    assert "docker-ce" in packages(Docker(), "ubuntu2404")
    noble = vendor_repository("ubuntu2404")
    assert (noble.url, noble.suite, noble.components) == (
        "https://download.docker.com/linux/ubuntu",
        "noble",
        ["stable"],
    )


def _commands(state: DockerState) -> list[Any]:
    with ctx_host.use(LocalHost(facts={DockerEngine: state})):
        return list(configured._inner(settings=Docker(), links=["eth1"]))


GOOD = DockerState(json.dumps(enforced(Docker(), 29)), "5:29.1.3-1", (), unruled=False)


def test_nothing_is_run_when_all_is_so() -> None:
    assert _commands(GOOD) == []


def test_the_engine_judges_a_new_file_where_it_can() -> None:
    for version, judged in (("5:29.1.3-1", True), ("20.10.24+dfsg1-1", False)):
        (command,) = _commands(DockerState(None, version, (), unruled=False))
        text = command.get_raw_value()
        assert ("dockerd --validate" in text) is judged
        # The content may hold a proxy's password.
        assert "live-restore" not in text


def test_a_refusal_changes_nothing() -> None:
    (command,) = _commands(DockerState("{,}", "5:29.1.3-1", ("eve",), unruled=True))
    assert not isinstance(command, StringCommand)


@pytest.mark.parametrize(
    ("devices", "until_forwarding", "told"),
    [
        (set(), {"eth1"}, True),
        ({"usb0"}, {"usb0"}, True),
        ({"usb0"}, {"docker0", "veth1", "default"}, False),
        (set(), set(), False),
    ],
)
def test_the_hosts_own_links_keep_their_routes(
    devices: set[str], until_forwarding: set[str], told: bool
) -> None:
    state = dataclasses.replace(
        GOOD, devices=frozenset(devices), until_forwarding=frozenset(until_forwarding)
    )
    commands = [command.get_raw_value() for command in _commands(state)]
    assert commands == [LINKS_SCRIPT] * told


def test_flushed_chains_and_group_members_are_mended() -> None:
    state = DockerState(GOOD.daemon_json, GOOD.package_version, ("eve", "mallory"), unruled=True)
    assert [command.get_raw_value() for command in _commands(state)] == [
        "systemctl restart docker.service",
        "gpasswd --delete eve docker",
        "gpasswd --delete mallory docker",
    ]
