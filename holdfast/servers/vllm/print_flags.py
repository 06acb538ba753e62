"""Runs in vLLM's own environment: prints the flags that its parser takes, as JSON.

``ENVIRONMENT/bin/python vllm_flags.py > vllm_flags.json``, once a new version has been locked;
`make drill-serving` compares the file with the vLLM it has installed.
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from typing import Any

KINDS = {int: "integer", float: "number"}


def _type(action: argparse.Action) -> Any:
    """What the text of a flag is turned into; vLLM wraps what may also be None."""
    cells = getattr(action.type, "__closure__", None) or ()
    inner = [cell.cell_contents for cell in cells if isinstance(cell.cell_contents, type)]
    return inner[0] if inner else action.type


def _kind(action: argparse.Action) -> str:
    if action.nargs == 0:
        return "switch"
    return KINDS.get(_type(action), "text")


def flags(parser: argparse.ArgumentParser) -> dict[str, dict[str, Any]]:
    """Every long flag, without dashes: its kind, and what it may be where that is a short list."""
    found: dict[str, dict[str, Any]] = {}
    for action in parser._actions:
        for option in action.option_strings:
            name = option.removeprefix("--")
            if option.startswith("--") and name not in ("help", "config"):
                found[name] = {"kind": _kind(action)}
                if action.choices:
                    found[name]["choices"] = [str(choice) for choice in action.choices]
    return dict(sorted(found.items()))


def main() -> None:
    """Print them."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser  # noqa: PLC0415
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: PLC0415

    # A build for another device is the same version, and has the same flags.
    release = version("vllm").partition("+")[0]
    known = {"version": release, "flags": flags(make_arg_parser(FlexibleArgumentParser()))}
    print(json.dumps(known, indent=1))  # noqa: T201


if __name__ == "__main__":
    main()
