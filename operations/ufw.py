"""UFW as declared, changed in such a way that a mistake cannot lock anybody out.

Before anything changes the host arms a timer that restores the firewall as it was, even
if this run dies. It is disarmed by a login that is made after the change, and by nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

from pyinfra import host as this_host
from pyinfra import logger
from pyinfra.api import FunctionCommand, StringCommand, operation
from pyinfra.api.exceptions import ConnectError
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
from operations.refusal import stop

Commands = Generator[StringCommand | FunctionCommand, None, None]


def _new_login(host: Host) -> Callable[[Path | None], None] | None:
    login: Callable[[Path | None], None] | None = getattr(host.connector, "new_login", None)
    return login


def _try_login(host: Host, path: Path | None, otherwise: str) -> bool:
    login = _new_login(host)
    try:
        if login is None:
            raise ConnectError("a new login is needed, and only the @rack connector opens one")
        login(path)
    except (ConnectError, OSError) as error:
        _complain(host, f"{error}; {otherwise}.")
        return False
    return True


def _complain(host: Host, sentence: str) -> None:
    host.log_styled(sentence, fg="red", log_func=logger.error)


def _prove(
    state: State, host: Host, path: Path | None, settings: HostSettings, declared: list[Hole]
) -> bool:
    """Log in once more and read the firewall back; only then may the change stay."""
    seconds = settings.firewall.rollback_seconds
    if not _try_login(
        host, path, f"the host restores its former firewall within {seconds} seconds"
    ):
        return False
    left = plan(settings, declared, host.get_fact(Firewall)).commands
    if left:
        _complain(
            host,
            f"The firewall did not become what was asked; still to do: {'; '.join(left)}."
            f" The host restores its former firewall within {seconds} seconds.",
        )
    return not left


def _change(
    settings: HostSettings, declared: list[Hole], found: FirewallState, path: Path | None
) -> Commands:
    wanted = plan(settings, declared, found)
    # What an earlier run applied and did not live to prove is proved now, and so are rules that are
    # as declared and yet not those that the host was told to keep.
    if not wanted.commands and not found.armed and found.proved:
        return
    for rule in wanted.foreign:
        logger.warning(f"{this_host.print_prefix}Removing a rule the inventory lacks: {rule}")
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
    """Make ufw and DOCKER-USER what ``settings`` declares, and remove every rule they do not.

    One remote command when they already are. Fails, and the host then restores what it had, when
    no new login succeeds afterwards.
    """
    found = this_host.get_fact(Firewall)
    lan_ssh = lan_ssh_wanted(settings, found)
    declared = holes(settings, declared_services(settings), lan_ssh=lan_ssh)
    yield from _change(settings, declared, found, None)


@operation()
def withdraw_lan_ssh(settings: HostSettings) -> Commands:
    """Close SSH on the LAN, once a login over the tailnet has succeeded in this run.

    One remote command when it is closed. Fails, with SSH still open on the LAN, when the tailnet
    does not carry a login, or will not when the node key has ended. What the host has opened
    itself, because it was no member, it closes itself: that is said and left alone.
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
    return _try_login(host, "tailnet", "SSH stays open on the LAN until the tailnet carries it")
