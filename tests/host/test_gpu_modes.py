"""Modes: one of each set of cards is active; its services run, and those of other modes do not."""

from __future__ import annotations

import pytest
from testinfra.host import Host

from facts.gpu_modes import RECORDS, GpuModes, GpuModesState
from holdfast.gpu import modes
from holdfast.settings import CardSet, HostSettings


@pytest.fixture(scope="module")
def card_sets(settings: HostSettings) -> list[CardSet]:
    found = modes.sets(settings)
    if not found:
        pytest.skip("this host has no modes")
    return found


@pytest.fixture(scope="module")
def present(host: Host, card_sets: list[CardSet]) -> dict[str, str]:
    """Set of cards to its active mode, as a deploy reads it."""
    fact = GpuModes()
    state: GpuModesState = fact.process(host.check_output(fact.command()).splitlines())
    return state.modes


def _active(host: Host, units: list[str]) -> list[str]:
    states = host.run(f"systemctl is-active {' '.join(units)}").stdout.split()
    return [unit for unit, state in zip(units, states, strict=True) if state == "active"]


def test_one_mode_of_each_set_is_active(
    host: Host, card_sets: list[CardSet], present: dict[str, str]
) -> None:
    for card_set in card_sets:
        targets = [modes.target(mode.name) for mode in card_set.modes]
        assert _active(host, targets) == [modes.target(present[card_set.name])]


def test_its_services_run_and_no_other(
    host: Host, settings: HostSettings, card_sets: list[CardSet], present: dict[str, str]
) -> None:
    wanted = {
        modes.unit(settings, service)
        for card_set in card_sets
        for mode in card_set.modes
        if mode.name == present[card_set.name]
        for service in mode.services
    }
    assert set(_active(host, modes.service_units(settings))) == wanted


def test_a_boot_begins_with_the_default(
    host: Host, settings: HostSettings, card_sets: list[CardSet]
) -> None:
    targets = {
        modes.target(mode.name): "enabled" if mode.name == card_set.default else "disabled"
        for card_set in card_sets
        for mode in card_set.modes
    }
    enabled = host.run(f"systemctl is-enabled {' '.join(targets)}").stdout.split()
    assert dict(zip(targets, enabled, strict=True)) == targets
    # A service that starts by itself would run in every mode.
    units = modes.service_units(settings)
    assert "enabled" not in host.run(f"systemctl is-enabled {' '.join(units)}").stdout.split()
    kept = host.check_output(f"cat {RECORDS}")
    for card_set in card_sets:
        assert f"{modes.PRESENT}/{card_set.name} 0644 root root - {card_set.default}" in kept


def test_a_login_shows_the_mode(host: Host, present: dict[str, str]) -> None:
    told = host.check_output("run-parts /etc/update-motd.d")
    for card_set, mode in present.items():
        assert f"{card_set}: {mode} is active\n" in f"{told}\n"


def test_the_command_shows_every_mode(host: Host, card_sets: list[CardSet]) -> None:
    told = host.check_output(modes.PROGRAM)
    for card_set in card_sets:
        for mode in card_set.modes:
            assert f" {mode.name}: " in told
