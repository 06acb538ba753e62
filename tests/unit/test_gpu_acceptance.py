"""Sick racks stop with their own sentence, healthy ones with none."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from facts.gpu import GpuPicture
from facts.gpu_picture import DriverState
from holdfast.gpu import acceptance
from holdfast.gpu.acceptance import BUS_CHECKS, DRIVER_CHECKS, Check, Difference, Kind, differences
from holdfast.settings import PowerSupply
from operations.gpu_acceptance import accepted
from tests.unit.gpu_racks import RackName
from tests.unit.local_host import LocalHost
from tests.unit.sick_racks import (
    SICK,
    WELL,
    Change,
    Rack,
    Sick,
    both,
    card,
    pci,
    seen,
    smi,
    unlisted,
    unplugged,
    well,
    xid,
)


def diagnosed(sick: Sick) -> list[Difference]:
    rack = sick.make(well(sick.rack))
    return differences(rack.gpus, rack.picture, sick.moment, sick.memory_claimed)


@pytest.mark.parametrize("sick", SICK, ids=[sick.name for sick in SICK])
def test_one_sickness_is_one_sentence(sick: Sick) -> None:
    (difference,) = diagnosed(sick)
    assert difference.kind == sick.kind
    text = str(difference)
    assert [word for word in sick.words if word not in text] == []
    assert text.startswith(difference.sentence)
    assert text.endswith(f"; {difference.mend}.")
    assert "\n" not in text


def test_every_kind_has_its_own_sentence_and_no_other_kind_tells_it() -> None:
    told: dict[str, set[Kind]] = {}
    for sick in SICK:
        (difference,) = diagnosed(sick)
        # Without what differs from card to card.
        words = re.sub(r"psu-\d|gpu-\d|0000:\S+|\d+", "", difference.sentence)
        told.setdefault(words, set()).add(difference.kind)
    assert [words for words, kinds in told.items() if len(kinds) > 1] == []
    assert len(told) > 50
    assert len({sick.name for sick in SICK}) == len(SICK)


def test_every_kind_of_difference_has_a_sick_rack() -> None:
    assert {sick.kind for sick in SICK} == set(get_args(Kind))


@pytest.mark.parametrize(("name", "recording", "make"), WELL, ids=[case[0] for case in WELL])
@pytest.mark.parametrize("moment", get_args(acceptance.Moment))
def test_a_healthy_rack_raises_nothing(
    name: str, recording: RackName, make: Change, moment: acceptance.Moment
) -> None:
    rack = make(well(recording))
    assert differences(rack.gpus, rack.picture, moment) == []


@pytest.mark.parametrize("recording", get_args(RackName))
def test_an_idle_card_without_tenants_uses_little(recording: RackName) -> None:
    rack = well(recording)
    assert differences(rack.gpus, rack.picture, memory_claimed=False) == []


@pytest.mark.parametrize("check", BUS_CHECKS + DRIVER_CHECKS, ids=lambda check: check.__name__)
def test_without_a_check_a_sickness_goes_unseen(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = [diagnosed(sick) for sick in SICK]
    for checks in ("BUS_CHECKS", "DRIVER_CHECKS"):
        kept = tuple(other for other in getattr(acceptance, checks) if other is not check)
        monkeypatch.setattr(acceptance, checks, kept)
    assert [diagnosed(sick) for sick in SICK] != whole


@pytest.mark.parametrize("kind", get_args(Kind))
def test_without_its_kind_a_sick_rack_passes(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:

    def deaf(check: Check) -> Check:
        return lambda seen: (item for item in check(seen) if item.kind != kind)

    for checks in ("BUS_CHECKS", "DRIVER_CHECKS"):
        monkeypatch.setattr(acceptance, checks, tuple(map(deaf, getattr(acceptance, checks))))
    for sick in SICK:
        if sick.kind == kind:
            assert diagnosed(sick) == []


def _kinds(rack: Rack, moment: acceptance.Moment = "after_driver") -> list[Kind]:
    return [difference.kind for difference in differences(rack.gpus, rack.picture, moment)]


def test_before_the_driver_its_absence_is_no_difference() -> None:
    rack = both(
        seen(smi=None, smi_exit=None, driver=DriverState(nouveau_loaded=True)),
        pci(*range(9), driver="nouveau"),
    )(well("rack9x3090"))
    assert _kinds(rack, "before_driver") == []
    assert _kinds(rack) == ["nouveau"]


def test_before_the_caps_are_set_their_absence_is_no_difference() -> None:
    rack = smi(*range(9), power_limit_w=350.0)(well("rack9x3090"))
    assert _kinds(rack, "before_caps") == []
    assert _kinds(rack) == ["cap_lost"] * 9


def test_a_missing_card_is_named_by_its_uuid_although_the_buses_were_numbered_anew() -> None:
    rack = well("rack9x3090")
    addresses = [item.address for item in rack.picture.pci]
    for index in range(4, 9):
        moved = addresses[index - 1]
        rack = both(pci(index, address=moved), smi(index, address=moved))(rack)
    rack = seen(
        pci=(*rack.picture.pci[:3], *rack.picture.pci[4:]),
        smi=tuple(item for item in rack.picture.smi or () if item.index != 3),
    )(rack)
    (difference,) = differences(rack.gpus, rack.picture)
    assert (difference.kind, difference.card) == ("missing", "gpu-3")


def test_the_first_supply_is_not_blamed_while_the_machine_runs() -> None:
    assert _kinds(unplugged(0, 1, 2)(well("rack9x3090"))) == ["missing"] * 3


def test_several_cards_are_each_missed_where_their_supply_has_others() -> None:
    assert _kinds(unplugged(3, 4)(well("rack9x3090"))) == ["missing"] * 2


def test_a_supply_with_one_card_is_only_suspected() -> None:
    rack = well("rack9x3090")
    supplies = [
        PowerSupply(name="a", watts=3000),
        PowerSupply(name="b", watts=850, cards=["gpu-8"]),
    ]
    gpus = rack.gpus.model_copy(update={"power_supplies": supplies})
    (difference,) = differences(gpus, unplugged(8)(rack).picture)
    assert difference.kind == "missing"
    assert "its power supply b" in difference.sentence


def test_several_causes_are_as_many_sentences() -> None:
    rack = both(
        unplugged(8), pci(0, link_width=1), xid(2, 79), unlisted(2), unlisted(5), smi(1, mig=True)
    )(well("rack9x3090"))
    assert _kinds(rack) == ["fell_off", "missing", "link_width", "unseen", "mig"]


def test_a_card_of_undeclared_place_is_found_before_one_counts_as_moved() -> None:
    rack = both(card(0, uuid=None), card(1, uuid=None, pci_address=None), unplugged(0))(
        well("rack9x3090")
    )
    (difference,) = differences(rack.gpus, rack.picture)
    assert (difference.kind, difference.card) == ("missing", "gpu-0")


def test_a_card_whose_maker_allows_more_is_budgeted_by_its_own_default() -> None:
    rack = both(
        *(card(index, power_cap_w=None) for index in (3, 4, 5)),
        *(smi(index, power_limit_w=500.0, power_default_w=500.0) for index in (3, 4, 5)),
    )(well("rack9x3090"))
    (difference,) = differences(rack.gpus, rack.picture)
    assert difference.kind == "power_budget"
    assert "psu-1" in difference.sentence
    assert "1500 W" in difference.sentence


def _run(rack: Rack, moment: acceptance.Moment = "after_driver") -> tuple[list[str], str]:
    host = LocalHost(facts={GpuPicture: rack.picture})
    return host.apply(accepted, gpus=rack.gpus, moment=moment, memory_claimed=True)


def test_the_operation_passes_a_healthy_rack_in_silence() -> None:
    assert _run(well("rack9x3090")) == ([], "")


def test_the_operation_stops_with_every_sentence_at_once() -> None:
    rack = both(pci(1, link_width=1), smi(2, recovery_action="Reset"))(well("rack9x3090"))
    commands, said = _run(rack)
    assert commands == ["stop"]
    lines = said.splitlines()
    assert [line.split()[0] for line in lines] == ["gpu-1", "gpu-2"]


def test_the_operation_judges_by_the_moment() -> None:
    rack = smi(0, recovery_action="Reset")(well("rack9x3090"))
    assert _run(rack, "before_driver") == ([], "")
