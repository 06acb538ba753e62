"""The drill of modes: every switch there is, those that cannot be, and what a rack does after one.

Beside the real engine of the drill of serving, the services are stand-ins that hold memory of fake
cards (`stand_in.py`, `tests/doubles`); the units, the targets and systemd are real.
"""

from __future__ import annotations

import json
import random
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import permutations
from pathlib import Path
from typing import Any, Protocol

from holdfast.gpu import limits, modes
from holdfast.host_programs import mode as mode_program
from holdfast.settings import HostSettings
from tests.doubles import guest
from tests.doubles.rack import Rack
from tests.drill import sabotage, sabotages
from tests.drill.engines import ASK_FLOOR, Engines
from tests.drill.pairs import walk
from tests.drill.rehearsal import Act
from tests.drill.site import Site
from tests.lab.machine import Machine

NAMES = ("left", "right")
"""The names of the two cards of the set in the inventory: the rack's first two."""
STAND_IN = "/usr/local/bin/stand-in"
UNIT = """\
[Unit]
Description=A stand-in for {name}
[Service]
Type=exec
ExecStart={program} {name} {port} {mib} {uuids}
Restart=on-failure
RestartSec=5
TimeoutStopSec=20
"""
SERVICES: dict[str, dict[str, Any]] = {
    "painter": {"port": 8301, "gpu_mib": 16000, "cards": ["left", "right"], "tells": True},
    "voice": {"port": 8302, "gpu_mib": 6000, "cards": ["left"], "tells": False},
    "reader": {"port": 8303, "gpu_mib": 20000, "cards": ["right"], "tells": True},
}
"""What stands in; one that ``tells`` says itself whether it is busy, of the other its cards do."""
MODES: dict[str, dict[str, Any]] = {
    "agent": {"services": ["chat"]},
    "creative": {"services": ["painter"], "power_caps_w": {"left": 340, "right": 300}},
    "audio": {"services": ["voice"], "power_caps_w": {"left": 200}},
    # A service of two modes runs on from the one to the other.
    "forensic": {"services": ["reader", "voice"], "power_caps_w": {"right": 250}},
}
DEFAULT = "agent"
CALLERS = 4
CAP_W = 280


class Stage(Protocol):
    """The stage that these tests need."""

    @property
    def cards(self) -> Rack:
        """The rack's cards."""

    @property
    def card_names(self) -> tuple[str, ...]:
        """The names of the cards in the inventory; the first two are `NAMES`."""

    @property
    def rack(self) -> Machine:
        """The machine."""

    @property
    def settings(self) -> HostSettings:
        """The settings of the rack."""


def lay_stand_ins(cards: Rack, folder: Path) -> None:
    """Lay out, from / in a folder, the services that take turns on a rack's first two cards."""
    records = _made(folder / "etc/tmpfiles.d/stand-in.conf")
    records.write_text("d /run/holdfast-rack 0755\nd /run/stand-in 0755\n")
    program = _made(folder / STAND_IN.lstrip("/"))
    program.write_text(Path(__file__).with_name("stand_in.py").read_text())
    program.chmod(0o755)
    known = dict(zip(NAMES, cards.cards, strict=False))
    for name, service in SERVICES.items():
        unit = _made(folder / f"etc/systemd/system/{name}.service")
        uuids = " ".join(known[card].uuid for card in service["cards"])
        unit.write_text(
            UNIT.format(
                program=STAND_IN,
                name=name,
                port=service["port"],
                mib=service["gpu_mib"],
                uuids=uuids,
            )
        )


def card_set() -> dict[str, object]:
    """The set of cards whose services take turns, as an inventory declares it."""
    declared = [{"name": name, **mode} for name, mode in MODES.items()]
    return {"name": "desk", "cards": list(NAMES), "default": DEFAULT, "modes": declared}


def services() -> Iterator[dict[str, object]]:
    """The stand-ins, as an inventory declares them."""
    for name, service in SERVICES.items():
        port = service["port"]
        queue = {"url": f"http://127.0.0.1:{port}/queue", "timeout_seconds": 15}
        idle = {"idle": {**queue, "contains": "running: 0"}} if service["tells"] else {}
        yield {
            "name": name,
            "unit": f"{name}.service",
            "user": f"svc-{name}",
            "tier": "T1",
            "listens": [{"port": port}],
            "run_paths": ["/run/stand-in"],
            "gpu_mib": service["gpu_mib"],
            "cards": service["cards"],
            "health": {**queue, "contains": "running"},
            **idle,
        }


