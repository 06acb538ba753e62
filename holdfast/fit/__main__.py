"""`python -m holdfast.fit MODEL_DIR --card 24576 --tp 4`: whether vLLM would start, and its cache.

The exit status is 0 when the model fits, 1 when it does not, 2 when it cannot be planned.
"""

from __future__ import annotations

import argparse
import sys

from pydantic import ValidationError
from rich.console import Console

from holdfast.fit import Card, EngineSettings, NotUnderstood, load, plan, table
from holdfast.fit.weights import Weights


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m holdfast.fit", description=__doc__)
    parser.add_argument("model", help="folder with config.json and safetensors files or index")
    parser.add_argument(
        "--card",
        action="append",
        type=int,
        required=True,
        metavar="MIB",
        help="memory.total of a card as nvidia-smi shows it; once for all, or once for each",
    )
    parser.add_argument("--usable", type=int, metavar="MIB", help="what CUDA sees of a card")
    parser.add_argument("--weights-gib", type=float, help="size of all weights, if no file has it")
    parser.add_argument("--tp", dest="tensor_parallel", type=int, default=1)
    for name, kind in (
        ("max-model-len", int),
        ("utilisation", float),
        ("kv-dtype", str),
        ("state-dtype", str),
        ("max-num-seqs", int),
        ("max-num-batched-tokens", int),
        ("block-tokens", int),
        ("draft-tokens", int),
        ("vllm-minor", int),
        ("kv-cache-mib", float),
        ("reserve-mib", float),
    ):
        text = EngineSettings.model_fields[name.replace("-", "_")].description
        help_text = (text or "").replace("%", "%%")
        parser.add_argument(f"--{name}", type=kind, default=argparse.SUPPRESS, help=help_text)
    for name, text in (
        ("enforce-eager", "no CUDA graphs"),
        ("text-only", "no encoders"),
    ):
        parser.add_argument(f"--{name}", action="store_true", help=text)
    parser.add_argument("--no-videos", dest="takes_videos", action="store_false")
    parser.add_argument("--no-prefix-caching", dest="prefix_caching", action="store_false")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Print the plan and return the exit status, which the module's docstring explains."""
    options = vars(_arguments().parse_args(arguments))
    folder, sizes = options.pop("model"), options.pop("card")
    usable, weights_gib = options.pop("usable"), options.pop("weights_gib")
    try:
        engine = EngineSettings(**options)
        if len(sizes) == 1:
            sizes *= engine.tensor_parallel
        cards = [Card(name=str(i), total_mib=m, usable_mib=usable) for i, m in enumerate(sizes)]
        given = Weights(total_bytes=int(weights_gib * 2**30)) if weights_gib else None
        fit = plan(load(folder, given), cards, engine)
    except (NotUnderstood, ValidationError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    Console().print(table(fit))
    return 0 if fit.fits else 1


if __name__ == "__main__":
    sys.exit(main())
