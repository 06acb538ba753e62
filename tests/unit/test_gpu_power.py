"""The power budget: what hangs on which supply, and whether it carries that."""

from __future__ import annotations

import pytest

from holdfast.gpu import power
from holdfast.gpu.cards import KNOWN
from holdfast.gpu.power import Fault
from holdfast.settings import GpuCard, Gpus, PowerSupply


def rack(
    count: int = 4, device: str = "2204", cap_w: int | None = 250, **supplies: tuple[int, list[int]]
) -> Gpus:
    """Cards card-0.., and supplies by name: their label and the cards they name."""
    return Gpus(
        cards=[
            GpuCard(name=f"card-{index}", device=device, vram_mib=24576, power_cap_w=cap_w)
            for index in range(count)
        ],
        power_supplies=[
            PowerSupply(name=name, watts=watts, cards=[f"card-{index}" for index in cards])
            for name, (watts, cards) in supplies.items()
        ],
        machine_w=200,
    )


def only(faults: list[Fault]) -> Fault:
    (fault,) = faults
    assert "\n" not in f"{fault.wrong}{fault.mend}"
    return fault


def test_without_declared_supplies_nothing_is_judged() -> None:
    assert power.faults(rack(count=16, cap_w=None)) == []
    assert power.table(rack()) == ""


def test_the_machine_draws_from_the_first_supply() -> None:
    one, two = power.loads(rack(a=(1600, [0, 1]), b=(1600, [2, 3])))
    assert (one.sustained_w, two.sustained_w) == (200 + 2 * 250, 2 * 250)
    assert (one.surge_w, two.surge_w) == (200 + 2 * 450, 2 * 450)


def test_a_supply_without_names_feeds_the_rest() -> None:
    gpus = rack(a=(1600, []), b=(1600, [2]))
    assert power.fed(gpus) == {"a": ("card-0", "card-1", "card-3"), "b": ("card-2",)}
    assert power.faults(gpus) == []


def test_without_a_cap_the_default_counts() -> None:
    (load,) = power.loads(rack(count=2, cap_w=None, a=(1600, [])))
    assert load.sustained_w == 200 + 2 * 350


def test_half_of_the_supplies_do_not_carry_the_rack() -> None:
    whole = rack(count=8, a=(1600, [0, 1, 2, 3]), b=(1600, [4, 5, 6, 7]))
    assert power.faults(whole) == []
    fault = only(power.faults(rack(count=8, a=(1600, []))))
    assert fault.supply == "a"
    assert "8 cards and the machine draw 2200 W" in fault.wrong
    assert "a supply of 1600 W carries 1280 W" in fault.wrong
    assert "power_cap_w" in fault.mend


def test_a_label_is_not_spent_to_the_last_watt() -> None:
    # 200 + 4 x 270 W are 80 % of 1600 W.
    assert power.faults(rack(cap_w=270, a=(1600, []))) == []
    assert "carries 1280 W" in only(power.faults(rack(cap_w=271, a=(1600, [])))).wrong


def test_a_cap_does_not_lower_a_surge() -> None:
    # Five cards surge to 2250 W, however low their caps.
    gpus = rack(count=8, cap_w=100, a=(2000, [0, 1, 2]), b=(1600, [3, 4, 5, 6, 7]))
    fault = only(power.faults(gpus))
    assert fault.supply == "b"
    assert "its 5 cards surge to 2250 W" in fault.wrong
    assert "carries 2160 W" in fault.wrong
    assert "machine" not in fault.wrong


def test_where_none_measured_a_card_its_surge_is_estimated_from_its_default() -> None:
    (load,) = power.loads(rack(count=1, device="2335", cap_w=500, a=(3000, [])))
    assert KNOWN["2335"].surge_w is None
    assert load.surge_w == 200 + 1.3 * 700


def test_an_unknown_card_without_a_cap_is_judged_once_it_has_spoken() -> None:
    gpus = rack(count=3, device="ffff", cap_w=None, a=(850, []))
    assert power.faults(gpus) == []
    assert "unknown: card-0, card-1, card-2" in power.table(gpus)
    limits = {f"card-{index}": 300.0 for index in range(3)}
    assert "draw 1100 W" in only(power.faults(gpus, limits)).wrong


@pytest.mark.parametrize(
    ("gpus", "supply", "words"),
    [
        (rack(a=(1600, [0, 1, 2, 3, 9])), "a", "it feeds card-9, and no card of this name"),
        (rack(a=(1600, [0, 1, 2]), b=(1600, [2, 3])), "b", "it feeds card-2, and so does a"),
        (rack(a=(1600, [0, 1]), b=(1600, [2])), "b", "none names card-3"),
        (rack(a=(1600, []), b=(1600, [])), "b", "neither it nor a names its cards"),
    ],
)
def test_wiring_that_cannot_be_is_told_before_any_load(gpus: Gpus, supply: str, words: str) -> None:
    fault = only(power.faults(gpus))
    assert fault.supply == supply
    assert words in fault.wrong


def test_the_table_has_a_line_for_each_supply() -> None:
    lines = power.table(rack(a=(1600, [0, 1, 2]), b=(850, [3]))).splitlines()
    assert [line.split()[0] for line in lines] == ["a", "b"]
    assert "950 of   1280 W" in lines[0]
    assert "1550 of   2160 W" in lines[0]
    assert "450 of" in lines[1]
    assert len({len(line) for line in lines}) == 1


def test_the_table_of_wiring_that_cannot_be_has_what_is_clear() -> None:
    assert "cards  1" in power.table(rack(count=2, a=(1600, [0, 7])))


def test_a_capped_card_of_unknown_kind_surges_from_its_cap() -> None:
    (load,) = power.loads(rack(count=1, device="ffff", cap_w=300, a=(850, [])))
    assert load.surge_w == 200 + 1.3 * 300


def test_supplies_may_feed_no_card_where_each_card_has_its_own() -> None:
    assert power.faults(rack(count=1, a=(850, []), b=(850, []), c=(850, [0]))) == []


def test_one_card_is_spoken_of_as_one() -> None:
    fault = only(power.faults(rack(count=1, cap_w=None, a=(500, []))))
    assert fault.wrong.startswith("its card and the machine draw 550 W")


def test_what_is_known_of_cards_is_consistent() -> None:
    for device, known in KNOWN.items():
        assert len(device) == 4
        assert device == device.lower()
        assert known.power_min_w < known.power_default_w
        assert known.power_max_w is None or known.power_max_w >= known.power_default_w
        assert known.surge_w is None or known.surge_w > known.power_default_w
