"""How fast an engine is: what asks it, rows of a CSV, and the one that is a step back."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from pydantic import TypeAdapter

from holdfast.engines.server import Bench, Load, Server
from holdfast.engines.servers import engine_service, environment, server_of
from holdfast.engines.units import EngineNames, cards_of_engine
from holdfast.render import render
from holdfast.settings import Engine, HostSettings
from holdfast.storage import checkpoint_of, checkpoint_path

SLOWER = 0.10
"""Share of the usual throughput that a run may lack."""
REMEMBERED = 5
"""Runs that a new one is compared with, by their median."""
RESULT_BYTES = 16 << 20
"""How much of a benchmark's result is read; it may hold some figures for each request."""


def bench_of(server: Server) -> Bench:
    """The benchmark of a server.

    Raises:
        ValueError: it has none.
    """
    if server.bench is None:
        raise ValueError(f"Holdfast has no benchmark for {server.title}")
    return server.bench


def script(settings: HostSettings, engine: Engine, load: Load) -> str:
    """The shell text that runs the benchmark on the host.

    Raises:
        ValueError: the engine's checkpoint is not declared, or its server has no benchmark.
    """
    server, checkpoint = server_of(settings, engine), checkpoint_of(settings, engine)
    if checkpoint is None:
        raise ValueError(f"{settings.hostname} declares no checkpoint {engine.checkpoint}")
    bench = bench_of(server)
    command = bench.command(engine, checkpoint_path(settings.storage, checkpoint), load)
    return render(
        "engines/bench.sh.j2",
        names=EngineNames(server, engine),
        user=engine_service(server.name, engine).user,
        cards=cards_of_engine(settings, engine),
        environment=environment(settings, server).folder,
        variables=bench.environment,
        command=command,
        result_bytes=RESULT_BYTES,
    )


@dataclass(frozen=True)
class Row:
    """One run; times in milliseconds, power of all cards together in W, temperature in Celsius."""

    date: str
    host: str
    cards: str
    driver: str
    engine: str
    model: str
    version: str
    flags: str
    load: str
    tokens_per_second: float
    ttft_median_ms: float
    ttft_p99_ms: float
    tpot_median_ms: float
    tpot_p99_ms: float
    power_w: float | None = None
    temperature_c: float | None = None

    @property
    def alike(self) -> tuple[str, ...]:
        """What must be the same for two runs to be compared."""
        told = (self.host, self.cards, self.engine, self.model, self.version, self.flags, self.load)
        return (*told, self.driver)


def row_of(bench: Bench, output: Sequence[str], told: dict[str, str], cards: int) -> Row:
    """The row of what the script printed; ``told`` are the fields that it does not measure.

    Raises:
        ValueError: the benchmark printed no result, or requests failed.
    """
    found = bench.measured(json.loads(output[0]))
    if found.failed:
        raise ValueError(
            f"{found.failed} of {found.requests} requests failed: see whether the engine"
            f" {told['engine']} answers"
        )
    samples = [list(map(float, line.split(","))) for line in output[1:] if line.count(",") == 1]
    power = sum(watts for watts, _ in samples) * cards / len(samples) if samples else None
    return Row(
        **told,
        tokens_per_second=round(found.tokens_per_second, 2),
        ttft_median_ms=round(found.ttft_median_ms, 1),
        ttft_p99_ms=round(found.ttft_p99_ms, 1),
        tpot_median_ms=round(found.tpot_median_ms, 2),
        tpot_p99_ms=round(found.tpot_p99_ms, 2),
        power_w=round(power, 1) if power is not None else None,
        temperature_c=max((heat for _, heat in samples), default=None),
    )


def rows_in(file: Path) -> list[Row]:
    """The rows of a CSV, oldest first; none where there is no such file."""
    if not file.exists():
        return []
    blank = {"power_w": None, "temperature_c": None}
    with file.open(newline="") as lines:
        told = [{k: v or blank.get(k, v) for k, v in row.items()} for row in csv.DictReader(lines)]
    return TypeAdapter(list[Row]).validate_python(told)


def append(file: Path, row: Row) -> None:
    """Add ``row`` at the end of a CSV, which is made where there is none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    is_new = not file.exists()
    with file.open("a", newline="") as lines:
        writer = csv.DictWriter(lines, [field.name for field in fields(Row)])
        if is_new:
            writer.writeheader()
        writer.writerow(asdict(row))


def regression(row: Row, before: Sequence[Row]) -> str | None:
    """Why ``row`` is a step back from the runs like it, or None."""
    like = [other.tokens_per_second for other in before if other.alike == row.alike]
    if not like:
        return None
    usual = statistics.median(like[-REMEMBERED:])
    if row.tokens_per_second >= (1 - SLOWER) * usual:
        return None
    return (
        f"{row.host}: engine {row.engine} makes {row.tokens_per_second:g} tokens/s and made"
        f" {usual:g} before: check `holdfast verify`, and the cards' clocks, heat and link widths"
    )
