"""Routers answer callers with a key, name the engine that answered, and reveal nothing else.

If callers have one key each, a host has only digests, so no request is made for them here;
tests/drill/personal.py makes some.
"""

from __future__ import annotations

import json
import re
import shlex

import pytest
from testinfra.host import Host

from holdfast.engines.server import questions
from holdfast.engines.servers import declared_engines
from holdfast.router import CALLERS, RouterNames, digest, ladder, posted_paths
from holdfast.routing import queue_service
from holdfast.secrets import require
from holdfast.settings import HostSettings
from tests.host.doors import engine_is_wanted


@pytest.fixture(scope="module")
def routers(settings: HostSettings) -> list[RouterNames]:
    if not settings.routers:
        pytest.skip("this host has no router")
    return [RouterNames(router) for router in settings.routers]


def _shared(routers: list[RouterNames]) -> list[RouterNames]:
    """Routers whose callers' key is on the host."""
    found = [names for names in routers if names.router.api_key]
    if not found:
        pytest.skip("all callers of this host's routers have keys of their own")
    return found


def _has_a_rung(host: Host, settings: HostSettings, names: RouterNames) -> bool:
    """Whether an answer is expected; in the active mode a chain may have no engine."""
    router = names.router
    wanted = (engine_is_wanted(host, settings, name) for name in router.engines)
    return router.floor or bool(router.clouds) or any(wanted)


def _processes(routers: list[RouterNames]) -> list[str]:
    """The running units of the routers' HAProxy processes."""
    doors = [door.service for names in routers for door in names.doors if door.is_open]
    return doors + [f"{names.drain_stem}.service" for names in routers if names.router.queue]


def _queues(routers: list[RouterNames]) -> list[str]:
    services = [queue_service(names.router) for names in routers]
    return [service.unit for service in services if service]


def _body(settings: HostSettings, names: RouterNames) -> object:
    declared = {engine.name: engine for engine in declared_engines(settings)}
    if not names.router.engines:
        return {"prompt": "ready", "max_tokens": 1}
    _, body = questions(declared[names.router.engines[0]])[0]
    return body


def _path(settings: HostSettings, names: RouterNames) -> str:
    paths = posted_paths(settings, names.router)
    return "/v1/completions" if "/v1/completions" in paths else paths[0]


def _ask(
    host: Host, names: RouterNames, path: str, body: object = None, key: str = ""
) -> tuple[int, str, str]:
    # The header is sent on standard input, because this file forbids keys in command lines.
    own = f"printf 'Authorization: %s' \"$(sed -n 's/^{CALLERS} //p' {names.key_file})\""
    data = f"--json '{json.dumps(body)}'" if body is not None else ""
    answer = host.check_output(
        f"{own if key == 'own' else 'echo'} | curl --silent --path-as-is --max-time 300"
        f" --header @- {data} --write-out '\\n%header{{x-holdfast-engine}}\\n%{{http_code}}'"
        f" '{names.url}{path}'"
    )
    text, engine, status = answer.rsplit("\n", 2)
    return int(status), engine, text


def test_each_answers_with_its_key_and_names_the_engine(
    host: Host, settings: HostSettings, routers: list[RouterNames]
) -> None:
    for names in _shared(routers):
        body = _body(settings, names)
        status, engine, text = _ask(host, names, _path(settings, names), body, key="own")
        if _has_a_rung(host, settings, names):
            assert status == 200, text
            assert engine in {rung.name for rung in ladder(settings, names.router)}
        else:
            assert (status, engine) == (503, "")


def test_each_refuses_a_wrong_key(
    host: Host, settings: HostSettings, routers: list[RouterNames]
) -> None:
    for names in routers:
        for path in posted_paths(settings, names.router):
            status, engine, _ = _ask(host, names, path, _body(settings, names))
            assert (status, engine) == (401, "")


