"""Compare the declared cards with the machine: each difference, its likely cause, its correction.

The diagnosis has three stages. A declared card that is not in sysfs never answered on the bus: the
cause is riser, slot or power supply. A card in sysfs but not in ``nvidia-smi`` answers without a
driver: the cause is the driver, or the card's own power. A card in all three can still be the wrong
one, have a bad link, be worn or lack limits. One cause gives one sentence: consequences of a
reported difference are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from facts.gpu_picture import Picture
from holdfast.gpu import power
from holdfast.gpu.cards import VRAM_TOLERANCE, name_of
from holdfast.gpu.comparison import Comparison
from holdfast.settings import GpuCard, Gpus

Moment = Literal["before_driver", "before_caps", "after_driver"]
"""``before_driver``: only data of sysfs and journal is checked, because there may be no driver yet.
``before_caps``: everything except the power limits, which are not set yet. ``after_driver``:
everything."""

Kind = Literal[
    "missing",
    "none_there",
    "supply_off",
    "fell_off",
    "extra",
    "wrong_model",
    "wrong_vram",
    "link_width",
    "swapped",
    "moved",
    "uuid_unknown",
    "vfio_bound",
    "held_by_host",
    "nouveau",
    "driver_absent",
    "driver_mismatch",
    "library_missing",
    "module_missing",
    "module_missing_next",
    "secure_boot",
    "driver_not_loaded",
    "smi_hung",
    "no_such_device",
    "power_cable",
    "interrupt",
    "bus_lost",
    "unseen",
    "memory_error",
    "gsp",
    "nvlink",
    "recovery",
    "remap_failed",
    "remap_pending",
    "bus_errors",
    "power_brake",
    "hot",
    "display",
    "foreign_memory",
    "mig",
    "persistence",
    "cap_range",
    "cap_lost",
    "power_budget",
]

MANY_BUS_ERRORS = 100
"""Non-fatal bus errors since boot from which a link counts as marginal. Our own figure: a good link
has none for weeks, and a bad riser causes hundreds in an hour."""

IDLE_MIB = 300
"""Memory in use above which an unclaimed card counts as used, MiB. Our own figure: recorded idle
cards use 0 to 116."""

_THERMAL, _POWER_BRAKE = 0x40, 0x80
"""Bits of NVML's clocks event reasons (``nvml.h``): hardware slowed the clocks to a half or less,
for heat, or because the power supply asked for it."""


@dataclass(frozen=True)
class Difference:
    """One difference. ``card`` is its declared name; "" for the whole machine.

    ``sentence`` names the card, the declared and the actual value and the likely cause; ``mend`` is
    the correction to try.
    """

    kind: Kind
    card: str
    sentence: str
    mend: str

    def __str__(self) -> str:
        return f"{self.sentence}; {self.mend}."


Check = Callable[[Comparison], Iterator[Difference]]


class _XidClass(NamedTuple):
    kind: Kind
    meaning: str
    mend: str


# A reboot, not only a reset, because errors count for their whole boot.
_REBOOT = "reboot, which resets the card; if it happens again run NVIDIA's field diagnostic"
_RETURN = "run NVIDIA's field diagnostic and have the card replaced"
_GSP = _XidClass(
    "gsp",
    "its own processor (GSP) stopped answering, which looks like the driver",
    "reboot; if it happens again try another driver branch",
)

XIDS: dict[int, _XidClass] = {
    48: _XidClass("memory_error", "a memory error that could not be corrected", _REBOOT),
    63: _XidClass("memory_error", "a bad memory row that a reset will replace", _REBOOT),
    64: _XidClass("memory_error", "a bad memory row that could not be replaced", _RETURN),
    74: _XidClass("nvlink", "an NVLink error", "reseat the bridge or the board; then reboot"),
    94: _XidClass("memory_error", "a memory error that was contained", _REBOOT),
    95: _XidClass("memory_error", "a memory error that was not contained", _REBOOT),
    119: _GSP,
    120: _GSP,
}
"""Driver errors that are caused by the card, by NVIDIA's documentation of Xids
(docs.nvidia.com/deploy/xid-errors). 79 and 154 have their own rules. Others, above all 13, 31, 43
and 45, are faults of a program, or are not known to be the card's."""

