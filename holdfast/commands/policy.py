"""`python -m holdfast.commands.policy INVENTORY`: print the tailnet's policy, as JSON."""

from __future__ import annotations

import json
import sys

from holdfast import inventory_file
from holdfast.tailnet_policy import document


def main(arguments: list[str]) -> int:
    """Print the policy of one inventory file; the exit status is 0 when there is one."""
    if len(arguments) != 1:
        print("usage: python -m holdfast.commands.policy INVENTORY", file=sys.stderr)  # noqa: T201
        return 2
    with inventory_file.refusals():
        print(json.dumps(document(inventory_file.load(arguments[0])), indent=2))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
