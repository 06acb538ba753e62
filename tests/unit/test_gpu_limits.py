"""Caps and clocks: the program on fake cards, and the run that starts it where that is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from facts.gpu_limits import GpuLimits, LimitsState
from facts.places import SYSTEM
from holdfast import alerts
from holdfast.checks import gpu_limits as checks
from holdfast.gpu import limits
from holdfast.host_programs import gpu_limits
from holdfast.host_programs.gpu_limits import RECORD, Wanted, matching, seen_in
from holdfast.sandbox import EXPOSURE_MAX_ROOT
from holdfast.service import ON_FAILURE, texts
from holdfast.settings import Gpus, HostSettings
from holdfast.shipping import text_of
from operations.gpu_limits import held
from operations.program import settled
from tests.doubles.machine import FakeMachine
from tests.doubles.rack import Kind, rack
from tests.unit.local_host import LocalHost

NEVER = "GPU-00000000-0000-4000-8000-000000000000"


@dataclass
class Machine:
    """Fake cards, and the program laid out as on a host."""

    fake: FakeMachine
    folder: Path

    @property
    def uuids(self) -> list[str]:
        return [card.uuid for card in self.fake.rack.cards]

    def declare(self, *cards: Wanted) -> None:
        text = json.dumps([asdict(card) for card in cards])
        (self.folder / "limits.json").write_text(text)

    def cap(self, index: int, watts: int | None = None, clock: int | None = None) -> Wanted:
        return Wanted(f"riser-{index}", self.uuids[index], None, watts, clock)

    def run(self) -> tuple[int, list[str]]:
        """The program's exit status, and what it said."""
        arguments = [self.folder / "program", self.folder / "limits.json", self.record]
        done = subprocess.run(
            [sys.executable, "-I", *arguments],
            env={"PATH": f"{self.fake.programs}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stderr.splitlines()

    @property
    def record(self) -> Path:
        return self.folder / "run" / "clocks.json"

    def power(self) -> list[float]:
        asked = self.fake.smi("--query-gpu=power.limit", "--format=csv,noheader,nounits")
        return [float(line) for line in asked.stdout.splitlines() if line[0].isdigit()]

    def clocks(self) -> dict[str, int]:
        """UUID to the clock (MHz) it is locked to, as the fake driver alone knows."""
        state = json.loads((self.fake.state / "state.json").read_text())
        return {
            uuid: card["locked_clocks_mhz"][1]
            for uuid, card in state["cards"].items()
            if card.get("locked_clocks_mhz")
        }

    def log_calls(self, first: str = "") -> Path:
        """A file with a line for each call of nvidia-smi; ``first`` is shell run before it."""
        real, log = self.fake.programs / "real-nvidia-smi", self.folder / "calls"
        stub = self.fake.programs / "nvidia-smi"
        stub.rename(real)
        stub.write_text(f'#!/bin/sh\necho "$*" >> {log}\n{first}\nexec {real} "$@"\n')
        stub.chmod(0o755)
        return log


def _machine(folder: Path, *kinds: Kind) -> Machine:
    (folder / "rack").mkdir()
    fake = FakeMachine(folder / "rack", rack(*kinds))
    for card in fake.rack.cards:
        card.persistence = True
    fake.write()
    (folder / "program").write_text(text_of(gpu_limits))
    return Machine(fake, folder)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return _machine(tmp_path, "rtx3090", "rtx3090", "rtx5090")


def test_each_card_gets_its_own_cap_and_the_rest_their_default(machine: Machine) -> None:
    # Left behind by somebody who is not in the inventory.
    machine.fake.smi("-i", machine.uuids[1], "-pl", "200")
    machine.declare(machine.cap(0, 280), machine.cap(1), machine.cap(2, 450))
    status, said = machine.run()
    assert (status, machine.power()) == (0, [280, 350, 450])
    assert [line.split(": ")[1] for line in said] == [
        "power limit 280 W, was 350 W",
        "power limit 350 W, was 200 W",
        "power limit 450 W, was 575 W",
    ]


def test_the_second_run_sets_nothing(machine: Machine) -> None:
    machine.declare(machine.cap(0, 280), machine.cap(1))
    machine.run()
    log = machine.log_calls()
    assert machine.run() == (0, [])
    assert [line for line in log.read_text().splitlines() if "--query-gpu" not in line] == []


def test_a_card_is_found_by_its_slot_until_its_uuid_is_declared(machine: Machine) -> None:
    address = machine.fake.rack.cards[1].address
    machine.declare(Wanted("riser-1", None, address, 300))
    assert machine.run()[0] == 0
    assert machine.power() == [350, 300, 575]


def test_a_cap_is_tied_to_the_card_and_not_to_its_place(machine: Machine) -> None:
    machine.declare(machine.cap(0, 280), machine.cap(1, 300))
    machine.fake.rack.cards.reverse()
    machine.fake.write()
    assert machine.run()[0] == 0
    assert machine.power() == [575, 300, 280]


def test_a_cap_that_the_card_refuses_is_told_with_its_range_and_the_others_are_set(
    machine: Machine,
) -> None:
    machine.declare(machine.cap(2, 350), machine.cap(0, 380), machine.cap(1, 280))
    status, said = machine.run()
    assert status == 1
    assert machine.power() == [350, 280, 575]
    low, high = (line for line in said if "power_cap_w" in line)
    assert low == (
        f"gpu riser-2 ({machine.uuids[2]}): power_cap_w = 350 is declared, but the card accepts 400"
        " to 600 W; write 400 or more, and limit it further with clock_max_mhz"
    )
    assert high.endswith("the card accepts 100 to 366 W; write 366 or less")


def test_a_5090_is_held_lower_by_its_clock(machine: Machine) -> None:
    machine.declare(machine.cap(2, 400, clock=1800))
    assert machine.run()[0] == 0
    assert machine.power()[2] == 400
    assert machine.clocks() == {machine.uuids[2]: 1800}


@pytest.mark.parametrize("state", ["gone", "lost"])
def test_a_card_that_vanished_is_named_and_the_others_are_set(machine: Machine, state: Any) -> None:
    machine.declare(machine.cap(0, 280), machine.cap(1, 300))
    machine.fake.rack.cards[0].state = state
    machine.fake.write()
    status, said = machine.run()
    assert status == 1
    (gone,) = (line for line in said if "is gone" in line)
    assert gone.startswith(f"gpu riser-0 ({machine.uuids[0]}) is gone: the driver does not show it")
    assert ("GPU is lost" in gone) is (state == "lost")
    assert machine.power() == [300, 575]


def test_a_stranger_in_the_slot_is_not_given_the_limits_of_the_card(machine: Machine) -> None:
    card = machine.fake.rack.cards[0]
    machine.declare(Wanted("riser-0", NEVER, card.address, 280))
    status, said = machine.run()
    assert (status, machine.power()[0]) == (1, 350)
    assert said == [
        f"gpu riser-0 ({NEVER}) is gone: {card.uuid} is in its slot {card.address}; if the cards"
        " were swapped, declare the new uuid"
    ]


def test_a_limit_that_is_ignored_in_silence_is_seen(machine: Machine) -> None:
    machine.declare(machine.cap(0, 280))
    machine.log_calls('case $* in *"-pl "*) exit 0;; esac')
    status, said = machine.run()
    assert status == 1
    assert said[-1] == (
        f"gpu riser-0 ({machine.uuids[0]}): its power limit, set to 280 W, reads 350 W: the"
        " driver ignored it without an error; limit the card with clock_max_mhz instead"
    )


def test_a_limit_that_is_refused_is_told_in_the_driver_s_words(machine: Machine) -> None:
    machine.fake.rack.administrator += 1
    machine.fake.write()
    machine.declare(machine.cap(0, 280, clock=1400))
    status, said = machine.run()
    assert status == 1
    power, clock = said[-1], said[-2]
    assert "reads 350 W: nvidia-smi says: Failed to set power management limit" in power
    assert "its clock could not be limited to 1400 MHz: nvidia-smi says: The current user" in clock
    assert "Terminating" not in power + clock
    assert json.loads(machine.record.read_text()) == {}


def test_without_persistence_mode_the_loss_is_explained(machine: Machine) -> None:
    machine.fake.rack.cards[0].persistence = False
    machine.fake.write()
    machine.declare(machine.cap(0, 280))
    status, said = machine.run()
    assert status == 1
    assert "without persistence mode the driver drops it" in said[-1]


def test_a_cap_and_a_clock_that_went_with_the_driver_are_back_after_a_run(machine: Machine) -> None:
    machine.declare(machine.cap(0, 280, clock=1400))
    machine.run()
    machine.fake.reload_driver()
    machine.fake.write()
    assert machine.power()[0] == 350
    status, said = machine.run()
    assert (status, machine.power()[0], machine.clocks()) == (0, 280, {machine.uuids[0]: 1400})
    assert len(said) == 1


def test_what_is_declared_no_more_goes_back_to_its_default(machine: Machine) -> None:
    machine.declare(machine.cap(0, 280, clock=1400), machine.cap(1, None, clock=1500))
    machine.run()
    machine.declare(machine.cap(0))
    status, _ = machine.run()
    assert (status, machine.power()[0], machine.clocks()) == (0, 350, {})
    assert json.loads(machine.record.read_text()) == {}


def test_a_clock_that_is_not_kept_is_seen(machine: Machine) -> None:
    machine.fake.rack.cards[0].clocks.graphics_mhz = 1900
    machine.fake.write()
    machine.declare(machine.cap(0, None, clock=1400))
    machine.log_calls('case $* in *"-lgc "*) exit 0;; esac')
    status, said = machine.run()
    assert status == 1
    assert "clock_max_mhz = 1400 is declared, but it runs at 1900 MHz" in said[-1]


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        ("driver", "couldn't communicate with the NVIDIA driver"),
        ("program", "nvidia-smi is not installed"),
    ],
)
def test_a_machine_without_a_driver_says_so_once(
    machine: Machine, break_it: str, words: str
) -> None:
    machine.declare(machine.cap(0, 280), machine.cap(1, 280))
    if break_it == "driver":
        machine.fake.rack.driver.loaded = None
        machine.fake.write()
    else:
        (machine.fake.programs / "nvidia-smi").unlink()
    status, said = machine.run()
    assert (status, len(said)) == (1, 1)
    assert said[0].startswith("no card can be limited: ")
    assert words in said[0]


