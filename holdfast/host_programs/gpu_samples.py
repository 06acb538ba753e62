"""Sample the cards through NVML for some seconds and report the extremes. Changes no setting.

`facts.gpu.GpuSamples` sends this file to a host unchanged, so it uses the standard library and
``pynvml`` only and runs on Python 3.11. As a program: ``gpu_samples.py SECONDS``, JSON on stdout.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

INTERVAL_SECONDS = 0.2


@dataclass
class Sample:
    """The samples of one card; None where card or driver has no value.

    ``link_generation`` and ``link_width`` are the highest seen values: both may be lower while a
    card idles. ``clock_mhz`` (graphics), ``power_w`` and ``temperature_c`` are the highest,
    ``throttle`` contains every seen clocks event reason (bits as in
    ``clocks_event_reasons.active``), ``replays`` is the increase of the PCIe replay counter.
    ``error`` is NVML's error if the card was lost during sampling.
    """

    uuid: str
    address: str
    link_generation: int | None = None
    link_width: int | None = None
    clock_mhz: int | None = None
    power_w: float | None = None
    temperature_c: int | None = None
    throttle: int | None = None
    replays: int | None = None
    error: str = ""


@dataclass
class Samples:
    """Every card that NVML could identify.

    ``unreadable`` has a line for each card that it could not identify; ``error`` is the reason if
    nothing could be read.
    """

    cards: tuple[Sample, ...] = ()
    unreadable: tuple[str, ...] = ()
    error: str = ""


def parse(output: list[str]) -> Samples:
    """The program's output; an error if it is not JSON, for example without Python."""
    try:
        found = json.loads(output[-1])
        return Samples(
            cards=tuple(Sample(**card) for card in found["cards"]),
            unreadable=tuple(found["unreadable"]),
            error=found["error"],
        )
    except (ValueError, KeyError, TypeError, IndexError):
        return Samples(error="\n".join(output) or "the probe gave no error message")


class _Card:
    """One card, its samples so far, and its NVML handle."""

    def __init__(self, nvml: Any, index: int) -> None:
        self.nvml = nvml
        self.handle = nvml.nvmlDeviceGetHandleByIndex(index)
        domain, _, rest = nvml.nvmlDeviceGetPciInfo(self.handle).busId.lower().partition(":")
        uuid = nvml.nvmlDeviceGetUUID(self.handle)
        self.sample = Sample(uuid=uuid, address=f"{int(domain, 16):04x}:{rest}")
        self.replays: int | None = None

    def look(self) -> None:
        """Read everything once; a lost card keeps its earlier samples."""
        if self.sample.error:
            return
        try:
            self._look()
        except self.nvml.NVMLError as error:
            self.sample.error = str(error)

    def _look(self) -> None:
        nvml, sample = self.nvml, self.sample
        generation = self._read(nvml.nvmlDeviceGetCurrPcieLinkGeneration)
        sample.link_generation = _highest(sample.link_generation, generation)
        width = self._read(nvml.nvmlDeviceGetCurrPcieLinkWidth)
        sample.link_width = _highest(sample.link_width, width)
        clock = self._read(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_GRAPHICS)
        sample.clock_mhz = _highest(sample.clock_mhz, clock)
        milliwatts = self._read(nvml.nvmlDeviceGetPowerUsage)
        watts = None if milliwatts is None else milliwatts / 1000
        sample.power_w = _highest(sample.power_w, watts)
        degrees = self._read(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU)
        sample.temperature_c = _highest(sample.temperature_c, degrees)
        # Drivers before 535 have only the old name of the reasons.
        reasons = self._read(nvml.nvmlDeviceGetCurrentClocksEventReasons)
        if reasons is None:
            reasons = self._read(nvml.nvmlDeviceGetCurrentClocksThrottleReasons)
        if reasons is not None:
            sample.throttle = (sample.throttle or 0) | reasons
        replays = self._read(nvml.nvmlDeviceGetPcieReplayCounter)
        if replays is not None:
            self.replays = replays if self.replays is None else self.replays
            sample.replays = replays - self.replays

    def _read(self, function: Callable[..., Any], *arguments: Any) -> Any:
        nvml = self.nvml
        try:
            return function(self.handle, *arguments)
        except nvml.NVMLError as error:
            if error.value in (
                nvml.NVML_ERROR_NOT_SUPPORTED,
                nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
                nvml.NVML_ERROR_NO_PERMISSION,
            ):
                return None
            raise


def _highest(before: Any, now: Any) -> Any:
    return max((value for value in (before, now) if value is not None), default=None)


def watch(nvml: Any, seconds: float) -> Samples:
    """Sample every card for ``seconds``, at least once, through the module ``nvml``."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return Samples(error=str(error))
    cards: list[_Card] = []
    unreadable: list[str] = []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            cards.append(_Card(nvml, index))
        except nvml.NVMLError as error:
            unreadable.append(f"card {index}: {error}")
    end = time.monotonic() + seconds
    while True:
        for card in cards:
            card.look()
        if time.monotonic() >= end:
            break
        time.sleep(min(INTERVAL_SECONDS, seconds))
    nvml.nvmlShutdown()
    return Samples(tuple(card.sample for card in cards), tuple(unreadable))


def main(arguments: list[str]) -> None:
    """Print the samples of ``arguments[0]`` seconds."""
    import pynvml  # noqa: PLC0415  # the controller, which only parses, has no driver

    print(json.dumps(asdict(watch(pynvml, float(arguments[0])))))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
