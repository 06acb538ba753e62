#!/usr/bin/python3 -I
"""Show the active modes, and switch a set of cards to another mode.

It is copied to hosts as one file, so it uses only the standard library of Python 3.11. Reads
``/etc/holdfast/gpu-modes.json``. The active mode is the content of ``/run/holdfast/gpu-modes/SET``,
which every boot creates with the default. A switch waits for busy services only with ``--wait``,
checks that the memory was released, and restores the previous mode if the new one does not start. A
process that is no declared service is named, and never killed.

It runs in its own unit, which outlives the login. Each step is recorded. A failed switch is undone
by the program itself, or after a kill by a second unit (``--undo``), which systemd starts when the
first one fails.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import pwd
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.host_programs.shared.undoing import (
    Ended,
    Failed,
    await_end,
    end_at_signals,
    in_unit,
    last_line,
    locked,
    say,
    sentence,
    undisturbed,
    within,
)

CONFIG = "/etc/holdfast/gpu-modes.json"
PRESENT = "/run/holdfast/gpu-modes"
LIMITS = "holdfast-gpu-limits.service"
UNDER_WAY = "another switch of these cards is running"
SWITCH_UNIT = "holdfast-mode-switch-{}.service"
"""Switches the set of cards in the braces."""
UNDO_UNIT = "holdfast-mode-undo@{}.service"
"""Undoes a killed switch of the set in the braces."""

MEMORY_PROGRAM = "/usr/local/sbin/holdfast-gpu-memory"
RUNNING = ("active", "activating", "deactivating", "reloading", "refreshing")

STILL = 3
"""Consecutive checks at which a service must be idle."""
PAUSE_SECONDS = 1.0
RELEASE_SECONDS = 60
"""Limit for the release of cards; a killed process needs seconds."""
SMI_SECONDS = 60
"""A faulty driver makes nvidia-smi hang."""

ANSWER_BYTES = 1 << 20
"""Limit of a service's answer; a compromised service may answer for ever."""


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: root would send data to another address."""

    def redirect_request(self, *_: Any) -> None:
        """Treat the redirect as the answer, which is an error."""


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Stay)


HELD = "held"
"""Callers are refused; every service runs."""
SWITCHING = "switching"
"""Services may have been stopped."""


@dataclass(frozen=True)
class Check:
    """A URL whose answer contains ``contains`` if the service is good."""

    url: str
    contains: str
    timeout_seconds: int

    def holds(self, seconds: float = 10) -> bool:
        """Whether it does now."""
        try:
            with within(seconds), _DIRECT.open(self.url, timeout=seconds) as answer:
                return self.contains in answer.read(ANSWER_BYTES).decode(errors="replace")
        except (OSError, ValueError):
            return False


@dataclass(frozen=True)
class Tenant:
    """A service that uses cards, or shares a set of modes with one.

    ``hold`` (followed by its limit in seconds) and ``release`` are commands that refuse callers and
    accept them again; ``memory`` has the arguments of `holdfast-gpu-memory` without the seconds.
    """

    name: str
    unit: str
    cards: Sequence[str] = ()
    hold: Sequence[str] = ()
    release: Sequence[str] = ()
    memory: Sequence[str] = ()
    idle: Check | None = None
    health: Check | None = None


@dataclass(frozen=True)
class CardSet:
    """A set of cards: UUID to name; and its modes: name to the names of their services."""

    name: str
    cards: dict[str, str]
    default: str
    modes: dict[str, list[str]]
    targets: dict[str, str]


@dataclass(frozen=True)
class House:
    """Every set of this host, and every service that uses cards, in a mode or always."""

    sets: list[CardSet]
    tenants: dict[str, Tenant]

    def set_of(self, mode: str) -> CardSet:
        """The set that has the mode.

        Raises:
            Failed: none has.
        """
        for card_set in self.sets:
            if mode in card_set.modes:
                return card_set
        known = ", ".join(mode for card_set in self.sets for mode in card_set.modes)
        raise Failed(f"there is no mode {mode} here; there are: {known or 'none'}")

    def set_named(self, name: str) -> CardSet:
        """The set of that name.

        Raises:
            Failed: there is none.
        """
        for card_set in self.sets:
            if card_set.name == name:
                return card_set
        raise Failed(f"there is no set {name} here")

    def services(self, card_set: CardSet, *modes: str) -> list[Tenant]:
        """The services of the named modes of a set, each once; of all its modes without a name."""
        names = [name for mode in modes or card_set.modes for name in card_set.modes[mode]]
        return [self.tenants[name] for name in dict.fromkeys(names)]

    def others(self, card_set: CardSet, mode: str) -> list[Tenant]:
        """The services of a set that are not in the mode."""
        own = self.services(card_set, mode)
        return [tenant for tenant in self.services(card_set) if tenant not in own]


def read_house(path: str) -> House:
    """The configuration that the deploy wrote.

    Raises:
        Failed: this host has no modes.
    """
    try:
        told = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Failed("the inventory declares no modes for this host") from None
    return House(
        [CardSet(**card_set) for card_set in told["sets"]],
        {tenant["name"]: _tenant(tenant) for tenant in told["tenants"]},
    )


def _tenant(told: dict[str, Any]) -> Tenant:
    checks = {key: Check(**told[key]) for key in ("idle", "health") if told[key]}
    return Tenant(**{**told, **checks})


@dataclass(frozen=True)
class Holder:
    """A process that uses memory of a card, and its unit."""

    pid: str
    card: str
    mib: str
    program: str
    unit: str

    def __str__(self) -> str:
        """A readable description."""
        try:
            user = pwd.getpwuid(Path("/proc", self.pid).stat().st_uid).pw_name
        except (OSError, KeyError):
            user = "unknown"
        return f"process {self.pid} ({self.program}, user {user}, {self.unit}): {self.mib} MiB"


def holders(cards: Iterable[str]) -> list[Holder]:
    """Every process that holds memory of the cards, as the driver knows it.

    Raises:
        Failed: the driver gives no answer.
    """
    if not cards:
        return []
    rows = _smi("--query-compute-apps=gpu_uuid,pid,used_memory,name")
    return [
        Holder(pid, card, mib, ",".join(name), _unit_of(pid))
        for card, pid, mib, *name in rows
        if card in cards
    ]


def _unit_of(pid: str) -> str:
    with contextlib.suppress(OSError):
        group = Path("/proc", pid, "cgroup").read_text(encoding="utf-8").strip()
        parts = group.rpartition(":")[2].split("/")
        units = [part for part in parts if part.endswith((".service", ".scope"))]
        if units:
            return units[-1]
    return "no unit"


def _smi(query: str) -> list[list[str]]:
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    done = _run(*command, seconds=SMI_SECONDS)
    if done.returncode:
        raise Failed(f"the driver did not list the processes on the cards: {last_line(done)}")
    return [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]


def _run(
    *command: str, seconds: float | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, "", f"{command[0]} is not installed")
    except OSError as error:
        return subprocess.CompletedProcess(command, 126, "", f"{command[0]}: {error}")
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no answer within {seconds:g} s")


def states(units: Sequence[str]) -> dict[str, str]:
    """Unit to its state, such as ``active``; ``unknown`` where systemd does not answer."""
    if not units:
        return {}
    said = _run("systemctl", "is-active", "--", *units).stdout.split()
    return dict(itertools.zip_longest(units, said[: len(units)], fillvalue="unknown"))


def processes(tenants: Iterable[Tenant]) -> list[str]:
    """The files that list the processes of the tenants' units."""
    found = []
    for tenant in tenants:
        told = _run("systemctl", "show", "--property=ControlGroup", "--value", tenant.unit)
        if group := told.stdout.strip():
            found.append(f"/sys/fs/cgroup{group}/cgroup.procs")
    return [file for file in found if Path(file).exists()]