def test_a_card_whose_power_cannot_be_limited() -> None:
    line = "GPU-8836a272-ca08-9629-24b6-54ca9b98cd30, 00000000:01:00.0, [N/A]" + ", [N/A]" * 5
    (seen,), _ = seen_in(line)
    plain, capped = Wanted("laptop", seen.uuid), Wanted("laptop", seen.uuid, power_cap_w=80)
    assert list(limits.not_held([plain], [seen], {})) == []
    assert list(limits.not_held([capped], [seen], {})) == ["laptop"]


def test_slots_are_compared_as_sysfs_writes_them() -> None:
    line = "GPU-8836a272-ca08-9629-24b6-54ca9b98cd30, 00000000:2D:00.0, Enabled, 1, 1, 1, 1, 1"
    cards, _ = seen_in(line)
    assert matching(Wanted("a", None, "0000:2d:00.0"), cards) == cards[0]
    assert matching(Wanted("a", NEVER, "0000:2d:00.0"), cards) is None


def _gpus(machine: Machine, **first: Any) -> Gpus:
    cards = [
        {"name": f"riser-{index}", "device": "2204", "vram_mib": 24576, "uuid": uuid}
        for index, uuid in enumerate(machine.uuids)
    ]
    cards[0] |= first
    return Gpus.model_validate({"cards": cards})


