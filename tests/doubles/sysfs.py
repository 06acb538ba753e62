"""A tree like /sys/bus/pci/devices, told from a rack description."""

from __future__ import annotations

from pathlib import Path

from tests.doubles.rack import Card, Rack

_SPEEDS = {1: "2.5", 2: "5.0", 3: "8.0", 4: "16.0", 5: "32.0"}
"""PCIe generation to GT/s per lane."""

_CORRECTABLE = "RxErr BadTLP BadDLLP Rollover Timeout NonFatalErr CorrIntErr HeaderOF"
_UNCORRECTABLE = (
    "Undefined DLP SDES TLP FCP CmpltTO CmpltAbrt UnxCmplt RxOF MalfTLP ECRC UnsupReq ACSViol"
    " UncorrIntErr BlockedTLP AtomicOpBlocked TLPBlockedErr PoisonTLPBlocked"
)


def sysfs(rack: Rack, folder: Path) -> None:
    """Lay out the cards, their sound devices and NVSwitches, one folder per PCI address.

    The links of a card resolve where ``folder`` is mounted on /sys/bus/pci/devices. Where the
    kernel is to tell which driver is loaded, no card is bound to it yet: see boot/.
    """
    for card in rack.cards:
        if card.state != "gone":
            _lay_card(card, folder / card.address, bound=_bound(rack, card))
    for number in range(rack.nvswitches):
        switch = folder / f"0000:c{number}:00.0"
        _write(switch, vendor="0x10de", device="0x22a3", **{"class": "0x068000"})


def _bound(rack: Rack, card: Card) -> str | None:
    loaded = rack.driver.loaded
    if card.driver == "nvidia" and (loaded is None or loaded.startswith("/")):
        return None
    return card.driver


def _lay_card(card: Card, folder: Path, bound: str | None) -> None:
    vendor, device = card.subsystem.split(":")
    # A device that no longer answers reads as all ones.
    lost = card.state == "lost"
    _write(
        folder,
        vendor="0x10de",
        device=f"0x{card.device}",
        subsystem_vendor=f"0x{vendor}",
        subsystem_device=f"0x{device}",
        current_link_speed="Unknown" if lost else f"{_SPEEDS[card.link.generation]} GT/s PCIe",
        max_link_speed=f"{_SPEEDS[card.link.generation_max]} GT/s PCIe",
        current_link_width="63" if lost else str(card.link.width),
        max_link_width=str(card.link.width_max),
        numa_node=str(card.numa_node),
        aer_dev_correctable=_errors(_CORRECTABLE, "COR", card.bus_errors.correctable),
        aer_dev_nonfatal=_errors(_UNCORRECTABLE, "NONFATAL", card.bus_errors.nonfatal),
        aer_dev_fatal=_errors(_UNCORRECTABLE, "FATAL", card.bus_errors.fatal),
        **{"class": card.pci_class},
    )
    if card.pci_class == "0x030000":
        _write(folder, boot_vga=str(int(card.boot_vga)))
        sound = folder.with_name(f"{folder.name[:-1]}1")
        _write(sound, vendor="0x10de", device="0x1aef", **{"class": "0x040300"})
    if bound:
        (folder / "driver").symlink_to(f"../../../../bus/pci/drivers/{bound}")
    if card.iommu_group is not None:
        group = f"../../../../kernel/iommu_groups/{card.iommu_group}"
        (folder / "iommu_group").symlink_to(group)


def _errors(names: str, total: str, number: int) -> str:
    """A file of AER counters, in which the first kind of error is the one that happened."""
    first, *others = names.split()
    zeroes = [f"{name} 0" for name in others]
    return "\n".join([f"{first} {number}", *zeroes, f"TOTAL_ERR_{total} {number}"])


def _write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n")
