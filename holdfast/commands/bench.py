"""`holdfast bench INVENTORY ENGINE`: measure how fast an engine is, and whether it became slower.

Each run adds a row to a CSV file. If a run is slower than earlier runs like it, this is reported
and the exit status is 1.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from holdfast.commands import Inventory


def bench(
    inventory: Inventory,
    engine: Annotated[
        str, typer.Argument(metavar="ENGINE", help="The engine's name in the inventory.")
    ],
    *,
    csv: Annotated[Path, typer.Option(help="The file to which the result is added.")] = Path(
        "benchmarks/serving.csv"
    ),
    requests: Annotated[int | None, typer.Option(min=1, help="Requests in all.")] = None,
    concurrent_requests: Annotated[
        int | None, typer.Option(min=1, help="Requests at a time.")
    ] = None,
    input_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of a prompt.")] = None,
    output_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of an answer.")] = None,
) -> int:
    """Measure how fast an engine is, and if it became slower."""
    from pyinfra.api.exceptions import PyinfraError

    from holdfast import inventory_file
    from holdfast.engines.bench import measure
    from holdfast.engines.server import Load
    from holdfast.engines.throughput import append, regression, rows_in

    asked = {
        "requests": requests,
        "concurrent_requests": concurrent_requests,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
    }
    load = Load(**{name: number for name, number in asked.items() if number is not None})
    hosts = inventory_file.load(inventory)
    try:
        row = measure(inventory, hosts, engine, load)
    except (PyinfraError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    slower = regression(row, rows_in(csv))
    append(csv, row)
    print(
        f"{row.tokens_per_second:g} tokens/s, first token after {row.ttft_median_ms:g} ms,"
        f" each further {row.tpot_median_ms:g} ms (medians)"
    )
    if slower:
        print(slower, file=sys.stderr)
    return 1 if slower else 0