def _systemctl(machine: Machine, **properties: str) -> None:
    """A systemctl that shows a unit like this; restarting it runs the program."""
    shown = {
        "LoadState": "loaded",
        "NeedDaemonReload": "no",
        "Result": "success",
        "ExecMainExitTimestampMonotonic": "1234",
        **properties,
    }
    lines = "\n".join(f"{name}={value}" for name, value in shown.items())
    files = f"{machine.folder}/program {machine.folder}/limits.json {machine.record}"
    journal = machine.folder / "journal"
    stubs = {
        "systemctl": f"case $* in *InvocationID*) echo a1b2;; show*) echo '{lines}';;"
        f" restart*) {sys.executable} {files} 2>{journal};; esac",
        "journalctl": f"case $* in *_SYSTEMD_INVOCATION_ID=a1b2) cat {journal};; esac",
        # The fact's own command, but for the record's path.
        "cat": f'[ "$1" = {RECORD} ] && exec /bin/cat {machine.record}; exec /bin/cat "$@"',
    }
    for name, text in stubs.items():
        stub = machine.fake.programs / name
        stub.write_text(f"#!/bin/sh\n{text}\n")
        stub.chmod(0o755)


def _settle(machine: Machine, gpus: Gpus) -> tuple[list[str], str]:
    (machine.folder / "limits.json").write_text(limits.config(gpus))
    return LocalHost(programs=machine.fake.programs).apply(held, gpus=gpus)