_RECOVERY = 154

_RESEAT = (
    "switch the machine off and reseat the card, its riser and every power cable; then try it in"
    " another slot"
)


def _absent(seen: Comparison) -> Iterator[Difference]:
    gone = [card for card, pci in seen.matched if pci is None]
    if len(gone) > 1 and not seen.picture.pci:
        yield Difference(
            "none_there",
            "",
            f"{len(gone)} cards are declared but none answers on the bus, which looks like"
            " the firmware's set-up or the power of a whole riser board",
            "enable Above 4G Decoding in the firmware, and see that the cards' supplies are on",
        )
        return
    lost = {card.name for card in gone} | set(seen.fallen)
    told: set[str] = set()
    feeding = power.fed(seen.gpus)
    # The first supply feeds the machine itself, which answers.
    for supply in seen.gpus.power_supplies[1:]:
        cards = feeding[supply.name]
        if len(cards) > 1 and lost.issuperset(cards):
            told.update(cards)
            yield Difference(
                "supply_off",
                "",
                f"all cards of power supply {supply.name} ({_all(cards)}) are gone, and the"
                " other cards are there: that supply is off",
                "switch it on, check its cord, its fuse and the cable that starts it with the"
                " first one, and reboot",
            )
    for card in seen.gpus.cards:
        if card.name in told or card.name not in lost:
            continue
        yield _fell_off(seen, card) if card.name in seen.fallen else _missing(seen, card)


def _fell_off(seen: Comparison, card: GpuCard) -> Difference:
    return Difference(
        "fell_off",
        card.name,
        f"{card.name} fell off the bus in this boot (Xid 79 of"
        f" {seen.fallen[card.name].address}), which looks like its power or its riser",
        "switch the machine off, reseat the card's power cables and riser, and start it again;"
        " if it happens under load lower power_cap_w or use a larger supply",
    )


def _missing(seen: Comparison, card: GpuCard) -> Difference:
    place = f" at {card.pci_address}" if card.pci_address else ""
    count = f"{len(seen.gpus.cards)} declared, {len(seen.picture.pci)} on the bus"
    feeds = [name for name, cards in power.fed(seen.gpus).items() if card.name in cards]
    supply = f" {feeds[0]}" if feeds else ""
    return Difference(
        "missing",
        card.name,
        f"{card.name}, declared as an {name_of(card.device)}{place}, does not answer on the bus"
        f" ({count}), which looks like its riser, its slot or its power supply{supply}",
        _RESEAT,
    )


def _extra(seen: Comparison) -> Iterator[Difference]:
    taken = {pci.address for _, pci in seen.matched if pci}
    for pci in seen.picture.pci:
        if pci.address not in taken:
            yield Difference(
                "extra",
                "",
                f"an {name_of(pci.device)} answers at {pci.address}, and no card is declared for"
                " it",
                "declare it (`holdfast gpus` writes the block), or take it out",
            )


def _model(seen: Comparison) -> Iterator[Difference]:
    for card, pci in seen.matched:
        if pci and card.device != pci.device:
            yield Difference(
                "wrong_model",
                card.name,
                f"{card.name} is declared as an {name_of(card.device)}, and at {pci.address}"
                f" there is an {name_of(pci.device)}",
                "plug in the declared card, or declare the one that is there",
            )


def _place(seen: Comparison) -> Iterator[Difference]:
    moved = [
        (card, pci)
        for card, pci in seen.present
        if card.pci_address and card.pci_address != pci.address
    ]
    absent = any(pci is None for _, pci in seen.matched)
    # If one card is missing, the firmware may renumber the buses of the others.
    if not moved or absent:
        return
    where = ", ".join(f"{card.name} is at {pci.address}" for card, pci in moved)
    names = _all([card.name for card, _ in moved])
    if {card.pci_address for card, _ in moved} == {pci.address for _, pci in moved}:
        yield Difference(
            "swapped",
            moved[0][0].name,
            f"{names} have swapped places: {where}",
            "plug them as declared, or swap their pci_address",
        )
    else:
        yield Difference(
            "moved",
            moved[0][0].name,
            f"{where}, and {_all([f'{card.pci_address}' for card, _ in moved])} was declared:"
            " it was plugged elsewhere, or the firmware renumbered the buses",
            "write the address that is seen (`holdfast gpus`)",
        )


