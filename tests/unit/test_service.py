"""What follows from a program's declaration: its units, its files, its restarts."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from pydantic import SecretStr

from holdfast import alerts, service
from holdfast.doors import doors
from holdfast.host_programs import queue
from holdfast.sandbox import Directive
from holdfast.service import (
    EVERY_MINUTE,
    STAYS,
    Credential,
    File,
    Program,
    Proxied,
    Slice,
    Timer,
    UnixSocket,
    Words,
)
from holdfast.service.units import service_unit
from holdfast.settings import Service
from holdfast.shipping import path_of
from operations import program as operations
from operations.host_files import HostFile
from operations.units import NO_OTHER_PROXY, Unit

SYSTEM = "/etc/systemd/system"
KEY = Credential(
    "key", "/etc/holdfast/credentials/echo", lambda read: read("ECHO_KEY").get_secret_value()
)
PROXIED = Proxied(
    doors=tuple(doors("holdfast-echo", 8300, "loopback")),
    socket="/run/holdfast/holdfast-echo/http.sock",
    configuration="/etc/holdfast/echo/",
    posted=("/v1/echo",),
    read=("/health",),
    read_here=("/metrics",),
)


def _program(command: Words = ("/usr/bin/echo-server",), **values: Any) -> Program:
    unit = {"name": "echo", "unit": "holdfast-echo.service", "user": "echo", "tier": "T1"}
    return Program(Service.model_validate(unit), "Holdfast: the echo", command, **values)


def _values(text: str, name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)


def _settled(program: Program) -> dict[str, Unit]:
    return {unit.name: unit for unit in operations.settled([program])}


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each secret is set; its text tells its name."""
    monkeypatch.setattr(operations, "require", lambda name: SecretStr(f"text of {name}"))


def _placed(program: Program) -> dict[str, HostFile]:
    return {file.path: file for file in operations.placed([program])}


def test_a_relaxation_without_a_reason_is_refused() -> None:
    with pytest.raises(ValueError, match=r"holdfast-echo\.service: say why PrivateUsers"):
        _program(relaxed=(Directive("PrivateUsers", "no"),))


@pytest.mark.parametrize("name", ["PrivateUsers", "BindPaths", "SupplementaryGroups", "Group"])
def test_what_may_widen_the_sandbox_is_refused_outside_the_relaxations(name: str) -> None:
    with pytest.raises(ValueError, match=f"move {name} to relaxed, with a reason"):
        _program(tuned=(Directive(name, "x", "with a reason"),))


def test_a_reason_stands_above_the_line_that_it_explains() -> None:
    relaxed = Directive("MemoryDenyWriteExecute", "no", "it compiles what it repeats")
    tuned = Directive("OOMScoreAdjust", "300", "others matter more")
    lines = service_unit(_program(relaxed=(relaxed,), tuned=(tuned,))).splitlines()
    for line in (relaxed, tuned):
        assert lines[lines.index(f"{line.name}={line.value}") - 1] == f"# {line.reason}"


def test_an_isolated_program_has_no_address_family_but_that_of_unix_sockets() -> None:
    unit = service_unit(_program(isolated=True))
    assert _values(unit, "PrivateNetwork") == ["yes"]
    assert _values(unit, "RestrictAddressFamilies") == ["AF_UNIX"]
    assert _values(service_unit(_program()), "PrivateNetwork") == []


def test_a_credential_is_roots_and_a_new_one_restarts_the_program() -> None:
    program = _program(credentials=(KEY,))
    file = _placed(program)[KEY.path]
    assert (file.content, file.mode, file.user) == ("text of ECHO_KEY", "600", "root")
    assert KEY.path in _settled(program)["holdfast-echo.service"].restart_after
    assert _values(service_unit(program), "LoadCredential") == [f"key:{KEY.path}"]
    assert KEY.path in service.paths([program])
    assert KEY.path not in service.texts([program])


def test_a_program_is_restarted_for_each_file_that_it_reads_at_start() -> None:
    program = _program(
        source=queue,
        files=(File("/etc/a", "a"), File("/etc/b", "b", read_at_start=False)),
        reads=("/srv/model",),
        slice=Slice("echo.slice", "The echo's", (Directive("CPUWeight", "400"),)),
    )
    assert _settled(program)["holdfast-echo.service"].restart_after == [
        f"{SYSTEM}/holdfast-echo.service",
        f"{SYSTEM}/echo.slice",
        path_of(queue),
        "/etc/a",
        "/srv/model",
    ]
    modes = {path: file.mode for path, file in _placed(program).items()}
    assert modes["/etc/a"] == modes["/etc/b"] == modes[f"{SYSTEM}/echo.slice"] == "644"
    assert modes[path_of(queue)] == "755"
    assert "/srv/model" not in modes


def test_a_program_with_doors_gets_a_proxy_for_each() -> None:
    program = _program(isolated=True, proxied=PROXIED)
    units = _settled(program)
    assert units["haproxy.service"] == NO_OTHER_PROXY
    for door, is_open in (("loopback", True), ("tailnet", False)):
        for kind in ("socket", "service"):
            unit = units[f"holdfast-echo-{door}.{kind}"]
            assert (unit.enabled, unit.running) == (is_open, is_open)
        assert f"/etc/holdfast/echo/{door}.cfg" in unit.restart_after
    texts = service.texts([program])
    proxy = texts[f"{SYSTEM}/holdfast-echo-loopback.service"]
    assert _values(proxy, "ExecStart") == [
        "/usr/sbin/haproxy -db -f /etc/holdfast/echo/loopback.cfg"
    ]
    assert _values(proxy, "RestrictAddressFamilies") == ["AF_UNIX"]
    assert _values(proxy, "BindsTo") == ["holdfast-echo-loopback.socket"]
    for door, read in (("loopback", "/health /metrics"), ("tailnet", "/health")):
        told = texts[f"/etc/holdfast/echo/{door}.cfg"].splitlines()
        assert "    acl may_post path /v1/echo" in told
        assert f"    acl may_read path {read}" in told
    assert texts.keys() | {alerts.NOTIFY.path("service")} == _placed(program).keys()


