#!/usr/bin/python3 -I
"""Set each card's power limit and highest clock; run by holdfast-gpu-limits.service on a host.

It is copied to hosts, so it uses only the standard library of Python 3.11. Reads
``/etc/holdfast/gpu-limits.json`` and the active modes, sets what differs, reads it back, and exits
1 with a sentence for each card that is not as declared; the other cards are still set.

A card without a declared power limit gets its default. The driver does not report locked clocks: so
each run locks a declared clock again, and a record of locked clocks shows which lock is no longer
declared and must be removed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

CONFIG = "/etc/holdfast/gpu-limits.json"
RECORD = "/run/holdfast/gpu-limits/clocks.json"
PRESENT = "/run/holdfast/gpu-modes"
"""A file for each set of cards, with its active mode."""

FIELDS = (
    "uuid,pci.bus_id,persistence_mode,power.limit,power.default_limit,power.min_limit,"
    "power.max_limit,clocks.current.graphics"
)
"""Fields of ``nvidia-smi --query-gpu``, in the order of `Seen`."""
FORMAT = "csv,noheader,nounits"

POWER_TOLERANCE_W = 0.5
"""The driver counts in mW and prints hundredths of a W."""
CLOCK_TOLERANCE_MHZ = 15
"""Clocks have steps, of 15 MHz on a GeForce: the driver uses the nearest one."""
CLOCK_PAUSES_SECONDS: Sequence[float] = (0, 1, 3)
"""A card under load needs a moment to slow down."""
SMI_SECONDS = 60
"""A faulty driver makes nvidia-smi hang; this is enough to wake nine cards."""


@dataclass(frozen=True)
class Wanted:
    """A declared card: power in W, clock in MHz, None for the default."""

    name: str
    uuid: str | None = None
    pci_address: str | None = None
    power_cap_w: int | None = None
    clock_max_mhz: int | None = None
    card_set: str | None = None
    mode_caps_w: dict[str, int] = field(default_factory=dict)
    """Mode of the card's set to its own power limit in that mode."""

    def in_force(self, modes: Mapping[str, str]) -> Wanted:
        """The card with its limit in the active mode; ``modes`` is set to mode."""
        mode = modes.get(self.card_set or "", "")
        return replace(self, power_cap_w=self.mode_caps_w.get(mode, self.power_cap_w))

    @property
    def label(self) -> str:
        """The card's name and identifier."""
        return f"gpu {self.name} ({self.uuid or self.pci_address})"


@dataclass(frozen=True)
class Seen:
    """A card in nvidia-smi: power in W, clock in MHz, None if unknown."""

    uuid: str
    address: str
    persistence: bool | None
    power_w: float | None
    default_w: float | None
    min_w: float | None
    max_w: float | None
    clock_mhz: float | None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _address(text: str) -> str:
    # The driver writes the domain with eight digits in upper case; sysfs and the inventory do not.
    domain, _, rest = text.partition(":")
    return f"{domain[-4:]}:{rest}".lower()


def seen_in(text: str) -> tuple[list[Seen], str]:
    """The cards in the output for `FIELDS`, and the rest of the output in one line."""
    cards: list[Seen] = []
    said: list[str] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        values = [value.strip() for value in line.split(",")]
        if len(values) != FIELDS.count(",") + 1 or not values[0].startswith("GPU-"):
            said.append(line)
            continue
        persistence = {"Enabled": True, "Disabled": False}.get(values[2])
        numbers = map(_number, values[3:])
        cards.append(Seen(values[0], _address(values[1]), persistence, *numbers))
    return cards, " ".join(said)


def matching(card: Wanted, cards: Iterable[Seen]) -> Seen | None:
    """The matching card: by UUID, or by its slot if no UUID is declared."""
    for seen in cards:
        known, found = (card.uuid, seen.uuid) if card.uuid else (card.pci_address, seen.address)
        if known == found:
            return seen
    return None


def target_w(card: Wanted, seen: Seen) -> float | None:
    """The wanted power limit, W; None if there is none."""
    return card.power_cap_w or seen.default_w


