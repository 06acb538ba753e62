"""A switch of modes, run against stand-ins of systemd and the driver: done whole or undone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from holdfast.host_programs import mode as mode_program
from holdfast.host_programs.mode import CardSet, Check, Failed, House, Switch, Tenant
from holdfast.shipping import text_of
from tests.unit.fake_upstreams import free_port
from tests.unit.faults import WAS_KILLED, inject

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
[ ! -e asked ] || { echo "chat: 1 requests are still running" >&2; exit 1; }
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

    def house(self, health: Check | None = None, **chat: Any) -> House:
        """What the inventory declares."""
        tenants = [
            Tenant("chat", "chat.service", (CARD,), **chat),
            Tenant("painter", "painter.service", (CARD,), memory=("20000MiB", CARD), health=health),
        ]
        modes = {"agent": ["chat"], "creative": ["painter"]}
        targets = {"agent": "agent.target", "creative": "creative.target"}
        cards = CardSet("desk", {CARD: "slot-0"}, "agent", modes, targets)
        return House([cards], {tenant.name: tenant for tenant in tenants})

    def switch(self, now: bool = False, **how: Any) -> None:
        """Ask for `creative`."""
        house = self.house(**how)
        Switch(house, house.sets[0], "creative", self.folder).run(0, now)

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

    def place_program(self) -> None:
        """Have the program itself, which meets faults."""
        house = self.house(**self.doors)
        tenants = [asdict(tenant) for tenant in house.tenants.values()]
        told = {"sets": [asdict(one) for one in house.sets], "tenants": tenants}
        (self.folder / "modes.json").write_text(json.dumps(told))
        program = text_of(mode_program)
        memory = f"{self.folder}/bin/memory"
        inject(program, self.folder / "mode.py", PAUSE_SECONDS=0.01, MEMORY_PROGRAM=memory)

    @property
    def doors(self) -> dict[str, Any]:
        """How the engine is held and released."""
        return {name: (f"{self.folder}/bin/{name}",) for name in ("hold", "release")}

    def run(self, *arguments: str, **environment: str) -> tuple[int, str]:
        """Run the program; its exit status, negative where it was killed, and what it said."""
        where = [f"--config={self.folder / 'modes.json'}", f"--present={self.folder}"]
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(self.folder / "mode.py"), *arguments, *where],
            env={**os.environ, "FAULT_RECORD": str(self.folder / ".desk.begun"), **environment},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stderr

    def units(self, **environment: str) -> tuple[int, str]:
        """What systemd does: a unit that switches, and where it fails one that undoes."""
        status, said = self.run("creative", "--here", **environment)
        undone = status
        while undone:
            undone, more = self.run("--undo", "desk", **environment)
            said += more
            assert undone <= 0, said
        return status, said

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
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return Host(tmp_path)


def test_cards_that_are_idle_go_to_the_other_mode(host: Host) -> None:
    host.switch()
    assert host.is_switched


@pytest.mark.parametrize("load", ["1\n", "0\n0\n100\n"])
def test_cards_at_work_stay_where_they_are(host: Host, load: str) -> None:
    # The second is at work between two looks.
    (host.folder / "load").write_text(load)
    assert "chat is busy: slot-0 is busy" in host.refuses()
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
    assert said == "chat is busy: 1 requests are still running"
    assert host.is_as_before
    assert host.told() == ["hold", "release"]


def test_room_that_others_hold_is_seen_before_anything_stops(host: Host) -> None:
    (host.folder / "taken-before").touch()
    said = host.refuses(hold=(f"{host.folder}/bin/hold",), release=(f"{host.folder}/bin/release",))
    assert "the cards of painter are not free" in said
    assert host.is_as_before
    assert host.told() == []


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("taken-after", "the cards of painter are not free"),
        (f"broken/{mode_program.LIMITS}", "power limits could not be set"),
        ("broken/painter.service", "painter did not start"),
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
        assert "memory of the cards was not released: process 4242" in host.refuses()
        assert host.is_as_before


def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    tmp_path.mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    host = Host(tmp_path)
    host.place_program()
    return host


def _is_whole(host: Host, said: str) -> None:
    assert host.is_as_before or host.is_switched, (said, host.active, host.record)
    assert host.told()[-1:] != ["hold"], (said, "callers are kept out for good")
    assert not (host.folder / ".desk.begun").exists(), said


@pytest.mark.parametrize("fault", ["SIGKILL", "SIGTERM", "SIGHUP", "ENOSPC"])
def test_whatever_ends_it_at_whatever_step_one_mode_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    seen = {True: 0, False: 0}
    for at in range(1, 100):
        host = _fresh(tmp_path / str(at), monkeypatch)
        status, said = host.units(FAULT=f"{fault}:{at}")
        _is_whole(host, f"{fault} at {at}: {said}")
        seen[host.is_switched] += 1
        if f"step {at} " not in said:
            break
    # The last run met no fault: every step has had its own.
    assert (status, host.is_switched, said.count("step ")) == (0, True, at - 1), said
    assert at > (3 if fault == "ENOSPC" else 15), at
    assert seen[False] >= at - 5, seen


@pytest.mark.parametrize("step", [mode_program.HELD, mode_program.SWITCHING])
def test_what_undoes_it_may_be_killed_at_whatever_step_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    for at in range(1, 100):
        host = _fresh(tmp_path / str(at), monkeypatch)
        faults = {"FAULT": f"SIGKILL:@{step}", "UNDO_FAULT": f"SIGKILL:{at}"}
        _, said = host.units(**faults, FAULT_FOLDER=str(host.folder))
        _is_whole(host, f"{step}, then the undo's {at}: {said}")
        assert host.is_as_before, said
        if not (host.folder / WAS_KILLED).exists():
            break
    assert f"undo {at - 1} " in said, said
    assert f"undo {at} " not in said, said
    assert at > 3, at


def test_a_switch_that_was_killed_for_good_is_undone_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = _fresh(tmp_path / "host", monkeypatch)
    assert host.run("creative", "--here", FAULT=f"SIGKILL:@{mode_program.SWITCHING}")[0] < 0
    (host.folder / "broken/painter.service").touch()
    status, said = host.run("creative", "--here")
    assert (status, "the previous switch was killed" in said) == (1, True), said
    assert host.is_as_before


def test_words_that_are_no_text_keep_no_mode_from_coming_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The last words of a unit are read from the journal, and a service may write any bytes there.
    host = _fresh(tmp_path / "host", monkeypatch)
    (host.folder / "bin/journalctl").write_text("#!/bin/sh\nprintf 'no \\377 card\\n'\n")
    (host.folder / "broken" / mode_program.LIMITS).touch()
    status, said = host.run("creative", "--here")
    assert status == 1
    assert "power limits could not be set: no \N{REPLACEMENT CHARACTER} card" in said
    _is_whole(host, said)
