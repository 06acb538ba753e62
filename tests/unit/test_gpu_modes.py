"""Modes: what cannot be is refused, one of each set is in force, and its limits are its own."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from facts.gpu_modes import GpuModes, GpuModesState
from facts.units import UnitState, UnitStates
from holdfast import registry
from holdfast.checks import gpu, services
from holdfast.checks import gpu_modes as checks
from holdfast.engines import units
from holdfast.gpu import limits, modes
from holdfast.host_programs import gpu_limits
from holdfast.host_programs import mode as mode_program
from holdfast.service.units import service_unit
from holdfast.settings import LOOPBACK_OF, HostSettings
from operations import gpu_modes as operations
from operations.units import Unit, settle
from tests.drill.pairs import walk
from tests.unit.local_host import LocalHost
from tests.unit.recorded_facts import read
from tests.unit.site_data import good
from tests.unit.test_gpu_checks import rtx3090, supply

STATE = UnitState("loaded", "active", "enabled", False, 100.0, 100.0, 50.0)
SERVICES: dict[str, dict[str, Any]] = {
    "painter": {"gpu_mib": 20000, "cards": ["slot-0", "slot-1"]},
    "voice": {"gpu_mib": 20000, "cards": ["slot-0"]},
    "reader": {"gpu_mib": 20000, "cards": ["slot-1"]},
    "watcher": {"gpu_mib": 2000, "cards": ["slot-0"]},
}
ENGINE = {
    "name": "chat",
    "checkpoint": "model",
    "cards": ["slot-1"],
    "port": 8100,
    "api_key": "CHAT_KEY",
    "context_tokens": 256,
    "utilisation": 0.5,
}
MODES: list[dict[str, Any]] = [
    {"name": "agent", "services": ["chat"]},
    {"name": "creative", "services": ["painter"], "power_caps_w": {"slot-0": 300}},
    {"name": "audio", "services": ["voice", "reader"], "power_caps_w": {"slot-1": 150}},
]
DESK = {"name": "desk", "cards": ["slot-0", "slot-1"], "default": "agent", "modes": MODES}


def rack(*sets: dict[str, Any], **services: dict[str, Any]) -> HostSettings:
    """Two cards, an engine, and services of which `watcher` is in no mode."""
    data = good()["rack"]
    data["gpus"] = {"cards": [rtx3090(0), rtx3090(1)], "card_sets": list(sets or [DESK])}
    data["vllm"] = {"engines": [ENGINE]}
    for name, service in (SERVICES | services).items():
        own = {"name": name, "unit": f"{name}.service", "user": f"svc-{name}", "tier": "T1"}
        data["services"].append(own | service)
    return HostSettings.model_validate(data)


def mode(name: str, **changes: Any) -> list[dict[str, Any]]:
    """The modes, one of them changed."""
    return [one | changes if one["name"] == name else one for one in MODES]


def test_modes_that_can_be_are_not_refused() -> None:
    assert list(checks.modes(rack())) == []
    assert list(gpu.memory(rack())) == []


@pytest.mark.parametrize(
    ("settings", "key", "said"),
    [
        (rack(DESK | {"cards": ["slot-0", "slot-9"]}), "gpus.card_sets[0].cards[1]", "slot-"),
        (rack(DESK | {"default": "agnet"}), "gpus.card_sets[0].default", "write 'agent'"),
        (
            rack(DESK | {"modes": mode("agent", services=["caht"])}),
            "gpus.card_sets[0].modes[0].services[0]",
            "write 'chat'",
        ),
        (
            rack(DESK | {"modes": mode("agent", services=["floor"])}),
            "gpus.card_sets[0].modes[0].services[0]",
            "the floor runs",
        ),
        (
            rack(DESK | {"modes": mode("audio", power_caps_w={"slot-2": 200})}),
            "gpus.card_sets[0].modes[2].power_caps_w.slot-2",
            "has no such card",
        ),
        (
            rack(DESK | {"modes": mode("audio", power_caps_w={"slot-1": 60})}),
            "gpus.card_sets[0].modes[2].power_caps_w.slot-1",
            "accepts no less than 100 W",
        ),
        (
            rack(DESK, voice={"gpu_mib": 20000, "cards": ["slot-7"]}),
            "services[1].cards[0]",
            "no such card",
        ),
        (rack(DESK, voice={"cards": ["slot-0"]}), "services[1].gpu_mib", "claims no memory"),
        (
            rack(
                DESK,
                voice={"idle": {"url": "http://127.0.0.1:1/q", "contains": "0"}, "gpu_mib": 9},
            ),
            "services[1].idle.url",
            "does not listen on port 1",
        ),
        (
            rack(DESK, voice={"unit": "painter.service", "gpu_mib": 9}),
            "gpus.card_sets[0].modes[1].services[0]",
            "also belongs to voice",
        ),
    ],
)
def test_what_cannot_be_is_refused(settings: HostSettings, key: str, said: str) -> None:
    findings = [*checks.modes(settings), *services.services(settings)]
    found = {finding.key: finding for finding in findings}
    offset = len(good()["rack"]["services"])
    at = key if key.startswith("gpus") else f"services[{offset + 1}]{key.partition(']')[2]}"
    assert at in found, list(found)
    assert said in f"{found[at].wrong}; {found[at].mend}"


def test_cards_and_services_are_of_one_set() -> None:
    one = {
        "name": "one",
        "cards": ["slot-0"],
        "default": "a",
        "modes": [{"name": "a", "services": ["voice"]}, {"name": "b", "services": ["painter"]}],
    }
    two = {
        "name": "two",
        "cards": ["slot-0", "slot-1"],
        "default": "c",
        "modes": [{"name": "c", "services": ["reader"]}, {"name": "a", "services": ["voice"]}],
    }
    found = [(finding.key, finding.wrong) for finding in checks.modes(rack(one, two))]
    assert found == [
        (
            "gpus.card_sets[0].modes[1].services[0]",
            "it uses slot-1, which is not in this set",
        ),
        (
            "gpus.card_sets[1].cards[0]",
            "it is in the set one too, and a card can be in one set only",
        ),
        (
            "gpus.card_sets[1].modes[1].name",
            "one has a mode of this name, and the switch takes only the mode's name",
        ),
        (
            "gpus.card_sets[1].modes[1].services[0]",
            "it is also in a mode of one, and either set could stop it",
        ),
    ]


def test_memory_is_claimed_by_one_mode_at_a_time() -> None:
    crowded = rack(DESK, watcher={"gpu_mib": 5000, "cards": ["slot-0"]})
    found = [str(finding.wrong) for finding in gpu.memory(crowded)]
    assert len(found) == 1
    assert "25000 MiB of slot-0 are claimed in mode " in found[0]
    together = DESK | {"modes": mode("agent", services=["chat", "reader"])}
    (finding,) = gpu.memory(rack(together))
    assert "slot-1 are claimed in mode agent (reader 20000, chat 12288)" in finding.wrong


def test_power_supplies_carry_every_mode() -> None:
    settings = rack(DESK | {"modes": mode("creative", power_caps_w={"slot-0": 350})})
    assert settings.gpus is not None
    # 250 + 250 + 200 W of the machine are 80 % of 875 W.
    for watts, faults in ((1000, 0), (900, 1)):
        data = settings.gpus.model_dump() | {"power_supplies": [supply("a", watts)]}
        changed = settings.model_copy(update={"gpus": type(settings.gpus).model_validate(data)})
        assert len(list(gpu.power_supplies(changed))) == faults


def test_a_mode_has_its_own_limits_and_the_rest_the_cards() -> None:
    settings = rack()
    assert settings.gpus is not None

    def caps(**present: str) -> dict[str, int | None]:
        assert settings.gpus is not None
        found = limits.declared(settings.gpus, present)
        told = {
            card.name: card.power_cap_w for card in modes.in_force(settings.gpus, present).cards
        }
        assert {card.name: card.power_cap_w for card in found} == told
        return told

    assert caps(desk="agent") == {"slot-0": 250, "slot-1": 250}
    assert caps(desk="creative") == {"slot-0": 300, "slot-1": 250}
    assert caps(desk="audio") == {"slot-0": 250, "slot-1": 150}


def test_the_host_s_program_reads_what_the_deploy_writes(tmp_path: Any) -> None:
    settings = rack()
    assert settings.gpus is not None
    (tmp_path / "desk").write_text("audio\n")
    (tmp_path / ".desk.lock").touch()
    present = gpu_limits.modes_in(str(tmp_path))
    told = json.loads(limits.config(settings.gpus))
    cards = [gpu_limits.Wanted(**card).in_force(present) for card in told]
    assert [card.power_cap_w for card in cards] == [250, 150]


def test_a_target_wants_its_services_and_ends_the_others() -> None:
    found = modes.units(rack())
    text = found["/etc/systemd/system/holdfast-mode-audio.target"].splitlines()
    assert "Wants=voice.service reader.service" in text
    assert "Conflicts=holdfast-mode-agent.target holdfast-mode-creative.target" in text
    assert "/etc/systemd/system/holdfast-vllm-chat.service.d/60-holdfast-mode.conf" in found
    # What is in no mode is not touched.
    assert not any("watcher" in path for path in found)


def test_what_undoes_a_switch_may_ask_services_of_every_tier() -> None:
    lines = service_unit(modes.undo()).splitlines()
    for address in LOOPBACK_OF.values():
        assert f"IPAddressAllow={address}/32" in lines
    assert "IPAddressDeny=any" in lines


def test_every_tenant_is_known_to_the_host() -> None:
    house = json.loads(modes.config(rack()))
    tenants = {tenant["name"]: tenant for tenant in house["tenants"]}
    assert set(tenants) == {"chat", "painter", "voice", "reader", "watcher"}
    assert tenants["chat"]["memory"] == ["0.5", rtx3090(1)["uuid"]]
    assert tenants["painter"]["memory"] == ["20000MiB", rtx3090(0)["uuid"], rtx3090(1)["uuid"]]


def _planned(found: GpuModesState, **active: str) -> list[str]:
    settings = rack()
    names = [modes.target(one["name"]) for one in MODES]
    states = {
        name: UnitState(
            "loaded",
            active.get(name.split("-")[2].partition(".")[0], "inactive"),
            "enabled" if "agent" in name else "disabled",
            False,
            100.0,
            100.0,
            50.0,
        )
        for name in names
    } | dict.fromkeys(modes.service_units(settings), STATE)
    host = LocalHost(facts={UnitStates: states, GpuModes: found})
    assert settings.gpus is not None
    return host.planned(
        operations.in_force,
        card_sets=settings.gpus.card_sets,
        services=modes.service_units(settings),
    )


def test_the_mode_that_is_in_force_stays() -> None:
    assert _planned(GpuModesState({"desk": "creative"}), creative="active") == []
    assert _planned(GpuModesState({"desk": "agent"}), agent="active") == []


def test_a_mode_that_is_gone_gives_way_to_the_default() -> None:
    planned = _planned(GpuModesState({"desk": "forensic"}))
    assert "echo agent > /run/holdfast/gpu-modes/desk" in planned[0]
    assert planned[1].endswith("systemctl start holdfast-mode-agent.target")


def test_a_target_that_was_started_by_hand_is_no_mode() -> None:
    planned = _planned(GpuModesState({"desk": "creative"}), agent="active")
    assert planned[0] == "systemctl stop holdfast-mode-agent.target"
    assert planned[1].endswith("systemctl start holdfast-mode-creative.target")


@pytest.mark.parametrize(
    ("target", "service", "steps"),
    [
        ("active", "active", []),
        ("active", "inactive", ["start x.service"]),
        ("inactive", "active", ["stop x.service"]),
        ("inactive", "inactive", []),
    ],
)
def test_a_service_runs_along_with_its_target(target: str, service: str, steps: list[str]) -> None:
    off = UnitState("loaded", service, "disabled", False, 100.0, 100.0, 50.0)
    states = {"x.service": off, "m.target": UnitState("loaded", target, "", False, 1, 1, None)}
    host = LocalHost(facts={UnitStates: states})
    planned = host.planned(settle, units=[Unit("x.service", along_with=["m.target"])])
    assert [line.rpartition("systemctl ")[2] for line in planned] == steps


def test_nothing_stays_of_undeclared_modes() -> None:
    state = GpuModesState(
        {"desk": "agent"},
        (
            "/etc/systemd/system/holdfast-mode-agent.target",
            "/etc/systemd/system/chat.service.d/60-holdfast-mode.conf",
            "/run/holdfast/gpu-modes/desk",
        ),
    )
    host = LocalHost(facts={GpuModes: state})
    (planned,) = host.planned(operations.only, declared=[])
    # A service that was part of a mode is freed of it before the mode ends.
    assert planned.index("chat.service.d") < planned.index("disable --now holdfast-mode-agent")
    assert planned.count("rm -f") == 2
    assert host.planned(operations.only, declared=list(state.files)) == []


def test_the_fact_reads_records_and_files() -> None:
    assert read(GpuModes) == GpuModesState({"desk": "audio"}, ("/usr/local/sbin/holdfast-mode",))


def test_what_stands_alone_on_a_host_agrees_with_the_rest() -> None:
    assert mode_program.PRESENT == gpu_limits.PRESENT
    assert mode_program.LIMITS == limits.SERVICE
    assert mode_program.MEMORY_PROGRAM == units.MEMORY_PROGRAM


def test_claims_are_told_by_mode() -> None:
    told = {
        words: {claim.owner for claim in claims}
        for words, claims in registry.gpu_claims_by_mode(rack())
    }
    assert told == {
        " in mode agent": {"chat", "watcher"},
        " in mode creative": {"painter", "watcher"},
        " in mode audio": {"voice", "reader", "watcher"},
    }


def test_the_drill_walks_every_pair_once() -> None:
    names = ["a", "b", "c", "d"]
    way = ["a", *walk(names, "a")]
    assert len(set(pairwise(way))) == len(way) - 1 == 12