def _narrow(seen: Comparison) -> dict[str, int]:
    """Cards with fewer lanes than declared: name to their lanes."""
    # The generation is not checked: an idle card uses the first.
    widths = {
        card: pci.link_width or (smi.link_width if smi else None)
        for card, pci in seen.present
        for smi in [seen.smi.get(pci.address)]
    }
    return {card.name: width for card, width in widths.items() if width and width < card.link_width}


def _width(seen: Comparison) -> Iterator[Difference]:
    narrow = _narrow(seen)
    for card, pci in seen.present:
        if card.name in narrow:
            yield Difference(
                "link_width",
                card.name,
                f"{card.name} is declared with x{card.link_width} and linked with"
                f" x{narrow[card.name]} ({pci.address}), which looks like its riser or its slot",
                "reseat riser and card, look for a bent pin and for a slot that shares its lanes;"
                " or declare the width that the slot gives",
            )


def _bus_errors(seen: Comparison) -> Iterator[Difference]:
    names = {pci.address: card.name for card, pci in seen.present}
    for errors in seen.picture.bus_errors:
        name = names.get(errors.address)
        # A link that lost lanes has the same riser, which is reported already.
        if name is None or name in _narrow(seen):
            continue
        if errors.fatal or errors.correctable + errors.non_fatal >= MANY_BUS_ERRORS:
            yield Difference(
                "bus_errors",
                name,
                f"{name} has {errors.correctable} corrected, {errors.non_fatal} uncorrected and"
                f" {errors.fatal} fatal bus errors since boot, which looks like a marginal riser",
                "use a shorter or better riser, or set its slot to an older PCIe generation in the"
                " firmware",
            )


def _reserved(seen: Comparison) -> Iterator[Difference]:
    for card, pci in seen.present:
        if card.role == "compute" and pci.driver == "vfio-pci":
            yield Difference(
                "vfio_bound",
                card.name,
                f"{card.name} has the role 'compute', but vfio-pci reserves it for a guest",
                "remove its id from the options of vfio-pci, or declare role 'passthrough'",
            )


def _held(seen: Comparison) -> Iterator[Difference]:
    for card, pci in seen.present:
        if card.role == "passthrough" and pci.driver not in (None, "vfio-pci"):
            yield Difference(
                "held_by_host",
                card.name,
                f"{card.name} has the role 'passthrough', but this host's driver {pci.driver}"
                " controls it",
                "bind it to vfio-pci at boot (options vfio-pci ids=...) and reboot",
            )


def _nouveau(seen: Comparison) -> Iterator[Difference]:
    bound = [
        card.name
        for card, pci in seen.present
        if card.role == "compute" and pci.driver == "nouveau"
    ]
    if bound:
        yield Difference(
            "nouveau",
            bound[0],
            f"the kernel's own driver nouveau controls {_all(bound)}, so NVIDIA's cannot",
            "reboot; if it comes back, blacklist it in /etc/modprobe.d and rebuild the initramfs",
        )


