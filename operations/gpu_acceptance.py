"""Compare the declared cards with the machine."""

from __future__ import annotations

from collections.abc import Generator

from pyinfra import host
from pyinfra.api import FunctionCommand, operation

from facts.gpu import GpuPicture
from facts.gpu_modes import GpuModes
from holdfast.gpu import modes
from holdfast.gpu.acceptance import Moment, differences
from holdfast.settings import Gpus
from operations.refusal import stop


@operation()
def accepted(
    gpus: Gpus, moment: Moment, memory_claimed: bool
) -> Generator[FunctionCommand, None, None]:
    """Stop the run if the machine differs from ``gpus``, and report every difference. It reads the
    state when it runs, because a driver may have just been installed, and changes nothing.

    Args:
        gpus: the declared cards.
        moment: the stage of the run, which decides what is checked.
        memory_claimed: whether services of this host may use GPU memory.

    For example::

        gpu_acceptance.accepted(
            name="Accept the cards", gpus=settings.gpus, moment="after_driver", memory_claimed=True
        )
    """
    present = host.get_fact(GpuModes).modes if gpus.card_sets else {}
    expected = modes.in_force(gpus, present)
    found = differences(expected, host.get_fact(GpuPicture), moment, memory_claimed)
    if found:
        yield stop("\n".join(map(str, found)))
