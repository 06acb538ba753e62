"""The reference racks: nothing in them is refused, and their page of docs says what is planned."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from holdfast import site
from holdfast.checks.gpu_driver import driver
from holdfast.gpu import table
from holdfast.gpu.driver import chips
from holdfast.gpu.power import faults
from holdfast.settings import Distribution
from tests.unit.site_data import keep_secrets
from tests.unit.test_inventories import SECRETS

RACKS = ["rack9x3090", "blackwell5090", "quad3090", "octo3090", "dualstack", "h200"]


def test_the_page_says_what_is_planned() -> None:
    assert table.PAGE.read_text() == table.page(), "run `make docs`"


def test_the_six_racks_are_there() -> None:
    assert sorted(table.racks()) == sorted(RACKS)


def test_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_secrets(tmp_path, {key: f"{key.lower()[:9]}-9fKq27xLmZ" for key in SECRETS})
    monkeypatch.setenv("HOLDFAST_SECRETS", str(tmp_path))
    for name in SECRETS:
        monkeypatch.delenv(name, raising=False)
    assert sorted(site.parse(table.racks())) == sorted(RACKS)


@pytest.mark.parametrize("distribution", get_args(Distribution))
@pytest.mark.parametrize("rack", RACKS)
def test_each_has_a_driver_within_its_budget(rack: str, distribution: Distribution) -> None:
    settings = table.settings_on(rack, distribution)
    assert settings.gpus is not None
    assert list(driver(settings)) == []
    assert faults(settings.gpus) == []
    assert {card.device for card in settings.gpus.cards} <= set(chips())
    assert table.planned(rack, distribution).packages


@pytest.mark.parametrize(
    ("rack", "distribution", "source"),
    [
        ("blackwell5090", "debian12", "vendor"),
        ("blackwell5090", "debian13", "vendor"),
        ("blackwell5090", "ubuntu2404", "distribution"),
        ("rack9x3090", "debian12", "vendor"),
        ("rack9x3090", "debian13", "vendor"),
        ("octo3090", "ubuntu2404", "distribution"),
    ],
)
def test_where_the_driver_comes_from(rack: str, distribution: Distribution, source: str) -> None:
    assert table.planned(rack, distribution).source == source


@pytest.mark.parametrize("distribution", get_args(Distribution))
def test_only_the_rack_with_nvswitches_has_a_fabric_manager(distribution: Distribution) -> None:
    packages = {
        rack: [name for group in table.planned(rack, distribution).packages for name in group]
        for rack in RACKS
    }
    assert [rack for rack in RACKS if "nvidia-fabricmanager-580" in packages[rack]] == ["h200"]


def test_the_guests_card_is_bound_by_its_address() -> None:
    assert table.planned("dualstack", "debian13").vfio == ("0000:01:00.0",)
