"""A switch of modes, run against stand-ins of systemd and the driver: done whole or undone."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from holdfast.gpu import mode_program
from holdfast.gpu.mode_program import CardSet, Check, Failed, House, Switch, Tenant
from tests.unit.fake_upstreams import free_port

CARD = "GPU-1"
_SYSTEMCTL = """#!/bin/sh
# A unit is active while there is a file of its name; "broken" ones do not come up.
verb=$1; shift
case $verb in
is-active) shift; for unit; do [ -e active/$unit ] && echo active || echo inactive; done ;;
stop) for unit; do rm -f active/$unit; done ;;
start) for unit; do [ -e broken/$unit ] || touch active/$unit; done ;;
restart) [ ! -e broken/$1 ] ;;
show) [ ! -e group ] || echo "/../../..$PWD/group" ;;
esac
"""
_SMI = """#!/bin/sh
# One line of the load is one look; the last one stays.
case $1 in
--query-gpu=uuid,utilization.gpu)
    echo "GPU-1, $(head -n 1 load)"
    [ $(wc -l < load) -lt 2 ] || sed -i 1d load ;;
--query-compute-apps=*) cat holders 2>/dev/null || true ;;
esac
"""
_MEMORY = """#!/bin/sh
# The room there is; the seconds come first and tell whether anything was stopped by now.
if [ "$1" = 0 ]; then [ ! -e taken-before ]; else [ ! -e taken-after ]; fi
"""
_HOLD = """#!/bin/sh
echo hold >> told
[ ! -e asked ] || { echo "chat: 1 requests are under way" >&2; exit 1; }
"""
_RELEASE = """#!/bin/sh
echo release >> told
"""


@dataclass(frozen=True)
class Host:
    """One card and two modes: `agent`, which is in force and runs chat, and `creative`."""

    folder: Path

    def __post_init__(self) -> None:
        for name in ("active", "broken", "bin"):
            (self.folder / name).mkdir()
        programs = {"systemctl": _SYSTEMCTL, "nvidia-smi": _SMI, "journalctl": "#!/bin/sh\n"}
        own = {"memory": _MEMORY, "hold": _HOLD, "release": _RELEASE}
        for name, text in {**programs, **own}.items():
            (self.folder / "bin" / name).write_text(text)
            (self.folder / "bin" / name).chmod(0o755)
        (self.folder / "load").write_text("0\n")
        for unit in ("chat.service", "agent.target"):
            (self.folder / "active" / unit).touch()

    def switch(self, now: bool = False, health: Check | None = None, **chat: Any) -> None:
        """Ask for `creative`."""
        tenants = [
            Tenant("chat", "chat.service", (CARD,), **chat),
            Tenant("painter", "painter.service", (CARD,), memory=("20000MiB", CARD), health=health),
        ]
        modes = {"agent": ["chat"], "creative": ["painter"]}
        targets = {"agent": "agent.target", "creative": "creative.target"}
        cards = CardSet("desk", {CARD: "slot-0"}, "agent", modes, targets)
        house = House([cards], {tenant.name: tenant for tenant in tenants})
        Switch(house, cards, "creative", self.folder).run(0, now)

    def refuses(self, **how: Any) -> str:
        """Ask for `creative`, and hear why not."""
        with pytest.raises(Failed) as failed:
            self.switch(**how)
        return str(failed.value)

    @property
    def active(self) -> set[str]:
        return {path.name for path in (self.folder / "active").iterdir()}

    @property
    def record(self) -> str:
        file = self.folder / "desk"
        return file.read_text().strip() if file.exists() else "agent"

    def told(self) -> list[str]:
        file = self.folder / "told"
        return file.read_text().split() if file.exists() else []

    @property
    def is_as_before(self) -> bool:
        return (self.active, self.record) == ({"chat.service", "agent.target"}, "agent")

    @property
    def is_switched(self) -> bool:
        return (self.active, self.record) == ({"painter.service", "creative.target"}, "creative")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mode_program, "MEMORY_PROGRAM", f"{tmp_path}/bin/memory")
    monkeypatch.setattr(mode_program, "PAUSE_SECONDS", 0.01)
    # To go back it ignores interrupts; the test's own process still does.
    monkeypatch.setattr(mode_program.signal, "signal", lambda *_: None)
    return Host(tmp_path)


def test_cards_that_are_idle_go_to_the_other_mode(host: Host) -> None:
    host.switch()
    assert host.is_switched


@pytest.mark.parametrize("load", ["1\n", "0\n0\n100\n"])
def test_cards_at_work_stay_where_they_are(host: Host, load: str) -> None:
    # The second is at work between two looks.
    (host.folder / "load").write_text(load)
    assert "chat is busy: slot-0 is at work" in host.refuses()
    assert host.is_as_before


def test_who_does_not_say_that_it_is_idle_is_busy(host: Host) -> None:
    idle = Check(f"http://127.0.0.1:{free_port()}/queue", "[]", 1)
    assert "chat is busy" in host.refuses(idle=idle)
    assert host.is_as_before


def test_now_asks_no_service(host: Host) -> None:
    (host.folder / "load").write_text("100\n")
    host.switch(now=True)
    assert host.is_switched


def test_an_engine_with_one_request_under_way_is_busy_and_lets_its_callers_in_again(
    host: Host,
) -> None:
    (host.folder / "asked").touch()
    said = host.refuses(hold=(f"{host.folder}/bin/hold",), release=(f"{host.folder}/bin/release",))
    assert said == "chat is busy: 1 requests are under way"
    assert host.is_as_before
    assert host.told() == ["hold", "release"]


def test_room_that_others_hold_is_seen_before_anything_stops(host: Host) -> None:
    (host.folder / "taken-before").touch()
    said = host.refuses(hold=(f"{host.folder}/bin/hold",), release=(f"{host.folder}/bin/release",))
    assert "painter does not find its cards free" in said
    assert host.is_as_before
    assert host.told() == []


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("taken-after", "painter does not find its cards free"),
        (f"broken/{mode_program.LIMITS}", "power limits are not held"),
        ("broken/painter.service", "painter does not start"),
    ],
)
def test_what_fails_on_the_way_ends_with_the_mode_before(host: Host, fault: str, says: str) -> None:
    (host.folder / fault).touch()
    assert says in host.refuses()
    assert host.is_as_before


def test_what_comes_up_and_does_not_answer_is_stopped_again(host: Host) -> None:
    silent = Check(f"http://127.0.0.1:{free_port()}/", "ok", 0)
    assert "painter does not answer" in host.refuses(health=silent)
    assert host.is_as_before


@pytest.mark.parametrize(("holder", "is_given_back"), [("4242", False), ("4243", True)])
def test_memory_is_given_back_before_others_start(
    host: Host, monkeypatch: pytest.MonkeyPatch, holder: str, is_given_back: bool
) -> None:
    # Only who was stopped is waited for: a stranger's process would be waited for in vain.
    monkeypatch.setattr(mode_program, "RELEASE_SECONDS", 0.05)
    (host.folder / "group").mkdir()
    (host.folder / "group" / "cgroup.procs").write_text("4242\n")
    (host.folder / "holders").write_text(f"{CARD}, {holder}, 20000, python\n")
    if is_given_back:
        host.switch()
        assert host.is_switched
    else:
        assert "memory of the cards was not given back: process 4242" in host.refuses()
        assert host.is_as_before
