"""`@rack/NAME`: pyinfra's SSH connector with seven changes for a rack.

It checks the whole inventory before it opens the first socket. It tries the tailnet before the LAN.
It turns Nagle's algorithm off, which would delay every command by 40 ms (delayed ACK). A connection
through a proxy command ends with that command. A connection to a rack that no longer answers ends
as well. If a fact fails on a host, no more commands run there. A *new* login can be requested,
which proves that a change of the firewall locked no user out.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from select import select
from typing import TYPE_CHECKING, Any, Literal

from paramiko import ProxyCommand, SSHException, Transport
from pyinfra import logger
from pyinfra.api.exceptions import ConnectError
from pyinfra.connectors.ssh import SSHConnector
from pyinfra.connectors.sshuserclient import SSHClient
from pyinfra.connectors.sshuserclient import client as sshuserclient
from pyinfra.connectors.util import CommandOutput, OutputLine

from facts.framed import Unanswered, is_framed
from holdfast import site

if TYPE_CHECKING:
    from pyinfra.api import StringCommand
    from pyinfra.api.host import Host
    from pyinfra.api.state import State

Path = Literal["tailnet", "lan"]

ASKED_EVERY_SECONDS = 15.0
SILENT_SECONDS = 120.0
"""Limit for the host's answer to the simplest request; one under heavy load has taken seconds."""


NEEDED = """test -d /run/systemd/system || exit 41
command -v sudo >/dev/null || exit 42
sudo -n true 2>/dev/null || exit 43"""
"""The requirements of a host, checked before its first fact; all but the first line need sudo."""
UNFIT = {
    41: "it does not run systemd, which Holdfast needs; install a distribution"
    " that docs/settings.md names",
    42: "sudo is not installed, and {user} needs it; as root: apt-get install sudo &&"
    " adduser {user} sudo",
    43: "sudo asks {user} for a password; as root: echo '{user} ALL=(ALL) NOPASSWD: ALL' >"
    " /etc/sudoers.d/{user}",
}
"""Exit status of `NEEDED` to the error and its correction."""

# paramiko logs each error of a connection with a traceback, and also raises it.
logging.getLogger("paramiko").addHandler(logging.NullHandler())


class EndingProxyCommand(ProxyCommand):
    """A proxy command that ends its connection when it exits, as `tailscale nc` does without power.

    paramiko's own (4.0) then reads for ever, with one core at full load, and the run never ends.
    """

    def recv(self, size: int) -> bytes:
        """At most ``size`` bytes; none after the command has ended.

        Raises:
            TimeoutError: there were none in time.
        """
        output = self.process.stdout
        if output is None or not select([output], [], [], self.timeout)[0]:
            raise TimeoutError
        return os.read(output.fileno(), size)

    def close(self) -> None:
        """End the command if it is still running."""
        with suppress(ProcessLookupError):
            super().close()


sshuserclient.ProxyCommand = EndingProxyCommand  # type: ignore[misc]


def watch(transport: Transport) -> None:
    """End a connection whose other end no longer answers, such as a rack without power.

    paramiko's own keepalive expects no answer, so a command would wait for ever.
    """

    def ask() -> None:
        with suppress(OSError, EOFError, SSHException):
            # No server knows this request, and each replies so.
            transport.global_request("keepalive@holdfast")

    def look() -> None:
        pause = threading.Event()
        while transport.is_active():
            asking = threading.Thread(target=ask, daemon=True)
            asking.start()
            asking.join(SILENT_SECONDS)
            if asking.is_alive():
                logger.warning(
                    "the host has not answered for %g s: closing the connection", SILENT_SECONDS
                )
                transport.close()
            pause.wait(ASKED_EVERY_SECONDS)

    threading.Thread(target=look, daemon=True).start()


