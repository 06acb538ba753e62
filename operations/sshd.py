"""Configure sshd without a lock-out.

A change is validated by ``sshd -t``. A timer is started that restores the previous files at a
deadline. Then sshd loads the change, and a new login must confirm it before the timer is stopped
and the run continues. A boot before that login also restores the previous files.
"""

from __future__ import annotations

import shlex
from collections.abc import Generator

from pyinfra import host, logger
from pyinfra.api import FunctionCommand, StringCommand, operation
from pyinfra.api.exceptions import ConnectError
from pyinfra.api.host import Host
from pyinfra.api.state import State

from facts.framed import Unanswered, answer, framed
from facts.ssh import Sshd, SshState
from holdfast import ssh
from holdfast.connector import RackConnector
from holdfast.render import render
from holdfast.settings import HostSettings
from operations.host_files import CONFIGURATION, HostDirectory, HostFile, place

DROP_IN = "/etc/ssh/sshd_config.d/00-holdfast.conf"

_BACK = "the previous configuration is back in force"

# sshd -t cannot test a single file: it gets a copy of the whole configuration with the new drop-in.
_VALIDATE = (
    "d=$(mktemp -d) && trap 'rm -rf $d' EXIT && install -d /run/sshd"
    " && cp /etc/ssh/sshd_config.d/*.conf $d 2>/dev/null; cp {} $d/00-holdfast.conf"
    ' && sed "s#/etc/ssh/sshd_config.d/#$d/#" /etc/ssh/sshd_config > $d/main'
    " && sshd -t -f $d/main"
)

# Ubuntu lets systemd listen for sshd and derives its ports from sshd's files on daemon-reload.
_RELOAD = (
    "systemctl is-active --quiet ssh.socket"
    " && { systemctl daemon-reload; systemctl restart ssh.socket; };"
    " systemctl reload-or-restart ssh.service"
)


@operation()
def settled(settings: HostSettings) -> Generator[StringCommand | FunctionCommand, None, None]:
    """Set host keys, configuration and the declared users' keys. If the new configuration is
    invalid, is overridden by the host's main file, or a new login fails, it restores the previous
    one and fails.

    For example::

        sshd.settled(name="Configure sshd and prove a new login", settings=settings)
    """
    state = state_of(host, settings)
    yield from _materials(state)

    ports, keyed = ssh.ports(settings, state.came_by), ssh.keyed(settings, state.keyed)
    wanted = ssh.in_force(settings, ports)
    drop_in = render(
        "ssh/sshd.conf.j2",
        directives=ssh.directives(settings, ports),
        keyed=keyed,
        key_file=ssh.KEY_FILE,
    )
    # Keys first, then the configuration that names them; sshd reads them as the user.
    keys = [
        HostFile(f"{ssh.KEYS}/{user}", "".join(f"{key}\n" for key in own))
        for user, own in settings.ssh.authorised_keys.items()
    ]
    files = [*keys, HostFile(DROP_IN, drop_in, validate=_VALIDATE)]
    folders = [CONFIGURATION, HostDirectory(ssh.KEYS)] if keyed else []
    changes = list(place._inner(files=files, directories=folders))
    obeyed = wanted <= state.effective and not _elsewhere(keyed, state.key_files)
    if changes or state.is_outdated or state.is_unproved or not obeyed:
        yield StringCommand(_arm([file.path for file in files], settings.firewall.rollback_seconds))
        yield from changes
        yield StringCommand(_RELOAD)
        moved = [user for user in keyed if user not in state.keyed]
        yield FunctionCommand(_prove, [settings, wanted, moved], {})
    for user, size in sorted(state.keyed.items()):
        if size and user not in settings.ssh.authorised_keys:
            logger.warning(
                "%s: ssh.authorised_keys no longer names %s, who can still log in with the"
                " keys in %s/%s: empty that file to prevent it",
                *(host.name, user, ssh.KEYS, user),
            )


def _elsewhere(keyed: list[str], key_files: dict[str, str]) -> list[str]:
    """The users whose keys sshd does not read from root's folder only."""
    return [user for user in keyed if key_files.get(user) != ssh.KEY_FILE]


