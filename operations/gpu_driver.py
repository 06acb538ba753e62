"""Install and load the planned GPU driver, with one announced reboot if needed."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

from paramiko import SSHException
from pyinfra import host, logger
from pyinfra.api import FunctionCommand, StringCommand, operation
from pyinfra.api.exceptions import ConnectError
from pyinfra.api.host import Host
from pyinfra.api.state import State

from facts.framed import Unanswered, answer, framed
from facts.gpu import GpuPicture
from facts.gpu_driver import REBOOT_MARKER, DriverHost, GpuDriverHost
from facts.gpu_picture import Picture
from holdfast.gpu import driver
from holdfast.gpu.driver import DriverPlan, Verdict
from operations.packages import APT_GET, present
from operations.program import settled
from operations.refusal import stop
from operations.units import Unit, settle

Commands = Generator[StringCommand | FunctionCommand, None, None]

_BOOT_SECONDS = 1200
"""A server with much memory and many cards needs up to 15 minutes to boot."""
_POLL_SECONDS = 5
_COMMAND_SECONDS = 30


@operation()
def running(
    plan: DriverPlan,
    reboot: str,
    picture: Picture,
    touched: Callable[[], bool],
) -> Commands:
    """Ensure the planned packages, their loaded module, and persistence on every card.

    One remote command if nothing changes. Reboots at most once for the same situation, and never
    into a kernel without the module. Stops with one sentence if it cannot continue.

    Args:
        plan: what to install and bind.
        reboot: whether it may; as `holdfast.settings.GpuDriver.reboot`.
        picture: the machine's state when the plan was made.
        touched: whether the machine was changed since.

    For example::

        gpu_driver.running(
            name="Install the driver",
            plan=plan(settings.gpus, settings.distribution),
            reboot="when-needed",
            picture=picture,
            touched=lambda: False,
        )
    """
    state = state_of_host(plan)
    yield from _install(plan, state)
    if state.stale_initramfs:
        yield StringCommand("update-initramfs -u -k all")
    if _is_installed(plan, state) and not touched() and _is_well(plan, state, picture):
        return

    if plan.vfio:
        yield from settle._inner(units=settled([driver.vfio(plan)]))
    seen = host.get_fact(GpuPicture)
    verdict = driver.verdict(plan, seen)
    if verdict.reboot:
        if refusal := _no_reboot(verdict, reboot, state):
            yield stop(f"gpus.driver: {refusal}.")
            return
        yield FunctionCommand(
            reboot_once, [f"gpus.driver: {verdict.reboot}", verdict.situation], {}
        )
        seen = host.get_fact(GpuPicture)
        verdict = driver.verdict(plan, seen)
    if problem := verdict.stop or verdict.reboot:
        yield stop(f"gpus.driver: {problem}.")
        return
    yield StringCommand(f"rm -f {REBOOT_MARKER}")
    yield from _serve(plan, seen)


def state_of_host(plan: DriverPlan) -> DriverHost:
    """Packages and services of ``plan`` on the present host."""
    state: DriverHost = host.get_fact(
        GpuDriverHost,
        packages=_all_packages(plan),
        units=list(plan.units),
        configuration=driver.NOUVEAU,
    )
    return state


def _all_packages(plan: DriverPlan) -> list[str]:
    return [package for group in plan.packages for package in group]


def _is_installed(plan: DriverPlan, state: DriverHost) -> bool:
    return set(_all_packages(plan)) <= set(state.versions)


def _install(plan: DriverPlan, state: DriverHost) -> Commands:
    """The missing groups; each one uses the package lists that the previous group changed."""
    if _is_installed(plan, state):
        return
    # The archive's further components and the pins have just been written.
    yield StringCommand(f"{APT_GET} update")
    for group in plan.packages:
        yield from present._inner(packages=list(group))


def _is_well(plan: DriverPlan, state: DriverHost, picture: Picture) -> bool:
    return (
        driver.verdict(plan, picture) == Verdict()
        and not state.idle
        and not _forgetful(plan, picture)
    )


def _forgetful(plan: DriverPlan, picture: Picture) -> bool:
    """Whether a card would lose its settings when its last client ends."""
    return plan.source is not None and any(card.persistence is False for card in picture.smi or ())


def _no_reboot(verdict: Verdict, reboot: str, state: DriverHost) -> str | None:
    """Why a required reboot is not possible, or None."""
    if state.rebooted_for == verdict.situation:
        return (
            f"{verdict.reboot}, and a reboot has not fixed it; look at `journalctl --boot"
            f" --dmesg --grep 'nvidia|NVRM|vfio'`, fix the cause, remove {REBOOT_MARKER} and"
            " deploy again"
        )
    if reboot == "never":
        return (
            f"{verdict.reboot}, and driver.reboot is 'never'; reboot this host and deploy"
            " again: until then no service can use its cards"
        )
    return None


def _serve(plan: DriverPlan, picture: Picture) -> Commands:
    if plan.fabric_manager:
        versions = state_of_host(plan).versions
        problem = driver.fabric_problem(
            versions.get(plan.fabric_package), picture.driver.on_disk or ""
        )
        if problem:
            yield stop(f"gpus.driver: {problem}.")
            return
    if not plan.units:
        return
    known = {unit.name: unit for unit in settled([driver.kernels(plan)])}
    known[driver.PERSISTENCE_UNIT] = Unit(
        driver.PERSISTENCE_UNIT, restart_after=[driver.PERSISTENCE]
    )
    changes = list(settle._inner(units=[known.get(unit, Unit(unit)) for unit in plan.units]))
    yield from changes
    if not changes and _forgetful(plan, picture):
        # An operator turned it off by hand; the daemon sets it at its start.
        yield StringCommand(f"systemctl restart {driver.PERSISTENCE_UNIT}")


def reboot_once(state: State, host: Host, sentence: str, situation: str) -> bool:
    """Reboot ``host`` for ``situation`` and wait until a new login finds a new boot. Log the reason
    and return False if it does not come back in time.
    """
    before = _boot_id(host)
    host.log_styled(f"{sentence}: rebooting this host once", fg="yellow", log_func=logger.warning)
    # The timer lets this command return before the connection closes.
    folder = REBOOT_MARKER.rpartition("/")[0]
    asked = _answer(
        host,
        f"install -d -m 755 {folder} && printf '%s\\n' {shlex.quote(situation)} >{REBOOT_MARKER}"
        " && sync && systemd-run --quiet --on-active=2 systemctl reboot && echo asked",
    )
    if before is None or asked is None:
        host.log_styled("it could not be rebooted", fg="red", log_func=logger.error)
        return False
    deadline = time.monotonic() + _BOOT_SECONDS
    with _paramiko_silent():
        while time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
            if _log_in_anew(host) and _boot_id(host) not in (None, before):
                return True
    host.log_styled(
        f"{sentence}: it was rebooted, but did not come back within {_BOOT_SECONDS // 60}"
        " minutes; look at its console",
        fg="red",
        log_func=logger.error,
    )
    return False


@contextmanager
def _paramiko_silent() -> Iterator[None]:
    """Avoid a traceback for each failed login while the machine boots."""
    log = logging.getLogger("paramiko.transport")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _log_in_anew(host: Host) -> bool:
    try:
        host.disconnect()
    except (OSError, EOFError, SSHException) as error:
        logger.debug("%s: the former connection: %s", host.name, error)
    host.connected = False
    try:
        host.connect(show_errors=False, raise_exceptions=True)
    except (ConnectError, OSError, EOFError, SSHException) as error:
        logger.debug("%s: not back yet: %s", host.name, error)
        return False
    return True


def _boot_id(host: Host) -> str | None:
    return _answer(host, "cat /proc/sys/kernel/random/boot_id")


def _answer(host: Host, command: str) -> str | None:
    """The first line of a command's output, None if the command or the connection failed."""
    try:
        okay, output = host.run_shell_command(
            StringCommand(framed(command)),
            _sudo=bool(host.data.get("_sudo")),
            _timeout=_COMMAND_SECONDS,
        )
        return next(iter(answer(output.stdout_lines)), None) if okay else None
    except (OSError, EOFError, SSHException, Unanswered) as error:
        logger.debug("%s: %s", host.name, error)
        return None