class RackConnector(SSHConnector):
    """SSH to a rack: over the tailnet, or over the LAN before the rack has joined it."""

    via: Path = "tailnet"

    @staticmethod
    def make_names_data(name: str) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
        """Map the inventory entry ``@rack/tower`` to the host ``tower``, with this address."""
        yield name, {"ssh_hostname": name}, []

    def __init__(self, state: State, host: Host) -> None:
        """Check the whole inventory while pyinfra creates its hosts, before any connection.

        Here a refusal ends the command with its sentences. During a connection it would be printed
        with the traceback of a greenlet.

        Raises:
            Refused: the inventory cannot work as it is written.
        """
        site.load(host.inventory)
        super().__init__(state, host)

    def _connect(self) -> None:
        lan_address, named = self.host.data.get("lan_address"), self.data["ssh_hostname"]
        self.via = "tailnet"
        try:
            super()._connect()
        except (OSError, EOFError, SSHException, ConnectError) as error:
            if lan_address is None:
                raise
            logger.debug("%s refuses a login over the tailnet: %s", self.host.name, error)
            self.data["ssh_hostname"] = lan_address
            self.via = "lan"
            try:
                super()._connect()
            finally:
                # The next connection, for example after a reboot, tries the tailnet first again.
                self.data["ssh_hostname"] = named
        _disable_nagle(self.client)
        if self.client and (transport := self.client.get_transport()):
            watch(transport)

    def connect(self) -> None:
        """Connect, and check that commands can run there.

        Raises:
            ConnectError: it cannot be reached, runs no systemd, or its sudo asks for a password.
        """
        super().connect()
        wanted = NEEDED if self.host.data.get("_sudo") else NEEDED.partition("\n")[0]
        try:
            if self.client is None:
                return
            _, stdout, _ = self.client.exec_command(wanted, timeout=SILENT_SECONDS)
            status = stdout.channel.recv_exit_status()
        except (OSError, EOFError, SSHException) as error:
            raise ConnectError(f"it closed the connection after the login ({error})") from error
        if status in UNFIT:
            raise ConnectError(UNFIT[status].format(user=self.host.data.get("ssh_user") or "user"))

    def run_shell_command(
        self, command: StringCommand, *rest: Any, **arguments: Any
    ) -> tuple[bool, CommandOutput]:
        """Run a command, but not on a host that has failed.

        If a fact fails, pyinfra continues the operation with the fact's default. It also uses the
        default if a command prints nothing at all.
        """
        if self.host in self.state.failed_hosts:
            return False, _said("it has failed, so no more commands run there")
        okay, output = super().run_shell_command(command, *rest, **arguments)
        # The command of a fact is a text.
        if okay and is_framed(str(command)) and not output.stdout_lines:
            return False, _said(str(Unanswered()))
        return okay, output

    def new_login(self, path: Path | None = None) -> None:
        """Log in once more, over ``path`` or as the present connection does, and run ``true``.

        Raises:
            ConnectError: the login did not succeed.
        """
        settings = site.settings_of(self.host)
        arguments = self.make_paramiko_kwargs()
        arguments["hostname"] = {
            "tailnet": settings.ssh_hostname or self.host.name,
            "lan": settings.lan_address,
        }[path or self.via]
        # The memoised host keys were read before this run learned any.
        client = SSHClient()
        try:
            client.connect(arguments.pop("hostname"), **arguments)  # type: ignore[no-untyped-call]
            _, stdout, _ = client.exec_command("true", timeout=30)
            if stdout.channel.recv_exit_status() != 0:
                raise ConnectError("a new login succeeded, but could not run a command")
        except (OSError, EOFError, SSHException) as error:
            raise ConnectError(f"a new login by the {path or self.via} failed ({error})") from error
        finally:
            # If a proxy command has already ended, paramiko hides the real error.
            with suppress(OSError):
                client.close()


def _said(sentence: str) -> CommandOutput:
    return CommandOutput([OutputLine("stderr", sentence)])


def _disable_nagle(client: SSHClient | None) -> None:
    transport = client.get_transport() if client else None
    link = getattr(transport, "sock", None)
    if isinstance(link, socket.socket) and link.family in (socket.AF_INET, socket.AF_INET6):
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
