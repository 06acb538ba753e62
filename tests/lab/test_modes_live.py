"""A switch of modes under a real systemd: `pytest -m lab tests/lab/test_modes_live.py`.

The units that switch and that undo, the targets and what systemd does when something is killed are
real; two that serve a folder stand for those that use cards. It takes root and a minute.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict

import pytest

from facts.gpu_modes import UNDO as UNDO_FILE
from facts.places import SYSTEM
from holdfast import alerts
from holdfast.gpu import modes
from holdfast.host_programs import mode as mode_program
from holdfast.host_programs.mode import CardSet, Check, Tenant
from holdfast.render import render
from holdfast.sandbox import EXPOSURE_MAX_ROOT
from holdfast.service.units import service_unit
from holdfast.shipping import text_of
from tests.lab.container_machine import ContainerMachine
from tests.lab.images import ensure_image
from tests.lab.machine import Spec
from tests.lab.programs import bring_python, put

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="a container machine needs root"),
]

SPEC = Spec("box", variant="rack", host_number=12, memory_mib=2048, cpus=2)
PATIENCE_SECONDS = 120
SERVICE = """
[Service]
Type=exec
ExecStartPre=/bin/sleep 3
ExecStart=/usr/bin/python3 -I -m http.server --bind 127.0.0.2 {port}
WorkingDirectory=/srv
"""
PORTS = {"chat": 8301, "painter": 8302}
BOTH = {"agent": "chat", "creative": "painter"}
TARGETS = {mode: modes.target(mode) for mode in BOTH}
SWITCH = mode_program.SWITCH_UNIT.format("desk")
UNDO = mode_program.UNDO_UNIT.format("desk")
BEGUN = f"{modes.PRESENT}/.desk.begun"


def _house() -> str:
    card_set = CardSet("desk", {}, "agent", {mode: [name] for mode, name in BOTH.items()}, TARGETS)
    tenants = [
        Tenant(
            name,
            f"{name}.service",
            # In the place of the commands that shut and open an engine's doors.
            hold=("/usr/local/sbin/told", "hold"),
            release=("/usr/local/sbin/told", "release"),
            health=Check(f"http://127.0.0.2:{PORTS[name]}/", "Directory listing", 20),
        )
        for name in BOTH.values()
    ]
    return json.dumps({"sets": [asdict(card_set)], "tenants": [asdict(one) for one in tenants]})


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerMachine]:
    directory = tmp_path_factory.mktemp("lab") / "box"
    machine = ContainerMachine(directory, SPEC, ensure_image("debian-13", "rack"))
    try:
        machine.start()
        machine.wait_for_boot(PATIENCE_SECONDS)
        machine.wait_for_ssh(PATIENCE_SECONDS)
        bring_python(machine)
        put(machine, modes.CONFIG, _house())
        put(machine, UNDO_FILE, service_unit(modes.undo()))
        put(machine, alerts.NOTIFY.path("service"), service_unit(alerts.NOTIFY))
        put(machine, modes.PROGRAM, text_of(mode_program))
        told = "#!/bin/sh\nmkdir -p /run/holdfast && echo $1 >> /run/holdfast/told\n"
        put(machine, "/usr/local/sbin/told", told)
        put(machine, f"{SYSTEM}/{mode_program.LIMITS}", "[Service]\nExecStart=/bin/true\n")
        for mode, name in BOTH.items():
            put(machine, f"{SYSTEM}/{name}.service", SERVICE.format(port=PORTS[name]))
            drop_in = f"{SYSTEM}/{name}.service.d/{modes.DROP_IN}"
            put(machine, drop_in, render("gpu_modes/service.conf.j2"))
            others = [target for one, target in TARGETS.items() if one != mode]
            target = f"[Unit]\nWants={name}.service\nConflicts={' '.join(others)}\n"
            put(machine, f"{SYSTEM}/{TARGETS[mode]}", target)
        machine.succeed(f"chmod 755 {modes.PROGRAM} /usr/local/sbin/told")
        machine.succeed(f"systemctl daemon-reload && systemctl start {TARGETS['agent']}")
        yield machine
    finally:
        machine.power_off()


@pytest.fixture
def in_agent(box: ContainerMachine) -> ContainerMachine:
    status, said = box.execute(f"{modes.PROGRAM} agent --now 2>&1", timeout_seconds=60)
    assert (status, _is(box, "agent")) == (0, True), said
    box.succeed("rm -f /run/holdfast/told")
    return box


def _is(box: ContainerMachine, mode: str) -> bool:
    units = [f"{name}.service" for name in BOTH.values()] + list(TARGETS.values())
    told = box.execute(f"systemctl is-active {' '.join(units)}")[1].split()
    active = {unit for unit, state in zip(units, told, strict=True) if state == "active"}
    record = box.execute(f"cat {modes.PRESENT}/desk")[1].strip() or "agent"
    return (active, record) == ({f"{BOTH[mode]}.service", TARGETS[mode]}, mode)


def _begin(box: ContainerMachine) -> None:
    """Ask for `creative` from a login of its own, until the other mode has been stopped."""
    box.succeed(
        # A shell has its background jobs ignore Ctrl-C.
        "setsid env --default-signal=INT"
        f" sh -c '{modes.PROGRAM} creative 2>&1 | cat' > /dev/null 2>&1 < /dev/null &"
        " echo $! > /run/caller"
    )
    _until(box, "systemctl is-active painter | grep -q activating")


def _until(box: ContainerMachine, condition: str) -> None:
    box.succeed(f"timeout 40 sh -c 'until {condition}; do sleep 0.05; done'", timeout_seconds=60)


def _ends_in(box: ContainerMachine, mode: str) -> bool:
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        ended = box.execute(f"test ! -e {BEGUN} && ! systemctl --quiet is-active {SWITCH}")[0] == 0
        if ended and _is(box, mode):
            break
        time.sleep(0.2)
    told = box.execute("tail -n 1 /run/holdfast/told")[1].strip()
    return _is(box, mode) and told in ("", "release")


def test_it_is_followed_and_says_how_it_ended(in_agent: ContainerMachine) -> None:
    status, said = in_agent.execute(f"{modes.PROGRAM} creative 2>&1", timeout_seconds=60)
    assert (status, "switched from agent to creative in" in said) == (0, True), said
    assert _ends_in(in_agent, "creative")


def test_it_outlives_the_login_that_asked_for_it(in_agent: ContainerMachine) -> None:
    _begin(in_agent)
    # All of its processes, and the reader of what it says.
    in_agent.succeed("kill -KILL -- -$(cat /run/caller)")
    assert _ends_in(in_agent, "creative")


@pytest.mark.parametrize(
    "end",
    [
        f"systemctl kill --kill-whom=main --signal=KILL {SWITCH}",
        f"systemctl kill --signal=KILL {SWITCH}",
        f"systemctl stop {SWITCH}",
        # As Ctrl-C does.
        "pkill -INT --oldest -f '^/usr/bin/python3 -I /usr/local/sbin/holdfast-mode creative'",
    ],
)
def test_the_mode_before_comes_back_however_it_is_ended(
    in_agent: ContainerMachine, end: str
) -> None:
    _begin(in_agent)
    in_agent.execute(end, timeout_seconds=60)
    assert _ends_in(in_agent, "agent")


def test_what_undoes_it_may_be_killed_too(in_agent: ContainerMachine) -> None:
    _begin(in_agent)
    # All of their processes, as the kernel does when there is no memory.
    in_agent.succeed(f"systemctl kill --signal=KILL {SWITCH}")
    for _ in range(3):
        _until(in_agent, f"test $(systemctl show --property=MainPID --value {UNDO}) -gt 0")
        in_agent.succeed(f"systemctl kill --signal=KILL {UNDO}")
    assert _ends_in(in_agent, "agent")


def test_the_unit_that_undoes_is_closed(in_agent: ContainerMachine) -> None:
    judged = in_agent.succeed(f"systemd-analyze security {UNDO} | tail -n 1")
    (exposure,) = re.findall(r": ([0-9.]+) ", judged)
    assert float(exposure) <= EXPOSURE_MAX_ROOT
