"""The cards are as declared, keep their limits, and are passed to containers as they are.

To see each test red on a machine:

- a declared card ``gone`` from the rack, one with fewer lanes, one whose device id is another;
  an Xid 79 written to the kernel's log; ``nvidia-smi -pm 0``; the newest kernel's module gone
- with the timer stopped: ``nvidia-smi -i UUID -pl W``, or the driver loaded again
- the timer stopped; the timer or the service disabled; a card gone, so that the last run failed
- a UUID removed from the CDI specification, another driver's version written into it, a file put
  at /run/cdi/nvidia.yaml; ``systemctl disable`` of its unit, ``systemctl unmask`` of NVIDIA's
"""

from __future__ import annotations

from typing import Any

import pytest
from pyinfra.api import FactBase
from testinfra.host import Host

from facts.gpu import GpuPicture
from facts.gpu_containers import ContainersState, GpuContainer, GpuContainerAccess, GpuContainers
from facts.gpu_limits import GpuLimits, LimitsState
from facts.gpu_picture import Picture
from holdfast.gpu import containers, driver, limits
from holdfast.gpu.comparison import FELL_OFF, Comparison
from holdfast.host_programs import gpu_limits
from holdfast.settings import Gpus, HostSettings


def _ask(host: Host, fact: FactBase[Any]) -> Any:
    """The facts of a deploy: the fact's own command, and its own parser."""
    command = fact.command()
    assert isinstance(command, str)
    return fact.process(host.check_output(command).splitlines())


@pytest.fixture(scope="module")
def wanted(settings: HostSettings) -> Gpus:
    if settings.gpus is None:
        pytest.skip("the inventory declares no NVIDIA card for this host")
    return settings.gpus


@pytest.fixture(scope="module")
def picture(host: Host, wanted: Gpus) -> Picture:
    found: Picture = _ask(host, GpuPicture())
    return found


@pytest.fixture(scope="module")
def own(wanted: Gpus) -> Gpus:
    """The cards that this host itself uses."""
    cards = [card for card in wanted.cards if card.role == "compute"]
    if not cards:
        pytest.skip("all cards of this host belong to guests")
    return wanted.model_copy(update={"cards": cards})


@pytest.fixture(scope="module")
def state(host: Host, own: Gpus) -> LimitsState:
    found: LimitsState = _ask(host, GpuLimits())
    return found


@pytest.fixture(scope="module")
def specified(host: Host, own: Gpus, settings: HostSettings) -> ContainersState:
    if not containers.wants_containers(settings):
        pytest.skip("no container of this host may use its cards")
    found: ContainersState = _ask(host, GpuContainers())
    return found


def test_every_declared_card_is_there_with_its_lanes(wanted: Gpus, picture: Picture) -> None:
    for card, found in Comparison(wanted, picture).matched:
        assert found is not None, f"{card.name} is not on the bus"
        assert found.device == card.device, card.name
        assert found.link_width == card.link_width, card.name


def test_the_driver_shows_every_card_of_this_host(own: Gpus, picture: Picture) -> None:
    comparison = Comparison(own, picture)
    for card, found in comparison.matched:
        assert found is not None, f"{card.name} is not on the bus"
        assert found.address in comparison.smi, f"{card.name} is not shown by nvidia-smi"
        assert card.uuid in (None, comparison.smi[found.address].uuid), card.name


def test_no_card_has_fallen_off_the_bus_since_boot(picture: Picture, wanted: Gpus) -> None:
    assert [xid for xid in picture.xids if xid.this_boot and xid.code == FELL_OFF] == []


def test_the_driver_stays_in_place_without_clients(picture: Picture, own: Gpus) -> None:
    assert picture.smi
    assert [card.uuid for card in picture.smi if not card.persistence] == []


def test_the_kernel_that_boots_next_drives_the_cards(host: Host, own: Gpus) -> None:
    timer = driver.KERNELS_TIMER
    assert host.check_output(f"systemctl is-active {timer}") == "active"
    assert host.check_output(f"systemctl is-enabled {timer}") == "enabled"
    assert host.run(f"systemctl start {driver.KERNELS_SERVICE}").succeeded


def test_every_limit_reads_back_as_declared(own: Gpus, state: LimitsState) -> None:
    for card in limits.declared(own, state.modes):
        seen = gpu_limits.matching(card, state.cards)
        assert seen is not None, card.label
        wanted_w = gpu_limits.target_w(card, seen)
        if wanted_w is not None:
            assert seen.power_w == pytest.approx(wanted_w, abs=0.5), card.label
        if card.clock_max_mhz is not None and seen.clock_mhz is not None:
            highest = card.clock_max_mhz + gpu_limits.CLOCK_TOLERANCE_MHZ
            assert seen.clock_mhz <= highest, card.label
    assert list(limits.not_held(limits.declared(own, state.modes), state.cards, state.locked)) == []


def test_the_limits_are_watched_now_and_at_boot(host: Host, own: Gpus) -> None:
    timer, service = limits.TIMER, limits.SERVICE
    assert host.check_output(f"systemctl is-active {timer}") == "active"
    enabled = host.check_output(f"systemctl is-enabled {timer} {service}").splitlines()
    assert enabled == ["enabled", "enabled"]


def test_the_last_check_of_the_limits_succeeded(state: LimitsState) -> None:
    assert state.has_run
    assert state.succeeded


def test_containers_get_the_present_cards_and_libraries(specified: ContainersState) -> None:
    assert specified.uuids, "the driver shows no card"
    assert containers.stale(specified) is None
    assert not specified.overridden


def test_the_specification_is_made_at_every_boot_by_us_alone(
    host: Host, specified: ContainersState
) -> None:
    assert host.check_output(f"systemctl is-enabled {containers.SERVICE}") == "enabled"
    for unit in containers.VENDOR_UNITS:
        assert host.run(f"systemctl is-enabled {unit}").stdout.strip() == "masked"


def test_running_containers_reach_their_cards(host: Host, specified: ContainersState) -> None:
    running: list[GpuContainer] = _ask(host, GpuContainerAccess())
    assert containers.complaint(running) is None
