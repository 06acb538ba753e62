"""Names, accounts and kernel settings of a host: read in one command, corrected one by one."""

from __future__ import annotations

import shlex
from collections.abc import Generator

from pyinfra import host
from pyinfra.api import StringCommand, operation

from facts.base import BaseState, Ground
from holdfast import base
from holdfast.settings import HostSettings

SYSCTL_FILE = "/etc/sysctl.d/zz-holdfast.conf"
NOLOGIN = "/usr/sbin/nologin"
_FIRST_HUMAN_UID = 1000


def ground_of_host(settings: HostSettings) -> BaseState:
    """The state that `base` needs of the present host."""
    state: BaseState = host.get_fact(
        Ground,
        disks=[disk.path for disk in settings.base.disks],
        accounts=base.asked_accounts(settings),
        sysctls=list(base.SYSCTLS),
        modes=list(base.MODES),
    )
    return state


@operation()
def settled(settings: HostSettings) -> Generator[StringCommand, None, None]:
    """Set names, time zone, locale, authorities, accounts, modes and sysctls as declared. Expects
    the files and packages of `base`.

    For example::

        ground.settled(name="Settle names and accounts", settings=settings)
    """
    state = ground_of_host(settings)
    yield from _names(settings, state)
    yield from _accounts(settings, state)

    if state.authorities_outdated:
        yield StringCommand("update-ca-certificates")
    if state.default_core_limit != "0":
        yield StringCommand("systemctl daemon-reload")
    for path, mode in base.MODES.items():
        if state.modes.get(path, mode) != mode:
            yield StringCommand(f"chmod {mode} {path}")
    if not base.audit_rules() <= state.audit_rules:
        yield StringCommand("augenrules --load")
    if not state.audit_enabled:
        yield StringCommand("auditctl -e 1")
    if base.sysctls_not_in_force(state):
        yield StringCommand(f"/lib/systemd/systemd-sysctl {SYSCTL_FILE}")


def _names(settings: HostSettings, state: BaseState) -> Generator[StringCommand, None, None]:
    wanted_hosts = base.hosts_file(state.hosts_file, settings)
    # Before the host's name changes: otherwise sudo warns that it cannot resolve it.
    if state.hosts_file.rstrip("\n") != wanted_hosts.rstrip("\n"):
        # Written in place: in a container the file is a mount point.
        yield StringCommand("cat > /etc/hosts", _stdin=wanted_hosts)
    if state.hostname != settings.hostname:
        yield StringCommand(f"echo {settings.hostname} > /etc/hostname")
    if state.live_hostname != settings.hostname:
        yield StringCommand(f"echo {settings.hostname} > /proc/sys/kernel/hostname")

    timezone = shlex.quote(settings.base.timezone)
    if state.timezone != settings.base.timezone:
        zone = f"/usr/share/zoneinfo/{timezone}"
        yield StringCommand(f"test -f {zone} && ln -sfT {zone} /etc/localtime")
    if state.legacy_timezone not in (None, settings.base.timezone):
        yield StringCommand(f"echo {timezone} > /etc/timezone")

    locale = settings.base.locale
    if state.locale != locale:
        quoted = shlex.quote(locale)
        if "locales" in base.packages(settings):
            charset = locale.rpartition(".")[2] if "." in locale else "UTF-8"
            line = shlex.quote(f"{locale} {charset}")
            yield StringCommand(
                f"grep -qxF {line} /etc/locale.gen || echo {line} >> /etc/locale.gen; locale-gen"
            )
        # Written through: Debian 13 has a link to /etc/locale.conf here.
        yield StringCommand(f"echo LANG={quoted} > /etc/default/locale")


def _accounts(settings: HostSettings, state: BaseState) -> Generator[StringCommand, None, None]:
    for user in base.service_users(settings):
        account = state.accounts.get(user)
        if account is None:
            yield StringCommand(
                f"getent group {user} >/dev/null && group=--gid={user} || group=--user-group;"
                f" useradd --system $group --no-create-home --home-dir /nonexistent"
                f" --shell {NOLOGIN} {user}"
            )
        elif account.uid < _FIRST_HUMAN_UID and not account.shell.endswith(("nologin", "false")):
            yield StringCommand(f"usermod --shell {NOLOGIN} {user}")