def out_of_range(card: Wanted, seen: Seen) -> str | None:
    """Why the card cannot have the declared power limit; None if it can."""
    cap = card.power_cap_w
    if cap is None:
        return None
    if seen.min_w is None or seen.max_w is None:
        return (
            f"{card.label}: power_cap_w = {cap} is declared, but this card's power cannot be"
            " limited; remove it, or limit the card with clock_max_mhz"
        )
    if cap < seen.min_w:
        return (
            f"{card.label}: power_cap_w = {cap} is declared, but the card accepts"
            f" {seen.min_w:g} to {seen.max_w:g} W; write {seen.min_w:g} or more, and limit it"
            " further with clock_max_mhz"
        )
    if cap > seen.max_w:
        return (
            f"{card.label}: power_cap_w = {cap} is declared, but the card accepts"
            f" {seen.min_w:g} to {seen.max_w:g} W; write {seen.max_w:g} or less"
        )
    return None


def has_lost_its_limit(card: Wanted, seen: Seen) -> bool:
    """Whether its power limit differs from the wanted one."""
    target = target_w(card, seen)
    if target is None:
        return False
    return seen.power_w is None or abs(seen.power_w - target) > POWER_TOLERANCE_W


def _is_too_fast(card: Wanted, seen: Seen) -> bool:
    if card.clock_max_mhz is None or seen.clock_mhz is None:
        return False
    return seen.clock_mhz > card.clock_max_mhz + CLOCK_TOLERANCE_MHZ


