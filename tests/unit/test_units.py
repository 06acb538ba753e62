"""Units: the recorded states, and the steps from each state to the wanted one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from facts.units import UnitState, UnitStates, seconds_of
from operations.units import Unit, settle
from tests.unit.local_host import LocalHost
from tests.unit.recorded_facts import read

RUNNING = UnitState(
    load="loaded",
    active="active",
    file_state="enabled",
    needs_reload=False,
    started=100.0,
    changed=100.0,
    newest_watched=50.0,
)

OTHERS = Unit("x.service", enabled=None, running=None, restart_after=["/f"])


def _plan(unit: Unit, **state: Any) -> list[str]:
    host = LocalHost(facts={UnitStates: {unit.name: replace(RUNNING, **state)}})
    return host.planned(settle, units=[unit])


def test_recorded_units() -> None:
    states = read(UnitStates)
    ssh = states["ssh.service"]
    assert (ssh.load, ssh.active, ssh.file_state) == ("loaded", "active", "enabled")
    assert ssh.started == pytest.approx(1795246974.995118)
    assert ssh.changed == pytest.approx(1795246978.455689)
    assert ssh.newest_watched == 1778070812.0
    assert states["systemd-timesyncd.service"].newest_watched is None
    absent = states["nonexistent.service"]
    assert (absent.load, absent.started) == ("not-found", None)
    assert absent.newest_watched == 1795246824.0


def test_never_has_no_seconds() -> None:
    assert seconds_of("") is None


def test_a_settled_unit_is_left_alone() -> None:
    assert _plan(Unit("x.service")) == []


def test_a_mount_s_new_options_are_read_before_its_automount_is_restarted() -> None:
    unit = Unit("mnt-nas.automount", restart_after=["/etc/systemd/system/mnt-nas.mount"])
    automount = replace(RUNNING, newest_watched=150.0)
    mount = replace(RUNNING, needs_reload=True)
    host = LocalHost(facts={UnitStates: {unit.name: automount, "mnt-nas.mount": mount}})
    assert host.planned(settle, units=[unit]) == [
        "systemctl daemon-reload",
        "systemctl reset-failed mnt-nas.automount 2>/dev/null; systemctl restart mnt-nas.automount",
    ]


def test_units_that_may_take_each_others_place_all_stop_before_one_starts() -> None:
    names = ["one.service", "two.service", "same.service"]
    newer = replace(RUNNING, newest_watched=150.0)
    states = dict(zip(names, (newer, newer, RUNNING), strict=True))
    host = LocalHost(facts={UnitStates: states})
    planned = host.planned(settle, units=[Unit(name) for name in names], together=True)
    assert planned[0] == "systemctl stop one.service two.service"
    assert [line.rpartition("; ")[2] for line in planned[1:]] == [
        "systemctl restart one.service",
        "systemctl restart two.service",
    ]


def test_a_start_that_is_not_waited_for_is_waited_for_later() -> None:
    stopped = replace(RUNNING, active="inactive")
    begun = replace(RUNNING, active="activating")
    unit = Unit("slow.service", restart_after=["/f"])

    def planned(state: UnitState, *, wait: bool) -> list[str]:
        host = LocalHost(facts={UnitStates: {unit.name: state}})
        lines = host.planned(settle, units=[unit], wait=wait)
        return [line.rpartition("; ")[2] for line in lines]

    newer = replace(RUNNING, newest_watched=150.0)
    assert planned(stopped, wait=False) == ["systemctl start --no-block slow.service"]
    assert planned(newer, wait=False) == ["systemctl restart --no-block slow.service"]
    assert planned(begun, wait=False) == []
    assert planned(begun, wait=True) == ["systemctl start slow.service"]
    assert planned(RUNNING, wait=True) == []


@pytest.mark.parametrize(
    ("unit", "state", "steps"),
    [
        (Unit("x.service"), {"active": "inactive"}, ["start"]),
        (Unit("x.service"), {"active": "failed"}, ["start"]),
        (Unit("x.service"), {"file_state": "disabled"}, ["enable"]),
        (Unit("x.service", enabled=False), {}, ["disable"]),
        (Unit("x.service", running=False), {}, ["stop"]),
        (Unit("x.service"), {"file_state": "static"}, []),
        (Unit("x.service", restart_after=["/f"]), {"newest_watched": 150.0}, ["restart"]),
        (
            Unit("x.service", restart_after=["/f"], reload=True),
            {"newest_watched": 150.0},
            ["reload-or-restart"],
        ),
        (
            Unit("x.service", restart_after=["/f"], reload=True),
            {"newest_watched": 150.0, "changed": 160.0},
            [],
        ),
        (Unit("x.service"), {"needs_reload": True}, ["daemon-reload", "restart"]),
        (
            Unit("x.service"),
            {"load": "not-found", "active": "inactive", "file_state": "", "started": None},
            ["daemon-reload", "enable", "start"],
        ),
        (Unit("x.service", masked=True), {}, ["mask"]),
        (Unit("x.service", masked=True), {"file_state": "masked", "load": "masked"}, []),
        (
            Unit("x.service"),
            {"file_state": "masked", "load": "masked", "active": "inactive"},
            ["unmask", "enable", "start"],
        ),
        (OTHERS, {"newest_watched": 150.0}, ["restart"]),
        (OTHERS, {"needs_reload": True}, ["daemon-reload", "restart"]),
        (OTHERS, {"newest_watched": 150.0, "active": "inactive", "file_state": "disabled"}, []),
        (OTHERS, {"file_state": "masked", "load": "masked", "active": "inactive"}, []),
        (OTHERS, {"load": "not-found", "active": "inactive", "file_state": ""}, []),
    ],
)
def test_each_state_has_its_steps(unit: Unit, state: dict[str, Any], steps: list[str]) -> None:
    commands = [command.rpartition("systemctl ")[2] for command in _plan(unit, **state)]
    assert [command.split()[0] for command in commands] == steps