def _driver(seen: Comparison) -> Iterator[Difference]:
    """The fault that keeps the whole driver from working; at most one."""
    driver, exit_status = seen.picture.driver, seen.picture.smi_exit
    if any(_nouveau(seen)) or not (seen.driven or seen.undriven):
        return
    if exit_status == 18 or (driver.loaded and driver.library and driver.loaded != driver.library):
        yield Difference(
            "driver_mismatch",
            "",
            f"driver {driver.loaded} is loaded and its libraries are"
            f" {driver.library or 'another version'}: an upgrade replaced them while it ran",
            "reboot",
        )
    elif not (driver.loaded or driver.on_disk or driver.library or exit_status):
        yield Difference(
            "driver_absent",
            "",
            "no NVIDIA driver is installed, so no declared card can be used",
            "see above in this run why its packages were not installed",
        )
    elif driver.loaded is None and driver.on_disk is None:
        yield Difference(
            "module_missing",
            "",
            f"kernel {driver.newest_kernel} has no NVIDIA module, so no driver is loaded",
            f"install linux-headers-{driver.newest_kernel}, or NVIDIA's modules for it, and"
            " run `dkms autoinstall`",
        )
    elif driver.loaded is None and driver.secure_boot:
        yield Difference(
            "secure_boot",
            "",
            f"Secure Boot is on, and NVIDIA driver {driver.on_disk} is installed and not loaded:"
            " the kernel refuses modules that no enrolled key has signed",
            "enrol DKMS's key at the console (mokutil --import /var/lib/dkms/mok.pub, reboot,"
            " confirm), use the distribution's signed modules, or turn Secure Boot off",
        )
    elif driver.loaded is None:
        yield Difference(
            "driver_not_loaded",
            "",
            f"NVIDIA driver {driver.on_disk} is installed for kernel {driver.newest_kernel} and not"
            f" loaded in {driver.running_kernel}",
            "read what `modprobe nvidia` and `dmesg` say"
            if driver.running_kernel == driver.newest_kernel
            else "reboot into the newer kernel",
        )
    elif seen.picture.smi is None and (driver.library is None or exit_status == 12):
        yield Difference(
            "library_missing",
            "",
            f"driver {driver.loaded} is loaded and its library libnvidia-ml is not installed",
            "install the driver's user space of the same version",
        )
    elif exit_status in (124, 137) and not (seen.xids(XIDS) or seen.fallen):
        yield Difference(
            "smi_hung",
            "",
            "nvidia-smi hangs, which suggests that a card stopped answering its driver",
            "read `journalctl -k -b -g NVRM`, and switch the machine off and on",
        )


def _next_boot(seen: Comparison) -> Iterator[Difference]:
    driver = seen.picture.driver
    if driver.loaded and driver.newest_kernel and driver.on_disk is None:
        yield Difference(
            "module_missing_next",
            "",
            f"driver {driver.loaded} is loaded, and kernel {driver.newest_kernel}, which boots"
            " next, has no NVIDIA module",
            f"install linux-headers-{driver.newest_kernel}, or NVIDIA's modules for it, before"
            " the next reboot",
        )


class _Exit(NamedTuple):
    kind: Kind
    wrong: str
    mend: str


# Exit statuses of nvidia-smi(1).
_EXITS = {
    6: _Exit(
        "no_such_device",
        "the driver does not find it (exit 6), which looks like the driver",
        "check that this driver branch and flavour support the card; read `dmesg` for NVRM",
    ),
    8: _Exit(
        "power_cable",
        "a card lacks its power cables (exit 8)",
        "switch the machine off and plug every power connector of the card in until it clicks",
    ),
    10: _Exit(
        "interrupt",
        "the kernel found an interrupt of a card that does not arrive (exit 10), which looks like"
        " the board's firmware",
        "update the firmware, and try another slot",
    ),
    15: _Exit(
        "bus_lost",
        "a card fell off the bus or cannot be reached (exit 15), which looks like its power or its"
        " riser",
        _RESEAT,
    ),
}
_UNSEEN = _Exit(
    "unseen",
    "it looks like the driver or the card's own power",
    "read `dmesg` for NVRM, check the card's power cables, and switch the machine off and on",
)


def _wanted(seen: Comparison) -> dict[str, str]:
    """The recovery action for a card in the journal, by name."""
    # The last of several, which may cancel earlier ones.
    asked = {card.name: xid.text for card, xid in seen.xids({_RECOVERY})}
    return {name: text for name, text in asked.items() if not text.endswith("(None)")}


