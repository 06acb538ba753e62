"""A run of pyinfra with a reliable exit status.

pyinfra's own command line succeeds even if it is interrupted or a host was skipped, and it prints
tracebacks. This run reports an error in a sentence, and succeeds only if every host did.
(`config.py` stops both if an inventory names no host.)
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from traceback import format_exception
from types import FrameType
from typing import NoReturn

import click
import pyinfra
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.output import set_echo, set_formatter
from pyinfra_cli.cli import cli

from holdfast.refusal import Refused, masked

LOG = Path("pyinfra-debug.log")
INTERRUPTED = 130


def _say(sentence: str) -> None:
    print(masked(sentence), file=sys.stderr)  # noqa: T201


def tell(error: BaseException) -> None:
    """Print why a run ended; errors that only a developer can correct go to `LOG`."""
    cause = getattr(error, "exception", error)
    if isinstance(cause, Refused):
        for refusal in cause.refusals:
            _say(str(refusal))
    elif isinstance(cause, PyinfraError | click.ClickException):
        _say(f"{cause}")
    else:
        LOG.write_text(masked("".join(format_exception(cause))), encoding="utf-8")
        _say(
            f"{type(cause).__name__}: {cause}: this is a bug in Holdfast; report it with"
            f" {LOG}, which contains the traceback."
        )


def _interrupted(_signal: int, _frame: FrameType | None) -> NoReturn:
    _say("stopped as you asked; deploy again to finish.")
    raise SystemExit(INTERRUPTED)


def run(inventory: str, deploy: str, *, dry: bool = False) -> int:
    """Run a deploy; return 0 if it finished on every host of the inventory.

    With ``dry`` it shows what would change, and changes nothing.
    """
    arguments = ["--dry" if dry else "-y", inventory, deploy]
    pyinfra.is_cli = True
    set_formatter(click.style)
    set_echo(click.echo)
    sys.dont_write_bytecode = True
    signal.signal(signal.SIGINT, _interrupted)
    try:
        cli.main(args=arguments, prog_name="pyinfra", standalone_mode=False)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except click.Abort:
        status = INTERRUPTED
    except Exception as error:
        tell(error)
        status = 1
    else:
        status = 0
    return status or _unfinished()


def _unfinished() -> int:
    state = pyinfra.state
    left = [host.name for host in state.inventory if host not in state.active_hosts]
    if left:
        _say(f"the deploy did not finish on {', '.join(left)}; see the lines above.")
    return 1 if left else 0