@dataclass(frozen=True)
class Switch:
    """A switch of one set of cards to the mode ``wanted``."""

    house: House
    card_set: CardSet
    wanted: str
    folder: Path = Path(PRESENT)

    @property
    def record(self) -> Path:
        """Contains the name of the active mode."""
        return self.folder / self.card_set.name

    def _write(self, path: Path, text: str) -> None:
        new = self.folder / f".{self.card_set.name}.new"
        new.write_text(f"{text}\n", encoding="utf-8")
        new.replace(path)

    def note(self, mode: str) -> None:
        """Write the active mode into the record."""
        self._write(self.record, mode)

    @property
    def begun(self) -> Path:
        """The record of an unfinished switch."""
        return self.folder / f".{self.card_set.name}.begun"

    @property
    def former(self) -> Path:
        """The record of the previous mode: restoring it needs no disk space."""
        return self.folder / f".{self.card_set.name}.former"

    def _begin(self, before: str, step: str) -> None:
        told = {"before": before, "wanted": self.wanted, "step": step}
        self._write(self.begun, json.dumps(told))

    @property
    def present(self) -> str:
        """The active mode."""
        try:
            told = self.record.read_text(encoding="utf-8").strip()
        except OSError:
            told = ""
        return told if told in self.card_set.modes else self.card_set.default

    @contextlib.contextmanager
    def alone(self, wait: bool = False) -> Iterator[None]:
        """Hold the lock of this set; ``wait`` until it is free.

        Raises:
            Failed: another switch of it is running.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / f".{self.card_set.name}.lock", wait, UNDER_WAY):
            yield

    def run(self, wait_seconds: float, now: bool) -> None:
        """Switch; ``now`` does not check whether the services to stop are busy.

        Raises:
            Failed: the switch failed; the previous mode is active, or none, if the sentence says
            so.
        """
        self.undo("the previous switch was killed")
        before = self.present
        entering = self.house.services(self.card_set, self.wanted)
        others = self.house.others(self.card_set, self.wanted)
        found = states([tenant.unit for tenant in (*entering, *others)])
        leaving = [tenant for tenant in others if found[tenant.unit] in RUNNING]
        missing = [tenant for tenant in entering if found[tenant.unit] != "active"]
        if before == self.wanted and not leaving and not missing:
            say(f"{self.card_set.name}: {self.wanted} is active")
            return
        self._check_room(leaving, missing)
        began = time.monotonic()
        try:
            self._write(self.former, before)
            self._begin(before, HELD)
            if not now:
                self._hold(leaving, wait_seconds)
            self._begin(before, SWITCHING)
            self._stop(before, leaving)
            self._start(self.wanted, missing)
            self._end()
        except BaseException as failure:
            self.undo(sentence(failure))
            raise
        took = time.monotonic() - began
        say(f"{self.card_set.name}: switched from {before} to {self.wanted} in {took:.0f} s")

    def _check_room(self, leaving: list[Tenant], missing: list[Tenant]) -> None:
        """Check, before anything stops, that the memory for the new mode is free."""
        besides = ":".join(processes(leaving))
        for tenant in missing:
            _check_memory(tenant, 0, besides)

    def _hold(self, leaving: list[Tenant], wait_seconds: float) -> None:
        deadline = time.monotonic() + wait_seconds
        for tenant in leaving:
            left = max(0.0, deadline - time.monotonic())
            if tenant.hold:
                if (done := _run(*tenant.hold, f"{left:g}")).returncode:
                    raise Failed(f"{tenant.name} is busy: {last_line(done).partition(': ')[2]}")
            else:
                self._until_idle(tenant, left)

    def _until_idle(self, tenant: Tenant, wait_seconds: float) -> None:
        deadline, still = time.monotonic() + wait_seconds, 0
        while still < STILL:
            why = self._busy(tenant)
            still = 0 if why else still + 1
            if why and time.monotonic() >= deadline:
                raise Failed(f"{tenant.name} is busy: {why}; wait, or use --now")
            time.sleep(PAUSE_SECONDS)

    def _busy(self, tenant: Tenant) -> str:
        if tenant.idle:
            check = tenant.idle
            return "" if check.holds() else f"{check.url} does not answer {check.contains!r}"
        cards = tenant.cards or tuple(self.card_set.cards)
        rows = _smi("--query-gpu=uuid,utilization.gpu")
        busy = [
            self.card_set.cards.get(uuid, uuid)
            for uuid, load in rows
            if uuid in cards and load != "0"
        ]
        return f"{', '.join(busy)} is busy" if busy else ""

    def _stop(self, before: str, leaving: list[Tenant]) -> None:
        went = {pid for file in processes(leaving) for pid in Path(file).read_text().split()}
        units = [self.card_set.targets[before]] if before != self.wanted else []
        units += [tenant.unit for tenant in leaving]
        if units and (done := _run("systemctl", "stop", *units)).returncode:
            raise Failed(f"{before} did not stop: {last_line(done)}")
        self._prove_release(went)

    def _prove_release(self, went: set[str]) -> None:
        deadline = time.monotonic() + RELEASE_SECONDS
        while True:
            left = [one for one in holders(self.card_set.cards) if one.pid in went]
            if not left:
                return
            if time.monotonic() >= deadline:
                raise Failed(f"memory of the cards was not released: {left[0]}")
            time.sleep(PAUSE_SECONDS)

    def _start(self, mode: str, tenants: list[Tenant]) -> None:
        """Activate a mode: first its limits, then its services.

        Raises:
            Failed: a limit could not be set, or a service does not answer.
        """
        self.note(mode)
        self._restart_limits()
        for tenant in tenants:
            _check_memory(tenant, RELEASE_SECONDS)
        self._bring_up(mode, tenants)

    def _restart_limits(self) -> None:
        if _run("systemctl", "restart", LIMITS).returncode:
            raise Failed(f"power limits could not be set: {_error_of(LIMITS)}")

    def _bring_up(self, mode: str, tenants: list[Tenant]) -> None:
        units = [tenant.unit for tenant in tenants]
        if units:
            _run("systemctl", "reset-failed", *units)
        _run("systemctl", "start", self.card_set.targets[mode], *units)
        for tenant in tenants:
            _wait_for(tenant)

    def _end(self) -> None:
        """Accept all callers; then the switch is complete."""
        for tenant in self.house.services(self.card_set):
            if tenant.release:
                _run(*tenant.release)
        self.begun.unlink(missing_ok=True)
        self.former.unlink(missing_ok=True)

    def undo(self, why: str) -> None:
        """Restore the previous mode after an unfinished switch.

        Only SIGKILL stops it; a full disk does not.

        Raises:
            Failed: it could not be restored completely.
        """
        with undisturbed():
            try:
                told = json.loads(self.begun.read_text(encoding="utf-8"))
                before, wanted, step = told["before"], told["wanted"], told["step"]
            except (OSError, ValueError, KeyError):
                return
            problems = []
            if step == SWITCHING and before in self.card_set.modes:
                say(f"{self.card_set.name}: {why}; going back to {before}")
                problems = self._back(before, wanted)
            self._end()
            if problems:
                raise Failed(f"{why}; and {before} was not fully restored: {'; '.join(problems)}")

    def _back(self, before: str, wanted: str) -> list[str]:
        """Activate the previous mode; return its errors."""
        others = [tenant.unit for tenant in self.house.others(self.card_set, before)]
        targets = [self.card_set.targets[wanted]] if wanted in self.card_set.modes else []
        ending = [*(targets if wanted != before else []), *others]
        if ending:
            _run("systemctl", "stop", *ending)
        if self.former.exists():
            self.former.replace(self.record)
        tenants = self.house.services(self.card_set, before)
        problems = []
        # The services start even if a limit cannot be set.
        for put in (self._restart_limits, lambda: self._bring_up(before, tenants)):
            try:
                put()
            except (Failed, OSError) as failure:
                problems.append(sentence(failure))
        return problems


def _check_memory(tenant: Tenant, seconds: float, besides: str = "") -> None:
    """Check within ``seconds`` that a service's cards are free.

    Raises:
        Failed: they are not; it names the processes that use them.
    """
    if not tenant.memory:
        return
    done = _run(MEMORY_PROGRAM, f"{seconds:g}", *tenant.memory, BESIDES=besides)
    if done.returncode:
        raise Failed(f"the cards of {tenant.name} are not free: {last_line(done)}")


def _wait_for(tenant: Tenant) -> None:
    """Wait until a started service answers its health check, if it has one.

    Raises:
        Failed: it ended, or has not answered in time.
    """
    health = tenant.health
    deadline = time.monotonic() + (health.timeout_seconds if health else 0)
    while True:
        if states([tenant.unit])[tenant.unit] != "active":
            raise Failed(f"{tenant.name} did not start: {_error_of(tenant.unit)}")
        if health is None or health.holds():
            return
        if time.monotonic() >= deadline:
            raise Failed(
                f"{tenant.name} does not answer: {health.url} did not return"
                f" {health.contains!r} within {health.timeout_seconds} s"
            )
        time.sleep(PAUSE_SECONDS)


def _error_of(unit: str) -> str:
    """The last output of a failed unit, and the command that shows more."""
    _run("journalctl", "--sync")
    # Its own output, without systemd's.
    said = _run(
        *("journalctl", "--quiet", "--no-pager", "--output=cat", "--lines=1"),
        *("--priority=err", f"_SYSTEMD_UNIT={unit}"),
    )
    told = said.stdout.strip()
    return f"{told} (systemctl status {unit})" if told else f"see systemctl status {unit}"


def show(house: House, folder: Path) -> Iterator[str]:
    """The mode of each set, and other processes on its cards, one line each."""
    for card_set in house.sets:
        present = Switch(house, card_set, "", folder).present
        yield f"{card_set.name} ({', '.join(card_set.cards.values())}): {present} is active"
        found = states([tenant.unit for tenant in house.services(card_set)])
        for mode, names in card_set.modes.items():
            told = [f"{name} {found[house.tenants[name].unit]}" for name in names]
            mark = "*" if mode == present else " "
            after = ", the default" if mode == card_set.default else ""
            yield f" {mark} {mode}: {', '.join(told) or 'no declared service'}{after}"
    yield from strangers(house)


def strangers(house: House) -> Iterator[str]:
    """A line for each process on the cards that belongs to no declared service."""
    known = {tenant.unit for tenant in house.tenants.values()}
    cards = {uuid: name for card_set in house.sets for uuid, name in card_set.cards.items()}
    try:
        for holder in holders(cards):
            if holder.unit not in known:
                yield f"no declared service, on {cards[holder.card]}: {holder}"
    except Failed as failure:
        yield str(failure)


def greeting(house: House, folder: Path) -> Iterator[str]:
    """One line for each set, for a login; does not use the driver, which may hang."""
    for card_set in house.sets:
        present = Switch(house, card_set, "", folder).present
        tenants = house.services(card_set, present)
        found = states([tenant.unit for tenant in tenants])
        down = [tenant.name for tenant in tenants if found[tenant.unit] != "active"]
        told = f"{card_set.name}: {present} is active"
        yield f"{told}, and {', '.join(down)} not running" if down else told


def follow(card_set: CardSet, options: list[str]) -> int:
    """Run the switch in a unit and print its output; return its exit status.

    The unit outlives this program.

    Raises:
        Failed: another one is running.
    """
    unit, undo = SWITCH_UNIT.format(card_set.name), UNDO_UNIT.format(card_set.name)
    await_end(unit, UNDER_WAY)
    program = (sys.executable, "-I", str(Path(__file__).resolve()))
    command = in_unit(unit, undo, *program, "--here", *options)
    # In its own process group: Ctrl-C is for this program, which still prints the unit's output.
    following = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        status = following.wait()
    except KeyboardInterrupt:
        _run("systemctl", "stop", unit)
        status = following.wait()
    if status:
        # It has started by itself if there is something to undo; wait for its end.
        _run("systemctl", "start", undo)
    return status


def main(arguments: list[str]) -> int:
    """Show the modes, or switch to one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", nargs="?", help="the mode to switch to; without it, show the modes")
    parser.add_argument(
        "--wait",
        type=float,
        default=0,
        metavar="SECONDS",
        help="how long to wait for busy services",
    )
    parser.add_argument("--now", action="store_true", help="even while services are busy")
    parser.add_argument(
        "--greeting", action="store_true", help="one line for each set, for the greeting at login"
    )
    parser.add_argument("--undo", metavar="SET", help="undo a switch of this set that was killed")
    parser.add_argument("--here", action="store_true", help="in this process, not in its own unit")
    parser.add_argument("--config", default=CONFIG, help=argparse.SUPPRESS)
    parser.add_argument("--present", type=Path, default=Path(PRESENT), help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    try:
        house = read_house(asked.config)
        if asked.undo:
            undone = Switch(house, house.set_named(asked.undo), "", asked.present)
            with undone.alone(wait=True):
                undone.undo("the switch was killed")
            return 0
        if asked.mode is None:
            told = greeting if asked.greeting else show
            print("\n".join(told(house, asked.present)))  # noqa: T201
            return 0
        switch = Switch(house, house.set_of(asked.mode), asked.mode, asked.present)
        with switch.alone():
            if asked.here:
                end_at_signals()
                for line in strangers(house):
                    say(line)
                switch.run(asked.wait, asked.now)
                return 0
        return follow(switch.card_set, arguments)
    except KeyboardInterrupt:
        return 130
    except (Failed, Ended, OSError) as failure:
        say(f"{asked.mode or 'holdfast-mode'}: {sentence(failure)}")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