def _unseen(seen: Comparison) -> Iterator[Difference]:
    reported = {card.name for card, _ in seen.xids(XIDS)} | set(_wanted(seen))
    if any(_nouveau(seen)) or any(_driver(seen)):
        return
    # If it lists no card, one bad card hides the others.
    if seen.picture.smi is None and (reported or seen.fallen):
        return
    unseen = [(card, pci) for card, pci in seen.undriven if card.name not in reported]
    if not unseen:
        return
    names = [card.name for card, _ in unseen]
    addresses = ", ".join(pci.address for _, pci in unseen)
    verb = "is" if len(unseen) == 1 else "are"
    listed, expected = len(seen.driven), len(seen.driven) + len(unseen)
    exit_status, said = seen.picture.smi_exit or 0, seen.picture.smi_said.partition("\n")[0]
    known = _EXITS.get(exit_status, _UNSEEN)
    yield Difference(
        known.kind,
        names[0],
        f"{_all(names)} ({addresses}) {verb} on the bus and not in nvidia-smi, which lists {listed}"
        f" of {expected}: {known.wrong}" + (f"; it said: {said}" if said else ""),
        known.mend,
    )


def _identity(seen: Comparison) -> Iterator[Difference]:
    for card, smi in seen.driven:
        if card.uuid and smi.uuid and smi.uuid != card.uuid:
            yield Difference(
                "uuid_unknown",
                card.name,
                f"{card.name} is declared as {card.uuid}, and the card at {smi.address} is"
                f" {smi.uuid}, which is not declared: it was replaced",
                "write the new UUID, or plug in the declared card",
            )


def _memory(seen: Comparison) -> Iterator[Difference]:
    for card, smi in seen.driven:
        total = smi.memory_total_mib
        if total and abs(total - card.vram_mib) > VRAM_TOLERANCE * card.vram_mib:
            ecc = ", and ECC is on, which uses part of the memory of some cards" if smi.ecc else ""
            yield Difference(
                "wrong_vram",
                card.name,
                f"{card.name} is declared with {card.vram_mib} MiB and has {total} MiB{ecc}",
                "check that it is the card that was bought, and declare its memory",
            )


def _errors(seen: Comparison) -> Iterator[Difference]:
    # The first of several, which often causes the others.
    reported = {card.name: xid for card, xid in reversed(seen.xids(XIDS))}
    wanted = _wanted(seen)
    for card, pci in seen.present:
        smi = seen.smi.get(pci.address)
        if card.name in reported:
            code = reported[card.name].code
            kind, meaning, mend = XIDS[code]
            yield Difference(
                kind, card.name, f"{card.name} reported Xid {code} in this boot, {meaning}", mend
            )
        elif smi and smi.remapped_rows_failed:
            yield Difference(
                "remap_failed",
                card.name,
                f"{card.name} has a bad memory row and no spare left to replace it",
                _RETURN,
            )
        elif smi and smi.remapped_rows_pending:
            yield Difference(
                "remap_pending",
                card.name,
                f"{card.name} has a bad memory row that the next reset replaces",
                _REBOOT,
            )
        elif smi and smi.recovery_action not in (None, "None"):
            yield _recovery(card, f"its driver asks for {smi.recovery_action!r}")
        # The driver's present state counts more than its log.
        elif card.name in wanted and not (smi and smi.recovery_action):
            yield _recovery(card, f"Xid 154 of this boot says {wanted[card.name]!r}")


def _recovery(card: GpuCard, said: str) -> Difference:
    return Difference(
        "recovery",
        card.name,
        f"{card.name} needs recovery: {said}",
        "stop the programs on the card and do what it asks: nvidia-smi --gpu-reset, or a reboot; on"
        " AMD with IO_PAGE_FAULT in the journal boot with iommu=pt",
    )


def _throttled(seen: Comparison) -> Iterator[Difference]:
    for card, smi in seen.driven:
        mask = smi.throttle or 0
        if mask & _POWER_BRAKE:
            yield Difference(
                "power_brake",
                card.name,
                f"{card.name} runs at half its clocks or less because of the power brake, a"
                " signal of the power supply or the board",
                "check its supply and cables; connect fewer cards to it",
            )
        if mask & _THERMAL:
            yield Difference(
                "hot",
                card.name,
                f"{card.name} runs at half its clocks or less because it is too hot",
                "check its fans, airflow and thermal paste",
            )


