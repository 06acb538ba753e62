"""`python -m holdfast.engines.bench INVENTORY ENGINE`: how fast an engine is, and if it still is.

The engine's own bench client asks it through its door, on its host, for requests of random tokens.
Each run appends a row to a CSV; one that is slower than the runs like it before is reported
and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path

from pyinfra.api import StringCommand
from pyinfra.api.exceptions import PyinfraError

from facts.framed import answer, framed
from holdfast import inventory_file, live
from holdfast.engines.throughput import Load, append, regression, row_of, rows_in, script
from holdfast.engines.units import cards_of_engine
from holdfast.engines.vllm import VERSION
from holdfast.registry import checkpoint_of, engines
from holdfast.settings import Engine, HostSettings
from holdfast.storage import checkpoint_folder

CSV = Path("benchmarks") / "serving.csv"


def _told(host: str, settings: HostSettings, engine: Engine, load: Load) -> dict[str, str]:
    checkpoint = checkpoint_of(settings, engine)
    said = engine.model_dump(mode="json", exclude={"name", "api_key", "port", "scope", "callers"})
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "host": host,
        "cards": " ".join(cards_of_engine(settings, engine)) or "CPU",
        "driver": settings.gpus.driver.branch if settings.gpus else "",
        "engine": engine.name,
        "model": checkpoint_folder(checkpoint) if checkpoint else "",
        "version": VERSION,
        "flags": json.dumps(said, sort_keys=True),
        "load": json.dumps(asdict(load)),
    }


def _run(path: str, name: str, engine_name: str, command: str) -> list[str]:
    """Run ``command`` on one host of the inventory; the lines it printed.

    Raises:
        PyinfraError: the host did not answer, or not the whole.
        ValueError: the command failed; with its last words.
    """
    inventory = inventory_file.read(path)
    with live.session(inventory):
        host = inventory.get_host(name)
        host.connect(show_errors=False, raise_exceptions=True)
        ok, output = host.run_shell_command(
            StringCommand(framed(command)),
            _sudo=bool(host.data.get("_sudo")),
            _shell_executable="sh",
        )
        host.disconnect()
    if not ok:
        raise ValueError(f"{name}: engine {engine_name}: " + " ".join(output.stderr_lines[-3:]))
    return answer(output.stdout_lines)


def main(arguments: list[str]) -> int:
    """Bench one engine; 1 where it failed or is slower than it was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("inventory")
    parser.add_argument("engine")
    parser.add_argument("--csv", type=Path, default=CSV)
    for field in fields(Load):
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(option, type=int, default=field.default)
    asked = parser.parse_args(arguments)
    load = Load(**{field.name: getattr(asked, field.name) for field in fields(Load)})
    with inventory_file.refusals():
        hosts = inventory_file.load(asked.inventory)
    try:
        found = [
            (name, settings, engine)
            for name, settings in hosts.items()
            for engine in engines(settings)
            if engine.name == asked.engine
        ]
        if len(found) != 1:
            raise ValueError(f"{asked.inventory} declares {len(found)} engines {asked.engine!r}")
        ((name, settings, engine),) = found
        if engine.task == "embed":
            raise ValueError(f"{name}: engine {engine.name} makes no tokens; bench one that does")
        output = _run(asked.inventory, name, engine.name, script(settings, engine, load))
        row = row_of(output, _told(name, settings, engine, load), len(engine.cards))
    except (PyinfraError, ValueError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    slower = regression(row, rows_in(asked.csv))
    append(asked.csv, row)
    print(  # noqa: T201
        f"{row.tokens_per_second:g} tokens/s, first token after {row.ttft_median_ms:g} ms,"
        f" each further {row.tpot_median_ms:g} ms (medians)"
    )
    if slower:
        print(slower, file=sys.stderr)  # noqa: T201
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
