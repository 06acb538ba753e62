"""Declarations of cards that cannot be: one sentence each, before any connection."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from holdfast.checks import gpu
from holdfast.checks.finding import Finding
from holdfast.settings import HostSettings
from tests.unit.site_data import good

UUID = "GPU-00000000-1111-2222-3333-44444444444{}"


def rtx3090(index: int, **changes: Any) -> dict[str, Any]:
    own = {
        "name": f"slot-{index}",
        "uuid": UUID.format(index),
        "pci_address": f"0000:0{index}:00.0",
    }
    return {"device": "2204", "vram_mib": 24576, "power_cap_w": 250} | own | changes


def supply(name: str, watts: int, *cards: int) -> dict[str, Any]:
    return {"name": name, "watts": watts, "cards": [f"slot-{index}" for index in cards]}


def tenant(name: str, mib: int) -> dict[str, Any]:
    engine = {"name": name, "unit": f"{name}.service", "user": name, "tier": "T1"}
    return engine | {"gpu_mib": mib}


def rack(
    cards: list[dict[str, Any]] | None,
    supplies: list[dict[str, Any]] | None = None,
    tenants: list[dict[str, Any]] | None = None,
) -> HostSettings:
    data = good()["rack"]
    if cards is not None:
        data["gpus"] = {"cards": cards, "power_supplies": supplies or []}
    data["services"] += tenants or []
    return HostSettings.model_validate(data)


def findings(settings: HostSettings) -> list[Finding]:
    def all_checks() -> Iterator[Finding]:
        yield from gpu.cards(settings)
        yield from gpu.power_supplies(settings)
        yield from gpu.memory(settings)

    return list(all_checks())


PAIR = [rtx3090(0), rtx3090(1)]


@pytest.mark.parametrize(
    "settings",
    [
        rack(None),
        rack(PAIR, [supply("a", 1600)], [tenant("chat", 40000)]),
        rack([rtx3090(0, vram_mib=24400)]),
        rack([rtx3090(0, uuid=None, pci_address=None), rtx3090(1, uuid=None, pci_address=None)]),
        rack([rtx3090(0, device="2335", vram_mib=143771, power_cap_w=700)]),
        rack([rtx3090(0, device="2335", vram_mib=143771, power_cap_w=None)]),
        # A card of unknown kind.
        rack([rtx3090(0, device="ffff", vram_mib=65536, power_cap_w=1200)], [supply("a", 3000)]),
        # As sold with two sizes of memory.
        rack([rtx3090(0, device="2d04", vram_mib=8151, link_width=8, power_cap_w=None)]),
        rack([rtx3090(0, role="passthrough", power_cap_w=None)]),
    ],
)
def test_what_can_be_is_accepted(settings: HostSettings) -> None:
    assert findings(settings) == []


class Bad(NamedTuple):
    name: str
    settings: HostSettings
    key: str
    wrong: str
    mend: str


BLACKWELL = {"device": "2b85", "vram_mib": 32607}

BAD = [
    Bad("one UUID twice", rack([rtx3090(0), rtx3090(1, uuid=UUID.format(0))]),
        "gpus.cards[1].uuid", "slot-0 has the same value", "holdfast gpus"),
    Bad("one address twice", rack([rtx3090(0), rtx3090(1, pci_address="0000:00:00.0")]),
        "gpus.cards[1].pci_address", "slot-0 has the same value", "holdfast gpus"),
    Bad("a 5090 below its floor", rack([rtx3090(0, **BLACKWELL, power_cap_w=350)]),
        "gpus.cards[0].power_cap_w", "RTX 5090 accepts no less than 400 W", "clock_max_mhz"),
    Bad("a 3090 below its floor", rack([rtx3090(0, power_cap_w=90)]),
        "gpus.cards[0].power_cap_w", "RTX 3090 accepts no less than 100 W", "100 or more"),
    Bad("an H200 above its ceiling",
        rack([rtx3090(0, device="2335", vram_mib=143771, power_cap_w=750)]),
        "gpus.cards[0].power_cap_w", "H200 accepts no more than 700 W", "700 or less"),
    Bad("cap of a guest's card", rack([rtx3090(0, role="passthrough")]),
        "gpus.cards[0].power_cap_w", "belongs to a guest", "in the guest"),
    Bad("clock of a guest's card",
        rack([rtx3090(0, role="passthrough", power_cap_w=None, clock_max_mhz=1500)]),
        "gpus.cards[0].clock_max_mhz", "belongs to a guest", "in the guest"),
    Bad("memory of another card", rack([rtx3090(0, vram_mib=12288)]),
        "gpus.cards[0].vram_mib", "RTX 3090 (2204) has 24576 MiB", "device id"),
    Bad("more lanes than the card has",
        rack([rtx3090(0, device="2d04", vram_mib=16311, power_cap_w=None)]),
        "gpus.cards[0].link_width", "RTX 5060 Ti has 8 lanes", "8 or less"),
    Bad("half the supply", rack([rtx3090(n) for n in range(8)], [supply("a", 1600)]),
        "gpus.power_supplies[0]", "draw 2200 W", "power_cap_w"),
    Bad("a supply of an unknown card", rack(PAIR, [supply("a", 1600), supply("b", 1600, 7)]),
        "gpus.power_supplies[1]", "slot-7, and no card", "declared card"),
    Bad("a card on two supplies",
        rack(PAIR, [supply("a", 1600, 0, 1), supply("b", 1600, 1)]),
        "gpus.power_supplies[1]", "slot-1, and so does a", "once"),
    Bad("more claimed than there is", rack(PAIR, None, [tenant("chat", 40000),
        tenant("images", 12000)]), "services[2].gpu_mib",
        "52000 MiB are claimed (chat 40000, images 12000) and the compute cards have 49152",
        "less"),
    Bad("a guest's memory claimed",
        rack([rtx3090(0), rtx3090(1, role="passthrough", power_cap_w=None)], None,
            [tenant("chat", 30000)]), "services[1].gpu_mib", "compute cards have 24576", "less"),
    Bad("GPU memory without a card", rack(None, None, [tenant("chat", 100)]),
        "services[1].gpu_mib", "declares no card", "declare gpus"),
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=[bad.name for bad in BAD])
def test_one_mistake_is_one_finding(bad: Bad) -> None:
    (finding,) = findings(bad.settings)
    assert finding.key == bad.key
    assert bad.wrong in finding.wrong
    assert bad.mend in finding.mend
    assert "\n" not in f"{finding.wrong}{finding.mend}"
