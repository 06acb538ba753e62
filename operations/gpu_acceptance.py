"""Believe the declared cards only where the machine shows them."""

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
    """Stop the run where the machine differs from ``gpus``, with every difference at once.

    Looks when it runs, for a driver may have been installed a moment ago; changes nothing.

    Args:
        gpus: the declared cards.
        moment: how far the run has come; decides what is judged.
        memory_claimed: whether services of this host may hold GPU memory.
    """
    present = host.get_fact(GpuModes).modes if gpus.card_sets else {}
    expected = modes.in_force(gpus, present)
    found = differences(expected, host.get_fact(GpuPicture), moment, memory_claimed)
    if found:
        yield stop("\n".join(map(str, found)))