def test_the_run_sets_the_cards_and_the_next_one_has_nothing_to_do(machine: Machine) -> None:
    _systemctl(machine)
    gpus = _gpus(machine, power_cap_w=280, clock_max_mhz=1400)
    commands, said = _settle(machine, gpus)
    assert (len(commands), said) == (1, "")
    assert (machine.power()[0], machine.clocks()) == (280, {machine.uuids[0]: 1400})
    assert _settle(machine, gpus) == ([], "")


@pytest.mark.parametrize(
    "lost", ["power", "driver", "record", "other clock", "released clock", "other cap"]
)
def test_the_run_sees_what_was_lost_and_mends_it(machine: Machine, lost: str) -> None:
    _systemctl(machine)
    gpus = _gpus(machine, power_cap_w=280, clock_max_mhz=1400)
    _settle(machine, gpus)
    if lost == "power":
        machine.fake.smi("-i", machine.uuids[0], "-pl", "350")
    elif lost == "driver":
        machine.fake.reload_driver()
    elif lost == "record":
        machine.record.unlink()
    elif lost == "other clock":
        gpus = _gpus(machine, power_cap_w=280, clock_max_mhz=1300)
    elif lost == "released clock":
        gpus = _gpus(machine, power_cap_w=280)
    else:
        gpus = _gpus(machine, power_cap_w=290, clock_max_mhz=1400)
    assert len(_settle(machine, gpus)[0]) == 1
    card = gpus.cards[0]
    assert machine.power()[0] == card.power_cap_w
    assert machine.clocks().get(machine.uuids[0]) == card.clock_max_mhz
    assert _settle(machine, gpus) == ([], "")


def test_the_run_stops_with_the_sentence_of_the_program(machine: Machine) -> None:
    _systemctl(machine)
    gpus = _gpus(machine, power_cap_w=280)
    _settle(machine, gpus)
    machine.fake.rack.cards[0].state = "gone"
    machine.fake.write()
    commands, said = _settle(machine, gpus)
    assert len(commands) == 1
    assert said.startswith(f"gpu riser-0 ({machine.uuids[0]}) is gone: ")


def test_a_clock_is_released_on_a_card_that_left_the_inventory(machine: Machine) -> None:
    _systemctl(machine)
    gpus = _gpus(machine, clock_max_mhz=1400)
    _settle(machine, gpus)
    fewer = gpus.model_copy(update={"cards": gpus.cards[1:]})
    assert len(_settle(machine, fewer)[0]) == 1
    assert machine.clocks() == {}
    assert _settle(machine, fewer) == ([], "")


@pytest.mark.parametrize(
    ("shown", "steps"),
    [
        ({"Result": "exit-code"}, ["restart"]),
        ({"ExecMainExitTimestampMonotonic": "0"}, ["restart"]),
        ({"NeedDaemonReload": "yes"}, ["daemon-reload"]),
        ({"LoadState": "not-found"}, ["daemon-reload"]),
    ],
)
def test_the_unit_must_have_run_well_as_it_is_written(
    machine: Machine, shown: dict[str, str], steps: list[str]
) -> None:
    _systemctl(machine, **shown)
    commands, _ = _settle(machine, _gpus(machine))
    assert [command.split()[1] for command in commands] == steps


def test_a_run_that_is_under_way_is_not_ended(machine: Machine) -> None:
    _systemctl(machine)
    _settle(machine, _gpus(machine))
    running = {"ActiveState": "activating", "ExecMainExitTimestampMonotonic": "0"}
    _systemctl(machine, **running)
    assert _settle(machine, _gpus(machine)) == ([], "")


