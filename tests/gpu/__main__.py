"""`tests/gpu/run`: facts, acceptance and probe on this machine's real cards, and a dated record."""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pyinfra.api import FactBase
from rich.console import Console
from rich.table import Table

from facts.gpu import GpuPicture, GpuSamples
from facts.gpu_picture import Picture
from holdfast.gpu.acceptance import differences
from holdfast.gpu.proposal import declared, proposal
from tests.gpu.compare import compared


def main() -> int:
    """0 where every card is well and both readings agree; 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to watch the cards")
    parser.add_argument("record", nargs="?", type=Path, help="file to keep the output in")
    arguments = parser.parse_args()
    console = Console(record=True, width=110)
    good = _examine(console, arguments.seconds)
    if arguments.record:
        arguments.record.write_text(console.export_text(), encoding="utf-8")
    return 0 if good else 1


def _ask(fact: FactBase[Any], **arguments: Any) -> Any:
    """The fact about this machine, by its own command."""
    command = str(fact.command(**arguments))
    output = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    return fact.process(output.stdout.splitlines())


def _examine(console: Console, seconds: float) -> bool:
    began = datetime.now(UTC)
    console.print(f"{began:%Y-%m-%d %H:%M} UTC, {platform.platform()}")
    picture: Picture = _ask(GpuPicture())
    took = (datetime.now(UTC) - began).total_seconds()
    console.print(f"the picture: one command, {took:.2f} s")
    console.print(picture.driver)
    for card in picture.pci:
        console.print(card)
    for seen in picture.smi or ():
        console.print(seen)
    if not picture.pci:
        console.print("no NVIDIA card answers on this machine's PCI bus")
        return False

    console.print(proposal(platform.node(), picture), markup=False, highlight=False)
    # On a machine in use there may be programs on the cards.
    found = differences(declared(picture), picture, memory_claimed=True)
    for difference in found:
        console.print(f"[red]✗[/] {difference}")
    console.print(f"acceptance of what it proposes: {len(found)} differences")

    report = subprocess.run(
        ["nvidia-smi", "-q", "-x"], capture_output=True, text=True, check=True
    ).stdout
    rows = list(compared(picture, report))
    table = Table("card", "field", "facts", "nvidia-smi -q -x", "", title="two readings")
    for row in rows:
        table.add_row(row.card, row.field, str(row.ours), str(row.theirs), "" if row.same else "✗")
    console.print(table)

    samples = _ask(GpuSamples(), seconds=seconds)
    console.print(samples)
    agree = {card.uuid for card in samples.cards} == {card.uuid for card in picture.smi or ()}
    console.print(f"NVML names the same cards: {'yes' if agree else 'no'}")
    return agree and bool(rows) and all(row.same for row in rows) and not found


if __name__ == "__main__":
    sys.exit(main())
