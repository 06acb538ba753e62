"""`holdfast verify INVENTORY`: test the machines as they are now."""

from __future__ import annotations

from typing import Annotated

import typer

from holdfast.commands import Inventory


def verify(
    inventory: Inventory,
    pytest_options: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PYTEST_OPTIONS", help="Options for pytest, after two dashes: -- -k firewall."
        ),
    ] = None,
) -> int:
    """Test the machines as they are now."""
    import pytest

    return pytest.main(["tests/host", "--inventory", inventory, *(pytest_options or [])])