def test_a_program_without_doors_leaves_the_machines_own_proxy_alone() -> None:
    assert _settled(_program()).keys() == {"holdfast-echo.service"}


def test_a_socket_is_open_to_one_user_and_starts_the_program() -> None:
    program = _program(socket=UnixSocket("/run/holdfast/holdfast-echo.sock", "caller"))
    socket = service.texts([program])[f"{SYSTEM}/holdfast-echo.socket"]
    assert _values(socket, "Socket(?:User|Mode)") == ["caller", "0600"]
    assert _values(socket, "Wants") == ["holdfast-echo.service"]
    unit = service_unit(program)
    assert _values(unit, "Requires") == _values(unit, "After")[:1] == ["holdfast-echo.socket"]
    assert "[Install]" not in unit
    assert "holdfast-echo.socket" in _settled(program)


def test_a_job_is_started_by_its_timer_and_read_again_when_it_changes() -> None:
    timer = Timer("every hour", (Directive("OnCalendar", "hourly"),))
    job = _program(kind="oneshot", timer=timer, reads=("/etc/told",))
    units = _settled(job)
    assert "/etc/told" in units["holdfast-echo.timer"].restart_after
    assert units.keys() == {"holdfast-echo.timer"}
    assert f"{SYSTEM}/holdfast-echo.service" in units["holdfast-echo.timer"].restart_after
    assert _values(service.texts([job])[f"{SYSTEM}/holdfast-echo.timer"], "OnCalendar") == [
        "hourly"
    ]


def test_a_timer_that_a_host_has_no_use_for_is_stopped() -> None:
    job = _program(kind="oneshot", timer=replace(EVERY_MINUTE, armed=False))
    unit = _settled(job)["holdfast-echo.timer"]
    assert (unit.enabled, unit.running) == (False, False)


def test_a_job_that_also_runs_at_boot_is_enabled_beside_its_timer() -> None:
    job = _program(kind="oneshot", at_boot=True, timer=EVERY_MINUTE, wanted_by=("a.target", "b"))
    assert _values(service_unit(job), "WantedBy") == ["a.target b"]
    unit = _settled(job)["holdfast-echo.service"]
    # One that is at work is left to end.
    assert (unit.enabled, unit.running) == (True, None)


def test_a_job_for_the_boot_alone_is_not_run_by_a_deploy() -> None:
    job = _program(kind="oneshot", at_boot=True)
    assert _settled(job)["holdfast-echo.service"] == Unit("holdfast-echo.service", running=False)
    stays = _settled(replace(job, tuned=(STAYS,)))["holdfast-echo.service"]
    assert (stays.enabled, stays.running) == (True, True)


def test_a_program_that_can_read_its_files_again_is_not_restarted_for_them() -> None:
    loads = _program(kind="oneshot", at_boot=True, tuned=(STAYS,), reload=("/bin/load", "again"))
    assert _values(service_unit(loads), "ExecReload") == ["/bin/load again"]
    assert _settled(loads)["holdfast-echo.service"].reload
    assert not _settled(_program())["holdfast-echo.service"].reload


def test_a_template_is_placed_and_no_unit_of_it_is_settled() -> None:
    template = replace(
        _program(kind="oneshot", alerts=False),
        service=Service(name="echo", unit="holdfast-echo@.service", user="root", tier="T1"),
    )
    assert _settled(template) == {}
    text = _placed(template)[f"{SYSTEM}/holdfast-echo@.service"].content
    assert "OnFailure" not in text
    assert "OnFailure" in service_unit(replace(template, alerts=True))


def test_the_steps_of_a_job_are_run_in_their_order() -> None:
    job = _program(kind="oneshot", then=(("/bin/b",), ("/bin/c",)), after=(("/bin/d",),))
    unit = service_unit(job)
    assert _values(unit, "ExecStart") == ["/usr/bin/echo-server", "/bin/b", "/bin/c"]
    assert _values(unit, "ExecStopPost") == ["/bin/d"]


def test_a_file_of_a_program_has_its_mode_and_its_proof() -> None:
    script = File("/usr/local/lib/echo", "#!/bin/sh", mode="755", validate="sh -n {}")
    placed = _placed(_program(files=(script,)))[script.path]
    assert (placed.mode, placed.validate) == ("755", "sh -n {}")


@pytest.mark.parametrize(
    ("word", "written"),
    [
        ("--port=%d", "--port=%d"),
        ("a b", "'a b'"),
        ("x = 'y'", "'x = \\'y\\''"),
        ("a\nb\\", "'a\\nb\\\\'"),
        (";", "';'"),
        ("", "''"),
    ],
)
def test_a_word_of_a_command_stays_one_word(word: str, written: str) -> None:
    unit = service_unit(_program(command=("/bin/x", word), environment={"A": word}))
    assert _values(unit, "ExecStart") == [f"/bin/x {written}"]
    assert len(_values(unit, "Environment")) == 1