def state_of(host: Host, settings: HostSettings) -> SshState:
    """The state of sshd and of the declared users' keys on a host."""
    found: SshState = host.get_fact(
        Sshd,
        host_key=ssh.HOST_KEY,
        moduli=ssh.MODULI,
        keys=ssh.KEYS,
        users=list(settings.ssh.authorised_keys),
    )
    return found


def _materials(state: SshState) -> Generator[StringCommand, None, None]:
    if not state.has_host_key:
        yield StringCommand(f"ssh-keygen -q -t ed25519 -N '' -C '' -f {ssh.HOST_KEY}")
    if not state.has_strong_moduli:
        yield StringCommand(
            f"umask 022; awk '$5 >= 3071' /etc/ssh/moduli > {ssh.MODULI}.new"
            f" && mv {ssh.MODULI}.new {ssh.MODULI}"
        )
    for user in sorted(state.passwordless):
        yield StringCommand(f"usermod --password '*' {shlex.quote(user)}")


def _arm(paths: list[str], seconds: int) -> str:
    """Save the present files, and restore them after ``seconds`` or at a boot."""
    return f"{ssh.ROLLBACK_SCRIPT} keep {shlex.join(paths)} && {ssh.ROLLBACK_SCRIPT} arm {seconds}"


def _prove(
    state: State,
    host: Host,
    settings: HostSettings,
    wanted: set[tuple[str, str]],
    moved: list[str],
) -> bool:
    """Log in again; stop the rollback timer on success, otherwise run the rollback at once.
    ``moved`` are the users whose keys were in their homes before.
    """
    failure = _failure(host, settings, wanted)
    if failure is not None:
        # The script leaves the reload to systemd; the run continues afterwards.
        wrong = _run(host, f"{ssh.ROLLBACK_SCRIPT} restore && {_RELOAD}")
        back = f"restoring the previous configuration failed: {wrong}" if wrong else _BACK
        logger.error("%s: ssh: %s; %s", host.name, failure, back)
        return False
    if late := _run(host, f"{ssh.ROLLBACK_SCRIPT} disarm"):
        logger.error("%s: ssh: %s", host.name, late)
        return False
    for user in moved:
        logger.warning(
            "%s: ssh: sshd now reads the keys of %s in %s/%s and ignores"
            " ~%s/.ssh/authorized_keys: a key that is only there no longer works",
            *(host.name, user, ssh.KEYS, user, user),
        )
    return True


def _failure(host: Host, settings: HostSettings, wanted: set[tuple[str, str]]) -> str | None:
    try:
        effective = _effective(host)
    except (Unanswered, ValueError) as error:
        return str(error)
    if overruled := sorted(wanted - effective):
        keyword, value = overruled[0]
        return (
            f"{DROP_IN} has no effect: {keyword} is not {value}; /etc/ssh/sshd_config must"
            " start with Include /etc/ssh/sshd_config.d/*.conf"
        )
    found = state_of(host, settings)
    if elsewhere := _elsewhere(ssh.keyed(settings, found.keyed), found.key_files):
        return (
            f"sshd looks for keys of {elsewhere[0]} outside {ssh.KEYS}: remove"
            f" AuthorizedKeysFile from the files that it reads before {DROP_IN}"
        )
    if not isinstance(host.connector, RackConnector):
        return None
    try:
        host.connector.new_login()
    except ConnectError as error:
        return str(error)
    return None


def _effective(host: Host) -> set[tuple[str, ...]]:
    """The pairs of keyword and value that ``sshd -T`` prints.

    Raises:
        Unanswered: its answer is incomplete. ValueError: it rejects the configuration.
    """
    okay, output = host.run_shell_command(
        StringCommand(framed("sshd -T")), _sudo=bool(host.data.get("_sudo"))
    )
    if not okay:
        raise ValueError(f"sshd -T rejects the configuration: {output.stderr.strip()}")
    return {tuple(line.split(" ", 1)) for line in answer(output.stdout_lines)}


def _run(host: Host, command: str) -> str:
    """The error of a failed command; empty if it succeeded."""
    okay, output = host.run_shell_command(
        StringCommand(framed(command)), _sudo=bool(host.data.get("_sudo"))
    )
    return "" if okay else output.stderr.strip() or f"{command} failed"
