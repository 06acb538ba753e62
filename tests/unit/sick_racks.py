"""Racks that are well, and what can be wrong with one: each sickness made on a recorded rack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from facts.gpu_picture import DriverState, PciCard, Picture, SmiCard, Xid
from holdfast.gpu.acceptance import Kind, Moment
from holdfast.settings import GpuCard, Gpus, PowerSupply
from tests.unit.gpu_racks import RackName, recorded

CAP_W = 250


@dataclass(frozen=True)
class Rack:
    """What is declared and what is seen."""

    gpus: Gpus
    picture: Picture


Change = Callable[[Rack], Rack]


def declared(picture: Picture, name: RackName) -> Gpus:
    """The declaration of someone who looked at the healthy rack; caps where there are many."""
    assert picture.smi is not None
    cards = [
        GpuCard(
            name=f"gpu-{index}",
            device=pci.device,
            vram_mib=smi.memory_total_mib or 0,
            uuid=smi.uuid,
            pci_address=pci.address,
            link_width=8 if pci.link_width == 8 else 16,
            power_cap_w=CAP_W if name == "rack9x3090" else None,
        )
        for index, (pci, smi) in enumerate(zip(picture.pci, picture.smi, strict=True))
    ]
    supplies = [
        PowerSupply(
            name=f"psu-{number}",
            watts=1600,
            cards=[card.name for card in cards[3 * number : 3 * number + 3]],
        )
        for number in range(3)
    ]
    return Gpus(cards=cards, power_supplies=supplies if name == "rack9x3090" else [])


def well(name: RackName) -> Rack:
    """A rack in which nothing is wrong, idle, its caps in force."""
    picture = recorded(name)
    gpus = declared(picture, name)
    assert picture.smi is not None
    capped = tuple(
        replace(smi, power_limit_w=float(card.power_cap_w or smi.power_limit_w or 0))
        for card, smi in zip(gpus.cards, picture.smi, strict=True)
    )
    return Rack(gpus, replace(picture, smi=capped))


def card(index: int, **changes: Any) -> Change:
    """Declare card ``index`` differently."""

    def change(rack: Rack) -> Rack:
        cards = list(rack.gpus.cards)
        cards[index] = cards[index].model_copy(update=changes)
        return Rack(rack.gpus.model_copy(update={"cards": cards}), rack.picture)

    return change


def supplies(watts: int) -> Change:
    """Declare one supply of ``watts`` for everything."""
    one = {"power_supplies": [PowerSupply(name="psu-0", watts=watts)]}
    return lambda rack: Rack(rack.gpus.model_copy(update=one), rack.picture)


def seen(**changes: Any) -> Change:
    """Have the machine show something else."""
    return lambda rack: Rack(rack.gpus, replace(rack.picture, **changes))


def driver(**changes: Any) -> Change:
    """Have its driver be another."""
    return lambda rack: seen(driver=replace(rack.picture.driver, **changes))(rack)


def pci(*indices: int, **changes: Any) -> Change:
    """Have sysfs tell another thing of some cards."""

    def change(rack: Rack) -> Rack:
        cards: list[PciCard] = list(rack.picture.pci)
        for index in indices:
            cards[index] = replace(cards[index], **changes)
        return seen(pci=tuple(cards))(rack)

    return change


def smi(*indices: int, **changes: Any) -> Change:
    """Have nvidia-smi tell another thing of some cards."""

    def change(rack: Rack) -> Rack:
        cards: list[SmiCard] = list(rack.picture.smi or ())
        for index in indices:
            cards[index] = replace(cards[index], **changes)
        return seen(smi=tuple(cards))(rack)

    return change


def unlisted(*indices: int) -> Change:
    """Have nvidia-smi not list some cards."""

    def change(rack: Rack) -> Rack:
        gone = {rack.picture.pci[index].address for index in indices}
        listed = tuple(card for card in rack.picture.smi or () if card.address not in gone)
        return seen(smi=listed)(rack)

    return change


def unplugged(*indices: int) -> Change:
    """Have some cards not answer at all."""

    def change(rack: Rack) -> Rack:
        left = tuple(item for n, item in enumerate(rack.picture.pci) if n not in indices)
        return seen(pci=left)(unlisted(*indices)(rack))

    return change


def undeclared(index: int) -> Change:
    """Have the owner forget a card, with the cable that feeds it."""

    def change(rack: Rack) -> Rack:
        cards = [item for n, item in enumerate(rack.gpus.cards) if n != index]
        update = {"cards": cards, "power_supplies": []}
        return Rack(rack.gpus.model_copy(update=update), rack.picture)

    return change


def xid(
    index: int, code: int, text: str = "pid=4711, name=python3", this_boot: bool = True
) -> Change:
    """Have the journal hold an error of a card."""

    def change(rack: Rack) -> Rack:
        error = Xid(rack.picture.pci[index].address, code, text, this_boot)
        return seen(xids=(*rack.picture.xids, error))(rack)

    return change


def bus_errors(index: int, **counts: Any) -> Change:
    """Have sysfs count errors of a card."""

    def change(rack: Rack) -> Rack:
        errors = list(rack.picture.bus_errors)
        errors[index] = replace(errors[index], **counts)
        return seen(bus_errors=tuple(errors))(rack)

    return change


def swapped(one: int, other: int) -> Change:
    """Have two cards change places."""

    def change(rack: Rack) -> Rack:
        addresses = [item.address for item in rack.picture.pci]
        return both(smi(one, address=addresses[other]), smi(other, address=addresses[one]))(rack)

    return change


def both(*changes: Change) -> Change:
    """One change after another."""

    def change(rack: Rack) -> Rack:
        for step in changes:
            rack = step(rack)
        return rack

    return change


def failed(exit_status: int, said: str = "") -> Change:
    """Have nvidia-smi fail before it lists a card."""
    return seen(smi=None, smi_exit=exit_status, smi_said=said)


_REPLACED = "GPU-00000000-1111-2222-3333-444444444444"
_NO_DRIVER = both(
    seen(smi=None, smi_exit=None, driver=DriverState(running_kernel="6.12", newest_kernel="6.12")),
    pci(*range(9), driver=None),
)


class Sick(NamedTuple):
    """One sickness of ``rack``: what it is, and words that its only sentence must hold."""

    name: str
    make: Change
    kind: Kind
    words: tuple[str, ...]
    rack: RackName = "rack9x3090"
    moment: Moment = "after_driver"
    memory_claimed: bool = True


SICK = [
    # Not in sysfs: riser, slot, supply.
    Sick("missing card", unplugged(4), "missing",
        ("gpu-4", "2204", "0000:42:00.0", "9 declared, 8 on the bus", "riser", "slot",
         "power supply psu-1", "reseat")),
    Sick("the only card missing", unplugged(0), "missing",
        ("gpu-0", "RTX 5090", "riser"), "rtx5090"),
    Sick("no card at all", unplugged(*range(9)), "none_there",
        ("9 cards", "Above 4G Decoding", "riser board")),
    Sick("a supply off", unplugged(3, 4, 5), "supply_off",
        ("gpu-3, gpu-4 and gpu-5", "psu-1", "off", "switch it on")),
    Sick("fell off and left sysfs", both(xid(4, 79, "GPU has fallen off the bus."), unplugged(4)),
        "fell_off", ("gpu-4", "Xid 79", "0000:42:00.0", "power", "riser")),
    Sick("fell off and is a ghost in sysfs",
        both(xid(5, 79), pci(5, link_width=0), unlisted(5), seen(smi_exit=15)),
        "fell_off", ("gpu-5", "Xid 79", "power")),
    Sick("fell off and took nvidia-smi along",
        both(xid(6, 79), xid(6, 154, "GPU recovery action changed from 0x0 (None) to 0x2"
             " (Node Reboot Required)"), failed(15, "GPU is lost")),
        "fell_off", ("gpu-6", "Xid 79")),
    Sick("a supply off under load", both(xid(6, 79), xid(7, 79), xid(8, 79), unplugged(6, 7, 8)),
        "supply_off", ("gpu-6, gpu-7 and gpu-8", "psu-2", "off")),
    Sick("fell off and nvidia-smi hangs", both(xid(1, 79), failed(124)), "fell_off",
        ("gpu-1", "Xid 79")),
    Sick("fell off, its place not declared",
        both(xid(2, 79), unlisted(2), card(2, uuid=None, pci_address=None)), "fell_off",
        ("gpu-2", "Xid 79", "0000:22:00.0")),
    # Another card, or elsewhere.
    Sick("extra card", undeclared(8), "extra",
        ("RTX 3090", "0000:a1:00.0", "no card is declared", "holdfast gpus")),
    Sick("extra card that errs", both(undeclared(7), bus_errors(7, fatal=3)), "extra",
        ("0000:81:00.0", "no card is declared")),
    Sick("wrong model", both(pci(2, device="2487"), smi(2, device="2487", memory_total_mib=12288)),
        "wrong_model", ("gpu-2", "RTX 3090 (2204)", "RTX 3060 (2487)", "0000:22:00.0")),
    Sick("wrong memory", smi(0, memory_total_mib=16384), "wrong_vram",
        ("gpu-0", "32607 MiB", "16384 MiB"), "rtx5090"),
    Sick("ECC takes its share", smi(0, memory_total_mib=30570, ecc=True), "wrong_vram",
        ("gpu-0", "30570 MiB, and ECC is on"), "rtx5090"),
    Sick("two cards swapped", swapped(1, 7), "swapped",
        ("gpu-1 and gpu-7", "swapped places", "gpu-1 is at 0000:81:00.0", "pci_address")),
    Sick("card plugged elsewhere",
        both(pci(8, address="0000:e1:00.0"), smi(8, address="0000:e1:00.0")), "moved",
        ("gpu-8 is at 0000:e1:00.0", "0000:a1:00.0 was declared", "holdfast gpus")),
    Sick("card replaced", smi(3, uuid=_REPLACED), "uuid_unknown",
        ("gpu-3", _REPLACED, "replaced", "new UUID")),
    # The link.
    Sick("x16 at x1", pci(1, link_width=1), "link_width",
        ("gpu-1", "x16", "linked with x1 ", "riser", "slot")),
    Sick("x16 at x2, by nvidia-smi alone", both(pci(1, link_width=0), smi(1, link_width=2)),
        "link_width", ("gpu-1", "linked with x2 ")),
    Sick("fatal bus error", bus_errors(4, fatal=1), "bus_errors", ("gpu-4", "1 fatal")),
    Sick("marginal riser", bus_errors(7, correctable=4200, non_fatal=3), "bus_errors",
        ("gpu-7", "4200 corrected", "marginal riser", "older PCIe generation")),
    Sick("riser that begins to err", bus_errors(7, correctable=97, non_fatal=3), "bus_errors",
        ("gpu-7", "97 corrected, 3 uncorrected")),
    Sick("riser that loses lanes and errs", both(pci(2, link_width=4), bus_errors(2, fatal=1)),
        "link_width", ("gpu-2", "linked with x4 ", "riser")),
    # Who holds it.
    Sick("nouveau", both(pci(*range(9), driver="nouveau"), failed(9),
        driver(loaded=None, nouveau_loaded=True)), "nouveau",
        ("nouveau controls gpu-0, gpu-1", "blacklist")),
    Sick("nouveau on one card, and so no driver",
        both(pci(*range(9), driver=None), pci(3, driver="nouveau"), failed(9), driver(loaded=None)),
        "nouveau", ("nouveau controls gpu-3,",)),
    Sick("compute card held for a guest", both(pci(5, driver="vfio-pci"), unlisted(5)),
        "vfio_bound", ("gpu-5", "vfio-pci", "passthrough")),
    Sick("guest's card held by the host",
        both(card(5, role="passthrough"), smi(5, power_limit_w=350.0)), "held_by_host",
        ("gpu-5", "role 'passthrough'", "nvidia", "vfio-pci")),
    Sick("guest's card held by nouveau",
        both(card(5, role="passthrough"), pci(5, driver="nouveau"), unlisted(5)), "held_by_host",
        ("gpu-5", "driver nouveau controls it")),
    # The driver.
    Sick("no driver", _NO_DRIVER, "driver_absent", ("no NVIDIA driver is installed",)),
    Sick("driver and library differ", both(driver(library="580.119.02"), failed(18)),
        "driver_mismatch", ("580.105.08 is loaded", "580.119.02", "upgrade", "reboot")),
    Sick("driver and library differ, by exit status alone", both(driver(library=None), failed(18)),
        "driver_mismatch", ("580.105.08 is loaded", "another version")),
    Sick("driver and library differ, and the old one still answers", driver(library="595.91.07"),
        "driver_mismatch", ("580.105.08 is loaded", "595.91.07")),
    Sick("library missing", both(driver(library=None), failed(12)), "library_missing",
        ("580.105.08", "libnvidia-ml", "user space")),
    Sick("library missing, and nvidia-smi with it", both(driver(library=None),
        seen(smi=None, smi_exit=None, smi_said="")), "library_missing", ("libnvidia-ml",)),
    Sick("library not found by nvidia-smi", failed(12), "library_missing", ("libnvidia-ml",)),
    Sick("only a module on disk", both(driver(loaded=None, library=None),
        seen(smi=None, smi_exit=None)), "driver_not_loaded", ("not loaded",)),
    Sick("only a library", both(driver(loaded=None, on_disk=None),
        seen(smi=None, smi_exit=None)), "module_missing", ("no NVIDIA module",)),
    Sick("only nvidia-smi", both(driver(loaded=None, on_disk=None, library=None), failed(9)),
        "module_missing", ("no NVIDIA module",)),
    Sick("no module for this kernel", both(driver(loaded=None, on_disk=None), failed(9)),
        "module_missing", ("no NVIDIA module", "linux-headers-", "dkms")),
    Sick("no module for the next kernel", driver(newest_kernel="6.12.60", on_disk=None),
        "module_missing_next", ("kernel 6.12.60", "boots next", "linux-headers-6.12.60")),
    Sick("Secure Boot", both(driver(loaded=None, secure_boot=True), failed(9)), "secure_boot",
        ("Secure Boot", "580.105.08", "signed", "mokutil")),
    Sick("module not loaded", both(driver(loaded=None), failed(9)), "driver_not_loaded",
        ("580.105.08 is installed", "not loaded", "modprobe nvidia")),
    Sick("running a kernel without module", both(failed(9),
        driver(loaded=None, newest_kernel="6.12.90+deb13-amd64")), "driver_not_loaded",
        ("installed for kernel 6.12.90", "not loaded in 6.12.74", "reboot into")),
    Sick("nvidia-smi hangs", failed(124), "smi_hung", ("hangs", "off and on")),
    # In sysfs and not in nvidia-smi: driver or power.
    Sick("power cable forgotten", both(unlisted(4), seen(smi_exit=8)), "power_cable",
        ("gpu-4 (0000:42:00.0) is on the bus", "lists 8 of 9", "lacks its power cables", "clicks")),
    Sick("two cards without power", both(unlisted(4, 6), seen(smi_exit=8)), "power_cable",
        ("gpu-4 and gpu-6", "are on the bus", "lists 7 of 9")),
    Sick("driver finds no device", failed(6, "No devices were found"), "no_such_device",
        ("gpu-0", "exit 6", "branch and flavour"), "rtx5090"),
    Sick("interrupt lost", both(unlisted(0), seen(smi_exit=10)), "interrupt",
        ("gpu-0", "exit 10", "interrupt")),
    Sick("card lost, and no Xid", both(unlisted(2), seen(smi_exit=15)), "bus_lost",
        ("gpu-2", "exit 15", "riser")),
    Sick("not listed for no reason given", both(unlisted(8), seen(smi_said="ERR!\nmore")), "unseen",
        ("gpu-8", "lists 8 of 9", "driver or the card's own power", "it said: ERR!")),
    # What it reports of itself.
    Sick("memory error", xid(3, 48), "memory_error", ("gpu-3", "could not be corrected", "Xid 48")),
    Sick("row to be replaced", both(xid(0, 63), smi(0, remapped_rows_pending=True)),
        "memory_error", ("gpu-0", "Xid 63", "reboot"), "h200"),
    Sick("row cannot be replaced", both(xid(0, 64), smi(0, remapped_rows_failed=True)),
        "memory_error", ("gpu-0", "Xid 64", "replaced"), "h200"),
    Sick("contained error", xid(1, 94), "memory_error", ("gpu-1", "was contained", "Xid 94"),
        "hgx8xh100"),
    Sick("uncontained error", xid(2, 95), "memory_error", ("gpu-2", "not contained", "Xid 95"),
        "hgx8xh100"),
    Sick("GSP silent", both(xid(4, 119, "Timeout waiting for RPC from GSP"),
        xid(4, 120), smi(4, recovery_action="Reset")), "gsp",
        ("gpu-4", "GSP", "Xid 119", "branch")),
    Sick("GSP silent and not listed", both(xid(5, 119), unlisted(5), seen(smi_exit=255)), "gsp",
        ("gpu-5", "Xid 119")),
    Sick("GSP silent and nvidia-smi with it", both(xid(4, 120), failed(124)), "gsp",
        ("gpu-4", "Xid 120")),
    Sick("NVLink error", xid(5, 74), "nvlink", ("gpu-5", "NVLink", "Xid 74"), "hgx8xh100"),
    Sick("recovery wanted", smi(2, recovery_action="Reset"), "recovery",
        ("gpu-2", "'Reset'", "--gpu-reset")),
    Sick("recovery wanted, by the journal",
        xid(0, 154, "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)"),
        "recovery", ("gpu-0", "Xid 154", "GPU Reset Required", "iommu=pt"), "h200"),
    Sick("recovery wanted, and not listed",
        both(xid(7, 154, "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)"),
            unlisted(7)), "recovery", ("gpu-7", "GPU Reset Required")),
    Sick("no spare rows", smi(6, remapped_rows_failed=True), "remap_failed",
        ("gpu-6", "no spare", "replaced"), "hgx8xh100"),
    Sick("row waits for a reset", smi(6, remapped_rows_pending=True), "remap_pending",
        ("gpu-6", "next reset"), "hgx8xh100"),
    Sick("power brake", smi(5, throttle=0x88), "power_brake",
        ("gpu-5", "power brake", "power supply")),
    Sick("too hot", smi(5, throttle=0x48), "hot", ("gpu-5", "too hot", "fans")),
    # Not as it should be used.
    Sick("screen on a compute card", smi(0, display_active=True, memory_used_mib=812), "display",
        ("gpu-0", "display", "812 MiB", "own graphics"), "rtx3060"),
    Sick("memory in use by no process", smi(0, memory_used_mib=4200), "foreign_memory",
        ("gpu-0", "4200 MiB", "no service"), "rtx5090", memory_claimed=False),
    Sick("divided by MIG", smi(0, mig=True), "mig", ("gpu-0", "MIG", "-mig 0"), "h200"),
    # Power.
    Sick("persistence off", smi(*range(9), persistence=False), "persistence",
        ("gpu-0, gpu-1", "gpu-7 and gpu-8", "cap is lost", "nvidia-persistenced")),
    Sick("cap below the card's range", card(0, power_cap_w=350), "cap_range",
        ("gpu-0", "350 W", "400 to 575 W", "clock_max_mhz"), "rtx5090"),
    Sick("cap above the card's range", card(0, power_cap_w=400), "cap_range",
        ("gpu-0", "400 W", "100 to 390 W", "power_cap_w in that range.")),
    Sick("cap lost", smi(3, power_limit_w=350.0), "cap_lost",
        ("gpu-3", "250 W", "350 W", "did not hold")),
    Sick("half the supply", supplies(1600), "power_budget",
        ("psu-0", "9 cards", "2450 W", "1600 W")),
    # Before there is a driver.
    Sick("missing card, no driver yet", both(_NO_DRIVER, unplugged(2)), "missing",
        ("gpu-2", "0000:22:00.0", "psu-0"), moment="before_driver"),
    Sick("x16 at x4, no driver yet", both(_NO_DRIVER, pci(0, link_width=4)), "link_width",
        ("gpu-0", "linked with x4 "), moment="before_driver"),
    Sick("wrong model, no driver yet", both(_NO_DRIVER, pci(0, device="2b85")), "wrong_model",
        ("gpu-0", "RTX 5090 (2b85)"), moment="before_driver"),
    Sick("cards of two models swapped, no driver yet",
        both(_NO_DRIVER, card(0, device="2487"), pci(1, device="2487")), "swapped",
        ("gpu-0 and gpu-1", "gpu-0 is at 0000:21:00.0"), moment="before_driver"),
]  # fmt: skip
"""Each yields exactly one difference, of its kind."""

WELL: list[tuple[str, RackName, Change]] = [
    *((name, name, both()) for name in ("rtx3060", "rack9x3090", "rtx5090", "hgx8xh100", "h200")),
    ("identities not known yet", "rack9x3090",
        both(*(card(n, uuid=None, pci_address=None) for n in range(9)))),
    ("generation 1 at idle", "h200", both(smi(0, link_generation=1), pci(0, link_speed=2.5))),
    ("a program that failed", "rack9x3090", both(xid(2, 13), xid(2, 31), xid(2, 43), xid(2, 45))),
    ("sick before the last boot", "rack9x3090", xid(4, 79, this_boot=False)),
    ("recovery done", "rack9x3090",
        xid(2, 154, "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)")),
    ("recovery done, by the journal", "h200", both(
        xid(0, 154, "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)"),
        xid(0, 154, "GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)"))),
    ("engines in its memory", "hgx8xh100", smi(*range(8), memory_used_mib=76000)),
    ("power limited by software", "rack9x3090", smi(*range(9), throttle=0x4)),
    ("a few corrected errors", "rack9x3090", bus_errors(3, correctable=96, non_fatal=3)),
    ("a guest's card", "rack9x3090", both(
        card(5, role="passthrough", power_cap_w=None), pci(5, driver="vfio-pci"), unlisted(5))),
    ("a guest's card whose link sleeps", "rack9x3090", both(
        card(5, role="passthrough", power_cap_w=None),
        pci(5, driver="vfio-pci", link_width=0), unlisted(5))),
    ("signed modules under Secure Boot", "rtx3060", driver(secure_boot=True)),
    ("a guest's card that no driver holds yet", "rack9x3090", both(
        card(5, role="passthrough", power_cap_w=None), pci(5, driver=None), unlisted(5))),
    ("guests' cards alone, and no driver", "rtx5090", both(
        card(0, role="passthrough"), pci(0, driver="vfio-pci"),
        seen(smi=None, smi_exit=None, driver=DriverState(running_kernel="6.12")))),
    ("a card that tells nothing of itself", "rack9x3090", smi(4, uuid="", link_width=None,
        persistence=None, power_limit_w=None, power_default_w=None, power_min_w=None,
        power_max_w=None, memory_total_mib=None, memory_used_mib=None, display_active=None,
        recovery_action=None, throttle=None)),
    ("a library the linker does not list", "rack9x3090", driver(library=None)),
    ("kernels that are not in /boot", "rack9x3090", driver(newest_kernel="", on_disk=None)),
    ("two models, declared in another order", "rack9x3090", both(
        *(card(n, uuid=None, pci_address=None) for n in range(9)),
        card(0, device="2487", vram_mib=12288, power_cap_w=170),
        pci(8, device="2487"),
        smi(8, device="2487", memory_total_mib=12288, power_limit_w=170.0))),
    ("more lanes than declared", "rtx3060", card(0, link_width=8)),
]  # fmt: skip
"""Racks that raise nothing: name, recording, and what is unusual and not wrong."""
