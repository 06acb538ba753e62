"""The NVML probe as it is sent to a host, run by this machine's Python on stand-ins for NVML."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from facts.framed import answer
from facts.gpu import GpuSamples
from holdfast.host_programs import gpu_samples
from holdfast.host_programs.gpu_samples import Sample, Samples, parse, watch

SENTENCE = "Driver/library version mismatch"


class NVMLError(Exception):
    """As in the bindings: a number, and words for it."""

    WORDS = {3: "Not Supported", 13: "Function Not Found", 15: "GPU is lost", 18: SENTENCE}

    def __init__(self, value: int) -> None:
        self.value = value

    def __str__(self) -> str:
        return self.WORDS[self.value]


class Nvml:
    """The few bindings the probe uses; each card tells its readings look by look, then the last."""

    NVMLError = NVMLError
    NVML_ERROR_NOT_SUPPORTED = 3
    NVML_ERROR_NO_PERMISSION = 4
    NVML_ERROR_FUNCTION_NOT_FOUND = 13
    NVML_CLOCK_GRAPHICS = NVML_TEMPERATURE_GPU = 0

    def __init__(self, *cards: dict[str, Any] | int, init: int = 0) -> None:
        self.cards = cards
        self.init = init
        self.looks: dict[tuple[int, str], int] = {}
        self.closed = False

    def nvmlInit(self) -> None:
        if self.init:
            raise NVMLError(self.init)

    def nvmlShutdown(self) -> None:
        self.closed = True

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        card = self.cards[index]
        if isinstance(card, int):
            raise NVMLError(card)
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}"

    def nvmlDeviceGetPciInfo(self, handle: int) -> Any:
        return type("PciInfo", (), {"busId": f"00000000:{handle + 10:02X}:00.0"})

    def __getattr__(self, name: str) -> Any:
        def read(handle: int, *_: Any) -> Any:
            card = self.cards[handle]
            assert isinstance(card, dict)
            look = self.looks.get((handle, name), 0)
            self.looks[handle, name] = look + 1
            readings = card.get(name, [NVMLError(3)])
            reading = readings[min(look, len(readings) - 1)]
            if isinstance(reading, NVMLError):
                raise reading
            return reading

        return read


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_samples, "INTERVAL_SECONDS", 0.01)


BUSY = {
    "nvmlDeviceGetCurrPcieLinkGeneration": [1, 4, 4, 1],
    "nvmlDeviceGetCurrPcieLinkWidth": [8, 16, 16, 8],
    "nvmlDeviceGetClockInfo": [210, 1900, 1700],
    "nvmlDeviceGetPowerUsage": [28_000, 348_500, 120_000],
    "nvmlDeviceGetTemperature": [31, 74, 70],
    "nvmlDeviceGetCurrentClocksEventReasons": [0x1, 0x4, 0x80, 0x0],
    "nvmlDeviceGetPcieReplayCounter": [150, 150, 153],
}


def test_the_extremes_of_what_was_seen() -> None:
    nvml = Nvml(BUSY)
    samples = watch(nvml, 0.2)
    assert samples == Samples(
        cards=(
            Sample(
                uuid="GPU-0",
                address="0000:0a:00.0",
                link_generation=4,
                link_width=16,
                clock_mhz=1900,
                power_w=348.5,
                temperature_c=74,
                throttle=0x85,
                replays=3,
            ),
        )
    )
    assert nvml.closed


def test_what_a_card_does_not_tell_is_none() -> None:
    (card,) = watch(Nvml({}), 0).cards
    assert card == Sample(uuid="GPU-0", address="0000:0a:00.0")


def test_an_old_driver_s_name_for_the_reasons() -> None:
    old = {
        "nvmlDeviceGetCurrentClocksEventReasons": [NVMLError(13)],
        "nvmlDeviceGetCurrentClocksThrottleReasons": [0x40],
    }
    (card,) = watch(Nvml(old), 0).cards
    assert (card.throttle, card.error) == (0x40, "")


def test_a_card_that_is_lost_meanwhile_keeps_what_was_seen() -> None:
    dying = {**BUSY, "nvmlDeviceGetPowerUsage": [200_000, NVMLError(15)]}
    first, second = watch(Nvml(dying, BUSY), 0.2).cards
    assert (first.error, first.power_w) == ("GPU is lost", 200.0)
    assert (second.error, second.power_w) == ("", 348.5)


def test_a_card_without_a_handle_is_told_and_hides_no_other() -> None:
    samples = watch(Nvml(15, BUSY), 0)
    assert samples.unreadable == ("card 0: GPU is lost",)
    assert [card.uuid for card in samples.cards] == ["GPU-1"]


def test_a_driver_that_does_not_answer() -> None:
    assert watch(Nvml(BUSY, init=18), 0) == Samples(error=SENTENCE)


@pytest.mark.parametrize(
    ("output", "error"),
    [
        ([], "the probe gave no error message"),
        (["sh: 1: python3: not found"], "sh: 1: python3: not found"),
        (["Traceback", "Killed"], "Traceback\nKilled"),
        (['{"cards": [{"no": "card"}], "unreadable": [], "error": ""}'], None),
        (["[]"], "[]"),
    ],
)
def test_output_that_is_no_report_is_an_error(output: list[str], error: str | None) -> None:
    samples = parse(output)
    assert samples.cards == ()
    assert samples.error == (output[0] if error is None else error)


def _run(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    python = str(Path(sys.executable).parent)
    return subprocess.run(
        ["sh", "-c", command],
        env={"PATH": f"{python}:{os.environ['PATH']}", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_carries_its_bindings_with_it(tmp_path: Path) -> None:
    # A Python that sees neither this project nor its packages, and a folder without NVML.
    command = GpuSamples().command(seconds=0).replace("python3 -I -c", "python3 -I -S -c")
    done = _run(command, LD_LIBRARY_PATH=str(tmp_path))
    assert done.returncode == 0
    report = json.loads(answer(done.stdout.splitlines())[-1])
    assert report.keys() == {"cards", "unreadable", "error"}
    samples = GpuSamples().process(done.stdout.splitlines())
    # With a driver it lists its cards, without one the bindings themselves say so.
    assert samples.cards or samples.error == "NVML Shared Library Not Found"


def test_the_command_fits_one_argument() -> None:
    # execve(2): MAX_ARG_STRLEN is 128 KiB; sudo, quoting and the shell need room besides.
    assert len(GpuSamples().command(seconds=3600)) < 100_000


def test_a_host_without_python_is_an_error_and_no_failure(tmp_path: Path) -> None:
    (tmp_path / "timeout").symlink_to("/usr/bin/timeout")
    done = subprocess.run(
        ["/bin/sh", "-c", GpuSamples().command(seconds=0)],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert "python3" in GpuSamples().process(done.stdout.splitlines()).error
