"""Stop a run with one sentence, from inside an operation."""

from __future__ import annotations

from pyinfra import logger
from pyinfra.api import FunctionCommand
from pyinfra.api.host import Host
from pyinfra.api.state import State

from holdfast.refusal import masked


def _say(state: State, host: Host, sentence: str) -> bool:
    host.log_styled(masked(sentence), fg="red", log_func=logger.error)
    return False


def stop(sentence: str) -> FunctionCommand:
    """A command that fails with ``sentence``; later commands of the operation do not run. An
    exception in an operation would also stop the other hosts of the run, and print a traceback.
    """
    return FunctionCommand(_say, [sentence], {})