def acts(tried: Callable[[], Modes], engines: Callable[[], Engines]) -> Sequence[Act]:
    """Every switch there is, and those that cannot be."""

    def every_pair() -> None:
        with engines().asking(ASK_FLOOR) as floor_says:
            tried().every_pair()
        engines().expect_floor(floor_says)

    return (
        Act("switch from mode to mode", every_pair, rows=(12, 13)),
        Act("switch while somebody is at work", lambda: tried().busy(), rows=(12,)),
        Act("switch beside a stranger", lambda: tried().strangers(), rows=(12,)),
        Act("switch in vain", lambda: tried().fail(), rows=(12,)),
        Act("stay in another mode, then reboot", lambda: tried().reboot(), rows=(12,)),
    )


class Modes:
    """Tests of the modes of one rack."""

    def __init__(self, stage: Stage, site: Site, chance: random.Random | None = None) -> None:
        """``chance`` chooses a way through all modes; each goes to each other where it is None."""
        self.stage, self.site, self.record = stage, site, site.record
        self._chance = chance
        self.took: dict[tuple[str, str], float] = {}

    @property
    def rack(self) -> Machine:
        """The machine."""
        return self.stage.rack

    @property
    def settings(self) -> HostSettings:
        """What it is to be."""
        return self.stage.settings

    def switch(self, mode: str, *more: str) -> tuple[int, str]:
        """Request a mode as an operator does; returns the exit status and the output."""
        return self.rack.execute(
            f"{modes.PROGRAM} {mode} {' '.join(more)} 2>&1", timeout_seconds=900
        )

    def wrong(self, mode: str) -> list[str]:
        """Differences from the mode ``mode``: units, targets, limits, memory of cards."""
        settings = self.settings
        units = modes.service_units(settings)
        targets = [modes.target(name) for name in MODES]
        told = self.rack.execute(f"systemctl is-active {' '.join([*units, *targets])}")[1].split()
        active = {
            unit for unit, state in zip([*units, *targets], told, strict=True) if state == "active"
        }
        services = MODES[mode]["services"]
        wanted = {modes.unit(settings, name) for name in services} | {modes.target(mode)}
        found = [f"{unit} is or is not active" for unit in active ^ wanted]
        names = self.stage.card_names
        caps = dict.fromkeys(names, CAP_W) | MODES[mode].get("power_caps_w", {})
        said = self.rack.succeed(
            "nvidia-smi --query-gpu=power.limit --format=csv,noheader,nounits"
        ).split()
        if [float(cap) for cap in said] != [float(caps[name]) for name in names]:
            found.append(f"the limits are {said}")
        held = self.rack.succeed(
            "nvidia-smi --query-compute-apps=gpu_uuid,used_memory --format=csv,noheader,nounits"
        ).split("\n")
        expected = sorted(
            f"{card.uuid}, {SERVICES[name]['gpu_mib']}"
            for name in services
            if name in SERVICES
            for card_name, card in zip(NAMES, self.stage.cards.cards, strict=False)
            if card_name in SERVICES[name]["cards"]
        )
        if sorted(filter(None, held)) != expected:
            found.append(f"the cards' memory is {held}")
        return found

    def _walk(self) -> list[str]:
        if self._chance is None:
            return list(walk(list(MODES), DEFAULT))
        others = [mode for mode in MODES if mode != DEFAULT]
        return [*self._chance.sample(others, len(others)), DEFAULT]

    def every_pair(self) -> None:
        """Switch from mode to mode, and end in the default."""
        present, count, wrong, way = DEFAULT, 0, [], self._walk()
        for after in way:
            began = time.monotonic()
            status, said = self.switch(after)
            self.took[present, after] = time.monotonic() - began
            problems = self.wrong(after)
            if status or problems:
                wrong.append(f"{present} to {after}: {said.strip()} {problems}")
            present, count = after, count + 1
        if self._chance is None:
            pairs = len(list(permutations(MODES, 2)))
            self.record.check(f"every pair of modes: {pairs} switches", count == pairs, count)
        self.record.check("each switch ends in its mode", not wrong, wrong or " to ".join(way))
        for (before, after), seconds in self.took.items():
            self.record.figures[f"{before} to {after}"] = f"{seconds:.1f} s"

    def refused(
        self, what: str, before: str, after: str, sentence: str, *, fault: bool = False
    ) -> None:
        """Ask for ``after``, which must be refused with a sentence and leave ``before``.

        ``fault``: whether ``what`` is one.
        """
        status, said = self.switch(after)
        problems = self.wrong(before)
        good = status == 1 and sentence in said and not problems
        state, seen = f"refused, {before} stays", problems or said.strip()[-300:]
        if fault:
            self.record.survived(what, state, good, seen)
        else:
            self.record.check(f"{what}: {state}", good, seen)

    @contextmanager
    def fault(self, name: str, kind: str) -> Iterator[None]:
        """A stand-in misbehaves during the block."""
        self.rack.succeed(f"echo {kind} > /run/stand-in/{name}")
        try:
            yield
        finally:
            self.rack.succeed(f"rm -f /run/stand-in/{name}")

    @contextmanager
    def described(self, change: Callable[[dict[str, Any]], object]) -> Iterator[None]:
        """The cards report something else during the block."""
        before = self.rack.succeed(f"cat {guest.DESCRIPTION}")
        changed = json.loads(before)
        change(changed)
        try:
            self._describe(json.dumps(changed))
            yield
        finally:
            self._describe(before)

    def _describe(self, text: str) -> None:
        self.rack.succeed(guest.describing(text))

    def busy(self) -> None:
        """A busy service is not stopped, unless the operator demands it."""
        (chat,) = modes.engine_names(self.settings).values()
        # Answers that take seconds on a quick processor, too: one that ends before the engine says
        # how busy it is stops no service.
        more = {"max_tokens": 240, "ignore_eos": True, "n": 16}
        body = {"model": "chat", "prompt": "ready", **more}
        ask = (
            "until test -e /run/asked; do"
            f' printf "Authorization: Bearer %s" "$(cat {chat.key})" | curl --silent --header @-'
            f" --json '{json.dumps(body)}' --max-time 120 --output /dev/null"
            " --write-out '%{http_code} %{exitcode}\\n'"
            f" http://127.0.0.1:{chat.engine.port}/v1/completions; done >> /run/answers"
        )
        # Several, so that at every moment one is under way.
        for caller in range(CALLERS):
            unit = f"systemd-run --quiet --collect --unit=asking-{caller} --service-type=exec"
            self.rack.succeed(f"{unit} sh -c {shlex.quote(ask)}")
        self.rack.wait_until_succeeds("grep --quiet '^200 0$' /run/answers", timeout_seconds=120)
        self.refused("an engine with requests under way", "agent", "creative", "chat is busy")
        self.rack.succeed("touch /run/asked")
        self.rack.wait_until_succeeds(
            "! systemctl list-units --plain --no-legend 'asking-*' | grep -q asking",
            timeout_seconds=180,
        )
        told = set(self.rack.succeed("sort --unique /run/answers").splitlines())
        whole = "200 0" in told and told <= {"200 0", "503 0"}
        self.record.check(
            "and each was answered completely or refused at once", whole, sorted(told)
        )
        self.switch("creative")
        with self.fault("painter", "busy"):
            self.refused("a service that says it is busy", "creative", "audio", "painter is busy")
            status, said = self.switch("audio", "--now")
            self.record.check(
                "--now does not wait for busy services",
                status == 0 and not self.wrong("audio"),
                said,
            )
        with self.described(lambda rack: rack["cards"][0]["utilisation"].update(gpu=90)):
            self.refused("a card at work", "audio", "creative", "left is busy")
        self.switch("creative")
        self._waits()

    def _waits(self) -> None:
        self.rack.succeed(
            "echo busy > /run/stand-in/painter && systemd-run --quiet --on-active=6"
            " rm /run/stand-in/painter"
        )
        status, said = self.switch("audio", "--wait", "60")
        good = status == 0 and not self.wrong("audio")
        self.record.check("--wait waits until the service is idle", good, said.strip())

    def strangers(self) -> None:
        """Processes that are not ours are named and left alone."""
        self.rack.succeed(
            "systemd-run --quiet --collect --unit=stranger --uid=nobody sleep infinity"
        )
        pid = int(self.rack.succeed("systemctl show -P MainPID stranger"))

        def appear(rack: dict[str, Any]) -> None:
            process = {"pid": pid, "memory_mib": 20000, "kind": "compute"}
            rack["cards"][1]["processes"].append(process)
            rack["cards"][1]["memory"]["used_mib"] = 20002

        with self.described(appear):
            output = self.rack.succeed(modes.PROGRAM)
            wanted = (f"no declared service, on right: process {pid}", "user nobody")
            named = all(text in output for text in wanted)
            self.record.check("the list names a process of no declared service", named, output)
            self.refused_by_stranger(pid)
        alive = self.rack.execute("systemctl --quiet is-active stranger")[0] == 0
        self.record.check("and the process is not killed", alive)
        self.rack.succeed("systemctl stop stranger")

    def refused_by_stranger(self, pid: int) -> None:
        """A mode whose memory another process holds is refused before anything stops."""
        began = self._began("voice.service")
        status, said = self.switch("creative")
        untouched = self._began("voice.service") == began
        good = status == 1 and f"process {pid}" in said and untouched
        self.record.check(
            "a process holds memory that a mode needs: refused, audio stays", good, said.strip()
        )

    def _began(self, unit: str) -> str:
        """The main process of a unit that runs."""
        return self.rack.succeed(f"systemctl is-active {unit} && systemctl show -P MainPID {unit}")

    def fail(self) -> None:
        """A switch that cannot end well ends with the mode before it.

        An engine loads for long: it is the mode before of one switch, at the end.
        """
        with self.fault("reader", "deaf"):
            self.refused("a service is deaf", "audio", "forensic", "does not answer", fault=True)
        self.switch("creative")
        with self.fault("painter", "clinging"):
            status, said = self.switch("audio")
            good = status == 1 and "was not released: process" in said
            self.record.check("memory is not released: refused, the process is named", good, said)
        running = self.rack.execute("systemctl --quiet is-active painter.service")[0] == 0
        fault = "a service does not give its memory back"
        self.record.survived(fault, "creative runs again", running)
        self._describe(self.stage.cards.model_dump_json())
        self.rack.succeed("systemctl restart painter")
        with self.described(lambda rack: rack["cards"][0]["power"].update(max_w=310)):
            self.switch("audio")
            self.refused("a card refuses its limit", "audio", "creative", "310 W", fault=True)
        self._at_once()
        self._killed()
        with self.fault("reader", "dead"):
            self.refused("a service is dead", "agent", "forensic", "did not start", fault=True)

    def _at_once(self) -> None:
        # The lock is held for as long as the first one waits for the painter.
        self.switch("creative")
        with self.fault("painter", "busy"):
            self.rack.succeed(
                f"systemd-run --quiet --collect --unit=first {modes.PROGRAM} audio --wait 20"
            )
            switching = mode_program.SWITCH_UNIT.format("desk")
            self.rack.wait_until_succeeds(
                f"systemctl --quiet is-active {switching}"
                f" && ! flock --nonblock {modes.PRESENT}/.desk.lock true",
                timeout_seconds=20,
            )
            self.refused("two at once", "creative", "forensic", "another switch")
            self.rack.succeed(f"systemctl stop {switching}")

    def _killed(self) -> None:
        before, wrong = "creative", []
        for whom in ("its unit", "its unit and the one that undoes it"):
            self.rack.succeed(f"systemd-run --quiet --collect --unit=killed {modes.PROGRAM} agent")
            chat = modes.unit(self.settings, "chat")
            self.rack.wait_until_succeeds(
                f"systemctl is-active {chat} | grep -q activating", timeout_seconds=60
            )
            self._kill(mode_program.SWITCH_UNIT.format("desk"))
            if whom != "its unit":
                self._kill(mode_program.UNDO_UNIT.format("desk"))
            self.rack.wait_until_succeeds(
                f"! test -e {modes.PRESENT}/.desk.begun && ! systemctl --quiet is-active killed",
                timeout_seconds=120,
            )
            wrong += [f"{whom} killed: {problem}" for problem in self.wrong(before)]
        status, said = self.switch("agent")
        wrong += self.wrong("agent") if status == 0 else [said.strip()]
        fault = "a switch killed in the middle"
        state = "the mode before is in force; asked again, it ends in its mode"
        self.record.survived(fault, state, not wrong, wrong or said.strip())

    def _kill(self, unit: str) -> None:
        running = f"test $(systemctl show --property=MainPID --value {unit}) -gt 0"
        self.rack.succeed(
            f"timeout 60 sh -c 'until {running}; do sleep 0.05; done'"
            f" && systemctl kill --signal=KILL {unit}"
        )

    def reboot(self) -> None:
        """After a reboot the default is active."""
        self.switch("creative")
        self.site.expect_nothing("in another mode")
        sabotage.commit(self.site, self.rack, sabotages.MODES)
        # A driver's list of processes and its limits are lost with the power.
        self._describe(self.stage.cards.model_dump_json())
        self.rack.reboot()
        chat = modes.unit(self.settings, "chat")
        self.rack.wait_until_succeeds(f"systemctl --quiet is-active {chat}", timeout_seconds=600)
        self.rack.succeed("nvidia-smi -pm 1")
        self.rack.wait_until_succeeds(
            f"systemctl show -P ExecMainExitTimestampMonotonic {limits.SERVICE} | grep -qv '^0$'",
            timeout_seconds=200,
        )
        self.rack.succeed(f"systemctl restart {limits.SERVICE}")
        problems = self.wrong(DEFAULT)
        state = "the default is in force"
        self.record.survived("a reboot in another mode", state, not problems, problems)
        greeting = self.rack.succeed("run-parts /etc/update-motd.d").strip()
        shown = f"desk: {DEFAULT} is active" in greeting
        self.record.check("the login message shows the active mode", shown, greeting)
        self.site.verify("after a reboot, in the default mode")


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
