"""Assertions for every service of ours, whichever capability declares it.

Tests of a single service are in its capability's file. The drill tests whether an engine restarts
after a kill; on a rack this would take minutes without an answer.
"""

from __future__ import annotations

import shlex

import pytest
from testinfra.host import Host

from facts.places import CONFIGURATION, CREDENTIALS
from holdfast import alerts, tenants
from holdfast.engines.servers import engine_service
from holdfast.engines.units import every
from holdfast.programs import programs, without_network
from holdfast.registry import declared_services
from holdfast.service import ON_FAILURE
from holdfast.settings import HostSettings, Service
from tests.host.doors import engine_is_wanted, listens_only_as_declared


@pytest.fixture(scope="module")
def services(host: Host, settings: HostSettings) -> list[Service]:
    """The services of ours that must run in the active mode."""
    away = {
        engine_service(names.server.name, names.engine).name
        for names in every(settings)
        if not engine_is_wanted(host, settings, names.engine.name)
    }
    away |= {
        each.name
        for each in settings.services
        if each.is_tenant and not engine_is_wanted(host, settings, each.name)
    }
    ours = [each for each in declared_services(settings) if each.unit.startswith("holdfast-")]
    found = [each for each in ours if each.name not in away]
    if not found:
        pytest.skip("no service of ours runs on this host now")
    return found


def test_each_runs_as_its_user(host: Host, services: list[Service]) -> None:
    for service in services:
        shown = host.check_output(
            f"systemctl show --property=ActiveState,User --value {service.unit}"
        )
        assert sorted(shown.splitlines()) == sorted(["active", service.user]), service.name


def test_each_listens_only_where_it_is_declared(
    host: Host, settings: HostSettings, services: list[Service]
) -> None:
    for service in services:
        for listen in service.listens:
            if listen.container:
                kind = "-Hltn" if listen.protocol == "tcp" else "-Hlun"
                lines = host.check_output(f"ss {kind} 'sport = :{listen.port}'").splitlines()
                expected = tenants.addresses(settings, service, listen)
                assert {line.split()[3] for line in lines} == {
                    f"{address}:{listen.port}" for address in expected
                }, service.name
            else:
                listens_only_as_declared(host, listen.port, listen.scope, service.tier)


def test_isolated_units_have_no_network(
    host: Host, settings: HostSettings, services: list[Service]
) -> None:
    isolated = without_network(settings)
    for service in services:
        if service.name in isolated:
            group = host.check_output(f"systemctl show -P ControlGroup {service.unit}")
            pids = host.check_output(f"cat /sys/fs/cgroup{group}/cgroup.procs").split()
            assert pids, service.name
            for pid in pids:
                links = host.check_output(f"nsenter --target {pid} --net ip -brief link")
                assert [line.split()[0] for line in links.splitlines()] == ["lo"], service.name


# Prints each file in which it finds no secret, and each place that contains one. No secret is an
# argument of a program.
_LEAKS = r"""
import json, re, shutil, subprocess, sys
from pathlib import Path

credentials, configuration = map(Path, sys.argv[1:])
secrets = set()
for file in sorted(credentials.iterdir()):
    text = file.read_text()
    found = re.findall(r"Bearer ([^\s\"\\]+)", text)
    found += re.findall(r"://[^:/@\s]*:([^@\s]+)@", text)
    if text.startswith("{"):
        found += json.loads(text).values()
    if re.fullmatch(r"(?!/|.*://)\S+\n?", text):
        found.append(text.strip())
    # Of callers who each have a key a router knows digests, and a folder of the NAS has no login.
    if not found and not re.match(r"[0-9A-Fa-f]{64} |/", text):
        print("no secret was found in", file)
    secrets |= set(found)
places = [*Path("/proc").glob("[0-9]*/cmdline"), *Path("/proc").glob("[0-9]*/environ")]
places += [each for each in configuration.rglob("*") if credentials not in each.parents]
# One that matches nothing, where there is no secret.
secret = re.compile(b"|".join(re.escape(each.encode()) for each in secrets) or b"(?!)")
for place in places:
    try:
        held = b"" if place.is_dir() else place.read_bytes()
        # vLLM reads its key from its own environment, which its own user and root can see.
        held = re.sub(rb"(^|\0)VLLM_API_KEY=[^\0]*", b"", held)
    except OSError:
        continue
    if secret.search(held):
        print(place)
read = ["journalctl", "--no-pager", "--output=cat"]
with subprocess.Popen(read, stdout=subprocess.PIPE) as journal:
    if any(secret.search(line) for line in journal.stdout):
        print("the journal")
if shutil.which("docker"):
    ids = subprocess.run(["docker", "ps", "--quiet"], capture_output=True, text=True).stdout.split()
    shown = subprocess.run(["docker", "inspect", *ids], capture_output=True).stdout if ids else b""
    if secret.search(shown):
        print("docker inspect")
"""


def test_only_root_can_read_secrets_and_they_are_nowhere_else(
    host: Host, services: list[Service]
) -> None:
    modes = host.check_output(f"stat --format='%n %a %U' {CREDENTIALS} {CREDENTIALS}/*")
    own, *files = [line.split() for line in modes.splitlines()]
    assert own[1:] == ["700", "root"]
    assert [name for name, *mode in files if mode != ["600", "root"]] == []
    assert files or not services
    words = shlex.join(["python3", "-I", "-c", _LEAKS, CREDENTIALS, CONFIGURATION])
    assert host.check_output(words) == ""


def test_each_restarts_when_it_ends(host: Host, services: list[Service]) -> None:
    for service in services:
        restart = host.check_output(f"systemctl show -P Restart {service.unit}")
        assert restart in ("always", "on-failure"), service.name


def test_each_timer_waits_for_its_next_run(host: Host, settings: HostSettings) -> None:
    timed = {f"{each.stem}.timer": each.timer.armed for each in programs(settings) if each.timer}
    for timer, armed in timed.items():
        asked = f"systemctl is-enabled {timer}; systemctl is-active {timer}"
        wanted = ["enabled", "active"] if armed else ["disabled", "inactive"]
        assert host.run(asked).stdout.split() == wanted, timer


def test_a_unit_that_fails_leaves_an_alert(host: Host, services: list[Service]) -> None:
    unit = "holdfast-verify-alert.service"
    alert = f"{alerts.ALERTS}/{unit}"
    told = host.run(
        f"rm -f {alert}; systemd-run --quiet --wait --unit={unit}"
        f" --property=OnFailure={ON_FAILURE.replace('%n', unit)} /bin/false;"
        f" timeout 30 sh -c 'until test -s {alert}; do sleep 0.2; done'; status=$?;"
        f" rm -f {alert}; systemctl reset-failed {unit}; exit $status"
    )
    assert told.succeeded, services