def _used(seen: Comparison) -> Iterator[Difference]:
    for card, smi in seen.driven:
        used = smi.memory_used_mib or 0
        if smi.display_active:
            yield Difference(
                "display",
                card.name,
                f"{card.name} has the role 'compute', but drives a display, which uses {used}"
                " MiB and stalls during every long kernel",
                "connect the screen to the board's own graphics, and make that the first"
                " display in the firmware",
            )
        elif not seen.memory_claimed and used > IDLE_MIB:
            yield Difference(
                "foreign_memory",
                card.name,
                f"{card.name} has {used} MiB in use, and no service of this host claims GPU memory",
                "find the process with nvidia-smi; stop it, or declare it as a service",
            )
        if smi.mig:
            yield Difference(
                "mig",
                card.name,
                f"{card.name} is divided by MIG, so no program can use the whole card",
                f"turn it off (nvidia-smi -i {smi.uuid} -mig 0) and reset the card",
            )


def _persistence(seen: Comparison) -> Iterator[Difference]:
    off = [card.name for card, smi in seen.driven if smi.persistence is False]
    if off:
        yield Difference(
            "persistence",
            off[0],
            f"persistence is off on {_all(off)}: every cap is lost when the last program"
            " leaves the card",
            "run nvidia-persistenced with --persistence-mode",
        )


def _caps(seen: Comparison) -> Iterator[Difference]:
    for card, smi in seen.driven:
        wanted, low, high = card.power_cap_w, smi.power_min_w, smi.power_max_w
        modes = [mode for card_set in seen.gpus.card_sets for mode in card_set.modes]
        caps = dict.fromkeys([wanted, *(mode.power_caps_w.get(card.name) for mode in modes)])
        impossible = [
            cap for cap in caps if cap and low is not None and high and not low <= cap <= high
        ]
        for cap in impossible:
            clock = ", or limit it further with clock_max_mhz" if cap < (low or 0) else ""
            yield Difference(
                "cap_range",
                card.name,
                f"{card.name} is declared with a cap of {cap} W, but accepts {low:.0f} to"
                f" {high:.0f} W",
                f"write a power_cap_w in that range{clock}",
            )
        if wanted is None or impossible or smi.power_limit_w is None:
            continue
        if abs(smi.power_limit_w - wanted) > 1:
            yield Difference(
                "cap_lost",
                card.name,
                f"{card.name} is declared with a cap of {wanted} W, and its limit is"
                f" {smi.power_limit_w:.0f} W: the cap did not hold",
                "check the unit that sets it, and whether another program sets limits",
            )


def _budget(seen: Comparison) -> Iterator[Difference]:
    limits = {
        card.name: smi.power_default_w
        for card, smi in seen.driven
        if smi.power_default_w is not None
    }
    for fault in power.faults(seen.gpus, limits):
        yield Difference(
            "power_budget",
            "",
            f"power supply {fault.supply}: by the cards' own figures {fault.wrong}",
            fault.mend,
        )


def _all(names: Sequence[str]) -> str:
    """The names in a sentence: "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


BUS_CHECKS: tuple[Check, ...] = (
    _absent,
    _extra,
    _model,
    _place,
    _width,
    _bus_errors,
    _reserved,
)
"""The checks that need only sysfs and the journal."""

DRIVER_CHECKS: tuple[Check, ...] = (
    _held,
    _nouveau,
    _driver,
    _next_boot,
    _unseen,
    _identity,
    _memory,
    _errors,
    _throttled,
    _used,
    _persistence,
    _caps,
    _budget,
)
"""The checks that need a driver, or its absence."""


def differences(
    declared: Gpus,
    picture: Picture,
    moment: Moment = "after_driver",
    memory_claimed: bool = True,
) -> list[Difference]:
    """All differences between ``picture`` and ``declared``; empty if the rack is good.

    Args:
        declared: the cards that must be present.
        picture: the machine's state.
        moment: the stage of the run, which decides what is checked.
        memory_claimed: whether services of this host may use GPU memory; if none may,
            memory in use is a difference.
    """
    seen = Comparison(declared, picture, memory_claimed)
    checks = BUS_CHECKS if moment == "before_driver" else BUS_CHECKS + DRIVER_CHECKS
    found = [difference for check in checks for difference in check(seen)]
    return [item for item in found if moment == "after_driver" or item.kind != "cap_lost"]