def test_a_bare_machine_has_everything_to_do(machine: Machine) -> None:
    probe = GpuLimits()
    host = LocalHost(facts={GpuLimits: probe.default()})
    assert probe.default() == LimitsState()
    (command,) = host.planned(held, gpus=_gpus(machine))
    assert command.startswith(f"systemctl restart {limits.SERVICE} ")


def _settings(**card: Any) -> HostSettings:
    return HostSettings.model_validate(
        {
            "hostname": "rack",
            "distribution": "debian13",
            "interfaces": {"eth0": {"role": "lan"}},
            "gpus": {"cards": [{"name": "a", "device": "2204", "vram_mib": 24576, **card}]},
        }
    )


def test_a_limit_of_a_card_that_is_not_known_is_refused() -> None:
    found = list(checks.limits(_settings(power_cap_w=280, clock_max_mhz=1400)))
    assert [finding.key for finding in found] == [
        "gpus.cards[0].power_cap_w",
        "gpus.cards[0].clock_max_mhz",
    ]
    assert list(checks.limits(_settings())) == []
    assert list(checks.limits(_settings(power_cap_w=280, pci_address="0000:01:00.0"))) == []
    assert list(checks.limits(_settings(power_cap_w=280, uuid=NEVER))) == []


def test_a_card_of_a_guest_is_left_to_the_guest() -> None:
    settings = _settings(role="passthrough", uuid=NEVER)
    assert settings.gpus is not None
    assert limits.declared(settings.gpus, {}) == []


def _values(text: str, name: str) -> list[str]:
    pairs = (line.partition("=") for line in text.splitlines())
    return [value for key, _, value in pairs if key == name]


def _files() -> dict[str, str]:
    """Path to text of the program's units and configuration."""
    return texts(limits.programs(_settings()))


def test_the_service_can_run_again_and_is_missed_when_it_fails() -> None:
    files = {Path(path).name: text for path, text in _files().items()}
    service, timer = files[limits.SERVICE], files[limits.TIMER]
    assert _values(service, "Type") == ["oneshot"]
    # A oneshot that stays active is not started again by its timer.
    assert _values(service, "RemainAfterExit") == []
    assert _values(service, "OnFailure") == [ON_FAILURE]
    assert _values(service, "WantedBy") == ["multi-user.target nvidia-persistenced.service"]
    assert _values(timer, "OnUnitInactiveSec") == ["1min"]
    started = {unit.name: unit.enabled for unit in settled(limits.programs(_settings()))}
    assert started == {limits.SERVICE: True, limits.TIMER: True}
    assert RECORD.startswith(f"/run/{_values(service, 'RuntimeDirectory')[0]}/")


def test_the_service_is_root_for_the_driver_alone() -> None:
    service = _files()[f"{SYSTEM}/{limits.SERVICE}"]
    assert _values(service, "CapabilityBoundingSet") == ["CAP_SYS_ADMIN"]
    assert _values(service, "DevicePolicy") == ["closed"]
    assert {value.split()[0] for value in _values(service, "DeviceAllow")} == set(limits.DEVICES)
    assert _values(service, "PrivateNetwork") == ["yes"]
    assert _values(service, "ProtectSystem") == ["strict"]


def test_systemd_reads_the_units_and_judges_the_sandbox_as_declared(tmp_path: Path) -> None:
    for path, text in {**_files(), **texts([alerts.NOTIFY])}.items():
        (tmp_path / Path(path).name).write_text(text.replace(limits.PROGRAM, "/bin/true"))
    verified = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / limits.SERVICE, tmp_path / limits.TIMER],
        capture_output=True,
        text=True,
        check=False,
    )
    assert [line for line in verified.stderr.splitlines() if str(tmp_path) in line] == []
    judged = subprocess.run(
        [
            "systemd-analyze",
            "security",
            "--offline=yes",
            f"--threshold={EXPOSURE_MAX_ROOT * 10:.0f}",
            tmp_path / limits.SERVICE,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert judged.returncode == 0, judged.stdout.splitlines()[-1:] + [judged.stderr]