@pytest.mark.parametrize(
    "path",
    [
        *("/anthropic/v1/messages", "/invocations", "//v1//completions", "/v1/%63ompletions"),
        *("/v1/x/../completions", "/v1/completions?x=1", "/metrics", "/v1/load_lora_adapter"),
    ],
)
def test_every_other_path_is_refused(
    host: Host, settings: HostSettings, routers: list[RouterNames], path: str
) -> None:
    for names in routers:
        key = "own" if names.router.api_key else ""
        status, engine, text = _ask(host, names, path, _body(settings, names), key=key)
        # The router's own error.
        assert (status, engine) == (404, ""), text
        assert json.loads(text)["error"]["type"] == "router"


def test_its_health_needs_no_key(
    host: Host, settings: HostSettings, routers: list[RouterNames]
) -> None:
    for names in routers:
        status, engine, text = _ask(host, names, "/health")
        if _has_a_rung(host, settings, names):
            assert (status, engine, text) == (200, "", "ok")
        else:
            assert (status, engine) == (503, "")


def test_each_upstream_is_of_this_host(host: Host, routers: list[RouterNames]) -> None:
    for names in routers:
        doors = [door.name for door in names.doors] + (["drain"] if names.router.queue else [])
        files = " ".join(names.configuration(door) for door in doors)
        lines = host.check_output(f"grep --no-filename --extended-regexp '^ *server' {files}")
        upstreams = [line.split()[2] for line in lines.splitlines()]
        assert upstreams
        assert [at for at in upstreams if not re.match(r"127\.0\.0\.1:\d+$|unix@/run/", at)] == []


def test_it_holds_no_key_but_its_callers_and_its_engines(
    host: Host, settings: HostSettings, routers: list[RouterNames]
) -> None:
    for names in routers:
        held = host.check_output(f"sed 's/ .*//' {names.key_file}").splitlines()
        shared = [CALLERS] if names.router.api_key else []
        own = [digest(require(key.api_key)) for key in names.router.keys]
        assert held == [*shared, *(rung.key for rung in ladder(settings, names.router)), *own]


def test_the_kernel_allows_it_loopback_only(host: Host, routers: list[RouterNames]) -> None:
    units = _processes(routers)
    for unit in units:
        shown = host.check_output(f"systemctl show --property=IPAddressAllow --value {unit}")
        assert shown == "127.0.0.1/32"
    # This tests the rules in force, not the configuration: a shell in the unit's cgroup calls this
    # host's own sshd at an address that is not loopback, so the test needs no other machine.
    address = host.check_output(
        "ip -4 -oneline address show scope global | awk '{split($4, a, \"/\"); print a[1]; exit}'"
    )
    port = host.check_output("sshd -T | awk '$1 == \"port\" {print $2; exit}'")
    call = f"timeout 3 bash -c '</dev/tcp/{address}/{port}'"
    assert host.run(call).succeeded, "a call from outside the unit must succeed"
    # In parallel, because each refused call waits for its timeout.
    calls = [f"{_enter(host, unit)} || echo outside; {call} && echo reached" for unit in units]
    together = " ".join(f"sh -c {shlex.quote(one)} &" for one in calls)
    assert host.run(f"{together} wait").stdout == ""


def _enter(host: Host, unit: str) -> str:
    """Shell text that moves a shell into the cgroup of a unit."""
    group = host.check_output(f"systemctl show --property=ControlGroup --value {unit}")
    return f"echo $$ > /sys/fs/cgroup{group}/cgroup.procs"


def test_only_its_user_can_read_the_queue(host: Host, routers: list[RouterNames]) -> None:
    for names in routers:
        if queue := queue_service(names.router):
            folder = queue.data[0].path
            stray = host.check_output(f"find {folder} ! -user {queue.user} -o -perm /077")
            assert stray == ""
            sockets = host.check_output(
                f"stat --format='%a %U' {names.queue_socket} {names.drain_socket}"
            )
            assert sockets.splitlines() == [
                f"600 router-{names.router.name}",
                f"600 {queue.user}",
            ]


def test_the_age_of_the_queue_is_watched(host: Host, routers: list[RouterNames]) -> None:
    for names in routers:
        if names.router.queue:
            assert host.service(f"{names.queue_stem}-age.timer").is_running
            result = host.check_output(
                f"systemctl show --property=Result --value {names.queue_stem}-age.service"
            )
            assert result == "success"
