"""Give containers access to the cards: the engine's keys, a current specification, and a last
check."""

from __future__ import annotations

import shlex
from collections.abc import Generator

from pyinfra import host
from pyinfra.api import FunctionCommand, StringCommand, operation

from facts.docker import DockerEngine
from facts.gpu_containers import OVERRIDES, GpuContainer, GpuContainerAccess, GpuContainers
from holdfast.gpu import containers
from operations.docker_engine import major_of, rewritten
from operations.gpu_limits import run_unit
from operations.refusal import stop


@operation()
def engine_knows() -> Generator[StringCommand | FunctionCommand, None, None]:
    """Merge the runtime and CDI into daemon.json; every other key stays as it is.

    Stops without a change if the present file cannot be merged.

    For example::

        gpu_containers.engine_knows(name="Let the engine know the cards")
    """
    state = host.get_fact(DockerEngine)
    try:
        command = rewritten(state, containers.daemon_keys(major_of(state)))
    except ValueError as error:
        yield stop(f"{error}.")
        return
    if command is not None:
        yield command


@operation()
def specified() -> Generator[StringCommand, None, None]:
    """Generate the CDI specification for the present cards and driver.

    Expects the toolkit and the unit. Fails with the toolkit's error, or if the new specification
    still lacks a card or the driver's libraries.

    For example::

        gpu_containers.specified(name="Have the cards specified as they are")
    """
    state = host.get_fact(GpuContainers)
    if state.unread:
        yield StringCommand("systemctl daemon-reload")
    if state.overridden:
        yield StringCommand(f"rm -f {' '.join(OVERRIDES)}")
    if containers.stale(state):
        yield StringCommand(run_unit(containers.SERVICE))
        yield StringCommand(_read_back(sorted(state.uuids or ()), state.driver))


def _read_back(uuids: list[str], driver: str | None) -> str:
    wanted = [*uuids, f"libcuda.so.{driver}"]
    return (
        f"for word in {' '.join(map(shlex.quote, wanted))}; do"
        f' grep -qF -- "$word" {containers.SPECIFICATION} || {{'
        f' echo "{containers.SPECIFICATION} was regenerated, but lacks $word:"'
        " 'run `nvidia-ctk cdi generate` by hand and read its warnings.' >&2;"
        " exit 1; }; done"
    )


@operation()
def still_reached() -> Generator[FunctionCommand, None, None]:
    """Stop with their names if running containers have lost their cards. Any daemon-reload can
    cause that. Changes nothing: the owner of a container restarts it.

    For example::

        gpu_containers.still_reached(name="See that containers reach their cards")
    """
    running: list[GpuContainer] = host.get_fact(GpuContainerAccess)
    if complaint := containers.complaint(running):
        yield stop(complaint)
