"""UFW as declared, changed so that a mistake cannot lock the operator out.

Before a change the host starts a timer that restores the previous firewall, even if this run dies.
Only a new login after the change stops the timer.
"""

from __future__ import annotations

from collections.abc import Generator

from pyinfra import host as this_host
from pyinfra import logger
from pyinfra.api import FunctionCommand, StringCommand, operation
from pyinfra.api.host import Host
from pyinfra.api.state import State

from facts.firewall import PROGRAM, Firewall, FirewallState
from facts.tailnet import TailnetNode
from holdfast.connector import Path
from holdfast.firewall import (
    LOAD,
    UNTIL_TAILNET,
    WITHOUT_TAILNET,
    Hole,
    holes,
    lan_ssh_rules,
    lan_ssh_wanted,
    plan,
)
from holdfast.registry import declared_services
from holdfast.settings import HostSettings
from holdfast.tailnet import keeps_lan_ssh
from operations import login
from operations.refusal import stop

Commands = Generator[StringCommand | FunctionCommand, None, None]


def _prove(
    state: State, host: Host, path: Path | None, settings: HostSettings, declared: list[Hole]
) -> bool:
    """Log in again and read the firewall back; only then is the change kept."""
    seconds = settings.firewall.rollback_seconds
    if not login.attempt(
        host, path, f"the host restores its previous firewall within {seconds} seconds"
    ):
        return False
    left = plan(settings, declared, host.get_fact(Firewall)).commands
    if left:
        login.complain(
            host,
            f"The firewall is not as declared; still missing: {'; '.join(left)}."
            f" The host restores its previous firewall within {seconds} seconds.",
        )
    return not left


def _change(
    settings: HostSettings, declared: list[Hole], found: FirewallState, path: Path | None
) -> Commands:
    wanted = plan(settings, declared, found)
    # This also confirms a change of an earlier run that died, and rules that are as declared but
    # are not the recorded ones.
    if not wanted.commands and not found.armed and found.proved:
        return
    for rule in wanted.foreign:
        logger.warning(
            f"{this_host.print_prefix}Removing a rule that the inventory does not declare: {rule}"
        )
    yield StringCommand(f"{PROGRAM} keep")
    for command in wanted.preparation:
        yield StringCommand(command)
    yield StringCommand(f"{PROGRAM} arm {settings.firewall.rollback_seconds}")
    for command in wanted.action or [LOAD]:
        yield StringCommand(command)
    yield FunctionCommand(_prove, [path, settings, declared], {})
    yield StringCommand(f"{PROGRAM} disarm")


@operation()
def enforce(settings: HostSettings) -> Commands:
    """Set ufw and DOCKER-USER as declared in ``settings``, and remove every other rule. One remote
    command if nothing changes. Fails if no new login succeeds afterwards; then the host restores
    the previous rules.

    For example::

        ufw.enforce(name="Enforce the firewall", settings=settings)
    """
    found = this_host.get_fact(Firewall)
    lan_ssh = lan_ssh_wanted(settings, found)
    declared = holes(settings, declared_services(settings), lan_ssh=lan_ssh)
    yield from _change(settings, declared, found, None)


@operation()
def withdraw_lan_ssh(settings: HostSettings) -> Commands:
    """Close SSH on the LAN after a login over the tailnet has succeeded in this run. One remote
    command if it is closed. Fails and leaves SSH open on the LAN if a login over the tailnet fails,
    or will fail because the node key has an expiry. If the host opened SSH itself because it lost
    the tailnet, the host also closes it: this is reported and not changed.

    For example::

        ufw.withdraw_lan_ssh(name="Withdraw SSH from the LAN", settings=settings)
    """
    tailnet = settings.tailnet
    found = this_host.get_fact(Firewall)
    if tailnet is None:
        return
    if lan_ssh_rules(found, WITHOUT_TAILNET):
        logger.warning(
            f"{this_host.print_prefix}SSH is open on the LAN because this host lost its tailnet;"
            f" the host closes it after {tailnet.lost_minutes} minutes of membership"
        )
        return
    if not lan_ssh_rules(found, UNTIL_TAILNET):
        return
    if sentence := keeps_lan_ssh(tailnet, this_host.get_fact(TailnetNode)):
        yield stop(sentence)
        return
    yield FunctionCommand(_try_tailnet, [], {})
    declared = holes(settings, declared_services(settings), lan_ssh=None)
    yield from _change(settings, declared, found, "tailnet")


def _try_tailnet(state: State, host: Host) -> bool:
    return login.attempt(
        host, "tailnet", "SSH stays open on the LAN until a login over the tailnet succeeds"
    )
