"""`python -m holdfast INVENTORY`: would this inventory work? Connects to nothing."""

from __future__ import annotations

import sys

from rich.console import Console

from holdfast import inventory_file
from holdfast.engines.fit import fit_of
from holdfast.engines.vllm import UNCOUNTED, peer_word
from holdfast.fit.report import table
from holdfast.gpu import power
from holdfast.registry import engines


def main(arguments: list[str]) -> int:
    """Check one inventory file; the exit status is 0 when there is nothing to refuse."""
    if len(arguments) != 1:
        print("usage: python -m holdfast INVENTORY", file=sys.stderr)  # noqa: T201
        return 2
    with inventory_file.refusals():
        hosts = inventory_file.load(arguments[0])
    console = Console()
    for name, settings in hosts.items():
        if settings.gpus is not None and (budget := power.table(settings.gpus)):
            print(f"{name}: what its power supplies are asked for\n{budget}")  # noqa: T201
        for engine in engines(settings):
            if word := peer_word(engine):
                print(f"{name}: vLLM's engine {engine.name}: {word}")  # noqa: T201
            if fit := fit_of(settings, engine):
                console.print(f"{name}: vLLM's engine {engine.name}", table(fit), sep="\n")
                if uncounted := UNCOUNTED & set(engine.flags):
                    console.print(f"not counted: {', '.join(sorted(uncounted))}")
    print(f"{len(hosts)} host{'' if len(hosts) == 1 else 's'}, nothing to refuse")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
