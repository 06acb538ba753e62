"""The command `holdfast`, also `python -m holdfast`: its sub-commands are `holdfast.commands`."""

from __future__ import annotations

import sys
from importlib import import_module
from pkgutil import iter_modules

import typer

from holdfast import commands


def application() -> typer.Typer:
    """The command line: one sub-command for each file of `holdfast.commands`."""
    found = typer.Typer(
        help="Take machines from a bare system to what an inventory says, and keep them there.",
        no_args_is_help=True,
        # What a sub-command returns is the exit status.
        result_callback=sys.exit,
        # A pretty traceback shows the values of variables, and some of them are secrets.
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    for module in iter_modules(commands.__path__):
        if not module.name.startswith("_"):
            file = import_module(f"{commands.__name__}.{module.name}")
            found.command()(getattr(file, module.name))
    return found


def main(arguments: list[str] | None = None) -> None:
    """Run one sub-command, and end the program with its exit status."""
    try:
        application()(arguments)
    except Exception as error:
        # Not at the top: pyinfra's command line takes a second to import.
        from holdfast.deploy import tell  # noqa: PLC0415

        tell(error)
        sys.exit(1)


if __name__ == "__main__":
    main()
