"""`tests/gpu/run`'s comparison, on the fake rack: both readings agree, and a lie is seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from facts.gpu import GpuPicture
from facts.gpu_picture import Picture
from tests.doubles.machine import FakeMachine
from tests.doubles.rack import known
from tests.doubles.sysfs import sysfs
from tests.gpu.compare import compared
from tests.unit.local_host import LocalHost

Seen = tuple[Picture, str]


@pytest.fixture
def seen(tmp_path: Path) -> Seen:
    """The facts' picture of nine cards, and the long report about the same."""
    machine = FakeMachine(tmp_path, known("rack9x3090"))
    root = tmp_path / "root"
    sysfs(machine.rack, root / "sys/bus/pci/devices")
    picture = LocalHost(programs=machine.programs).get_fact(GpuPicture, root=str(root))
    return picture, machine.smi("-q", "-x").stdout


def test_both_readings_of_nine_cards_agree(seen: Seen) -> None:
    rows = list(compared(*seen))
    assert [row for row in rows if not row.same] == []
    assert len({row.card for row in rows}) == 9
    assert {"uuid", "power_limit_w", "memory_total_mib", "link_width"} <= {
        row.field for row in rows
    }


def test_a_value_that_differs_is_told(seen: Seen) -> None:
    picture, report = seen
    cards = picture.smi or ()
    wrong = replace(cards[3], power_limit_w=123.0)
    lying = replace(picture, smi=(*cards[:3], wrong, *cards[4:]))
    (row,) = (row for row in compared(lying, report) if not row.same)
    assert (row.card, row.field, row.ours) == (wrong.address, "power_limit_w", 123.0)


def test_a_card_that_only_one_of_them_lists_is_told(seen: Seen) -> None:
    picture, report = seen
    cards = picture.smi or ()
    (row,) = (row for row in compared(replace(picture, smi=cards[1:]), report) if not row.same)
    assert (row.card, row.field) == (cards[0].address, "card")