def _smi(*arguments: str) -> tuple[int, str]:
    """Exit status and all output."""
    try:
        done = subprocess.run(
            ["nvidia-smi", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            timeout=SMI_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        return 127, "nvidia-smi is not installed"
    except subprocess.TimeoutExpired:
        return 124, f"nvidia-smi did not answer within {SMI_SECONDS} s"
    return done.returncode, done.stdout


def _look() -> tuple[list[Seen], str]:
    status, text = _smi(f"--query-gpu={FIELDS}", f"--format={FORMAT}")
    cards, said = seen_in(text)
    return cards, said or (f"nvidia-smi exited with status {status}" if status else "")


def _set(seen: Seen, *arguments: str) -> str:
    """The error of nvidia-smi; "" if it succeeded."""
    status, text = _smi("-i", seen.uuid, *arguments)
    if status == 0:
        return ""
    said = re.sub(r"\s*Terminating early due to previous errors\.", "", text)
    return " ".join(said.split()) or f"exit status {status}"


class Run:
    """One run over all cards. ``locked`` maps UUID to MHz: the locked clocks of the last run."""

    def __init__(self, wanted: Sequence[Wanted], locked: Mapping[str, int]) -> None:
        self.wanted = wanted
        self.locked = dict(locked)
        self.done: list[str] = []
        self._refused: dict[str, str] = {}

    def problems(self) -> Iterator[str]:
        """Set what differs and yield a sentence for each remaining difference."""
        cards, said = _look()
        if not cards and self.wanted:
            yield f"no card can be limited: {said or 'nvidia-smi shows none'}"
            return
        held: list[Wanted] = []
        for card in self.wanted:
            seen = matching(card, cards)
            if seen is None:
                yield self._gone(card, cards, said)
                continue
            if wrong := out_of_range(card, seen):
                yield wrong
            else:
                held.append(card)
                self._power(card, seen)
            yield from self._clock(card, seen)
        yield from self._release(cards)
        yield from self._read_back(held)

    def _gone(self, card: Wanted, cards: Iterable[Seen], said: str) -> str:
        in_its_slot = next((c.uuid for c in cards if c.address == card.pci_address), None)
        if in_its_slot:
            return (
                f"{card.label} is gone: {in_its_slot} is in its slot {card.pci_address}; if"
                " the cards were swapped, declare the new uuid"
            )
        return (
            f"{card.label} is gone: the driver does not show it{f' ({said})' if said else ''};"
            " look at its riser, slot and power, and at `journalctl -k | grep Xid`"
        )

    def _power(self, card: Wanted, seen: Seen) -> None:
        target = target_w(card, seen)
        if target is None or not has_lost_its_limit(card, seen):
            return
        self._refused[card.name] = _set(seen, "-pl", f"{target:g}")
        before = "unknown" if seen.power_w is None else f"{seen.power_w:g} W"
        self.done.append(f"{card.label}: power limit {target:g} W, was {before}")

    def _clock(self, card: Wanted, seen: Seen) -> Iterator[str]:
        if card.clock_max_mhz is None:
            return
        refused = _set(seen, "-lgc", f"0,{card.clock_max_mhz}")
        if refused:
            yield (
                f"{card.label}: its clock could not be limited to {card.clock_max_mhz} MHz:"
                f" nvidia-smi says: {refused}"
            )
        elif self.locked.get(seen.uuid) != card.clock_max_mhz:
            self.done.append(f"{card.label}: clock {card.clock_max_mhz} MHz at most")
        if not refused:
            self.locked[seen.uuid] = card.clock_max_mhz

    def _release(self, cards: Sequence[Seen]) -> Iterator[str]:
        declared = {
            seen.uuid
            for card in self.wanted
            if card.clock_max_mhz and (seen := matching(card, cards))
        }
        for seen in cards:
            if seen.uuid not in self.locked or seen.uuid in declared:
                continue
            if refused := _set(seen, "-rgc"):
                yield (
                    f"gpu {seen.uuid}: its clock limit was not removed: nvidia-smi says: {refused}"
                )
            else:
                del self.locked[seen.uuid]
                self.done.append(f"gpu {seen.uuid}: clock limit removed")

    def _read_back(self, held: Sequence[Wanted]) -> Iterator[str]:
        cards: list[Seen] = []
        for pause in CLOCK_PAUSES_SECONDS:
            time.sleep(pause)
            cards, _ = _look()
            found = [(card, matching(card, cards)) for card in self.wanted]
            if not any(seen and _is_too_fast(card, seen) for card, seen in found):
                break
        for card in self.wanted:
            seen = matching(card, cards)
            if seen is None:
                if card in held:
                    yield f"{card.label} disappeared while its limits were set"
                continue
            if card in held and has_lost_its_limit(card, seen):
                yield self._not_held(card, seen)
            if _is_too_fast(card, seen):
                yield (
                    f"{card.label}: clock_max_mhz = {card.clock_max_mhz} is declared, but it"
                    f" runs at {seen.clock_mhz:g} MHz; check whether this card can lock its"
                    f" clocks: `nvidia-smi -i {seen.uuid} -lgc 0,{card.clock_max_mhz}`"
                )

    def _not_held(self, card: Wanted, seen: Seen) -> str:
        reads = "cannot be read" if seen.power_w is None else f"reads {seen.power_w:g} W"
        if refused := self._refused.get(card.name):
            why = f"nvidia-smi says: {refused}"
        elif seen.persistence is False:
            why = (
                "without persistence mode the driver drops it when its last client ends; see"
                " `systemctl status nvidia-persistenced`"
            )
        else:
            why = (
                "the driver ignored it without an error; limit the card with clock_max_mhz instead"
            )
        return f"{card.label}: its power limit, set to {target_w(card, seen):g} W, {reads}: {why}"


def locked_in(text: str) -> dict[str, int]:
    """UUID to MHz in the record of a run; empty if it cannot be read."""
    try:
        record: Any = json.loads(text)
        return {str(uuid): int(mhz) for uuid, mhz in record.items()}
    except (ValueError, AttributeError, TypeError):
        return {}


def modes_in(folder: str) -> dict[str, str]:
    """Set to mode, from the files of ``folder``."""
    found = Path(folder).glob("[!.]*")
    return {path.name: path.read_text(encoding="utf-8").strip() for path in found}


def main(config: str = CONFIG, record: str = RECORD, present: str = PRESENT) -> int:
    """Set the limits in the file ``config``; return 1 if a card is not as declared."""
    modes = modes_in(present)
    declared = json.loads(Path(config).read_text(encoding="utf-8"))
    wanted = [Wanted(**card).in_force(modes) for card in declared]
    kept = Path(record)
    run = Run(wanted, locked_in(kept.read_text(encoding="utf-8") if kept.exists() else ""))
    problems = list(run.problems())
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(run.locked) + "\n", encoding="utf-8")
    in_journal = "JOURNAL_STREAM" in os.environ
    for level, lines in ((5, run.done), (3, problems)):
        for line in lines:
            print(f"<{level}>{line}" if in_journal else line, file=sys.stderr)  # noqa: T201
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
