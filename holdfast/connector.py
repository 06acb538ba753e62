"""`@rack/NAME`: pyinfra's SSH with seven things a rack needs.

The whole inventory is checked before the first socket is opened; the tailnet is tried before the
LAN; Nagle's algorithm is off (with it, every command waits 40 ms for a delayed ACK); a connection
through a proxy command ends when that does; one to a rack that answers no more ends as well; a host
of which a fact is missing gets no further command; and a *new* login can be asked for, which is how
a firewall change proves that it locked out no user.
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
"""How long a rack may take to answer its SSH server's simplest question; one under heavy load has
taken seconds."""


NEEDED = """test -d /run/systemd/system || exit 41
command -v sudo >/dev/null || exit 42
sudo -n true 2>/dev/null || exit 43"""
"""What a host must have before it is asked anything; all but the first line is about sudo."""
UNFIT = {
    41: "it does not run systemd, which Holdfast needs; install a distribution"
    " that docs/settings.md names",
    42: "sudo is not installed, and {user} needs it; as root: apt-get install sudo &&"
    " adduser {user} sudo",
    43: "sudo asks {user} for a password; as root: echo '{user} ALL=(ALL) NOPASSWD: ALL' >"
    " /etc/sudoers.d/{user}",
}
"""Exit status of `NEEDED` to what is wrong and how to mend it."""

# What it has to say about a connection that fails it raises, too; printed it is a traceback.
logging.getLogger("paramiko").addHandler(logging.NullHandler())


class EndingProxyCommand(ProxyCommand):
    """A proxy command whose end is the connection's: `tailscale nc` to a rack that lost its power.

    paramiko's (4.0) reads on for ever then, with one core at full load, and the run never ends.
    """

    def recv(self, size: int) -> bytes:
        """At most ``size`` bytes, none where the command has ended.

        Raises:
            TimeoutError: there were none in time.
        """
        output = self.process.stdout
        if output is None or not select([output], [], [], self.timeout)[0]:
            raise TimeoutError
        return os.read(output.fileno(), size)

    def close(self) -> None:
        """End the command, if it has not ended."""
        with suppress(ProcessLookupError):
            super().close()


sshuserclient.ProxyCommand = EndingProxyCommand  # type: ignore[misc]


def watch(transport: Transport) -> None:
    """End a connection whose other end is silent: a rack that has lost its power says nothing.

    paramiko's own keepalive asks for no answer, so a command would be waited for without end.
    """

    def ask() -> None:
        with suppress(OSError, EOFError, SSHException):
            # No server knows it, and each says so.
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
    """SSH to a rack, over the tailnet where it is joined and over the LAN where it is not yet."""

    via: Path = "tailnet"

    @staticmethod
    def make_names_data(name: str) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
        """Inventory entry ``@rack/tower`` is host ``tower``, reached under that name."""
        yield name, {"ssh_hostname": name}, []

    def __init__(self, state: State, host: Host) -> None:
        """Check the whole inventory while pyinfra builds its hosts, before any of them connects.

        Raised from here a refusal ends the command with its sentences; raised while connecting it
        would come with a traceback of the greenlet it happened in.

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
                # The next connection, after a reboot say, tries the tailnet first again.
                self.data["ssh_hostname"] = named
        _disable_nagle(self.client)
        if self.client and (transport := self.client.get_transport()):
            watch(transport)

    def connect(self) -> None:
        """Connect, and ask whether anything can be done there.

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
        """Run a command there, but none on a host that has failed.

        pyinfra continues an operation with the default of a fact that failed on its host, as if
        nothing were there, and it takes the default as well where a command prints nothing at all.
        """
        if self.host in self.state.failed_hosts:
            return False, _said("it has failed, so no more commands run there")
        okay, output = super().run_shell_command(command, *rest, **arguments)
        # A fact's command comes as text.
        if okay and is_framed(str(command)) and not output.stdout_lines:
            return False, _said(str(Unanswered()))
        return okay, output

    def new_login(self, path: Path | None = None) -> None:
        """Log in once more and run ``true``; by ``path``, or as the present connection does.

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
            # A proxy command that has ended already makes paramiko hide the real reason.
            with suppress(OSError):
                client.close()


def _said(sentence: str) -> CommandOutput:
    return CommandOutput([OutputLine("stderr", sentence)])


def _disable_nagle(client: SSHClient | None) -> None:
    transport = client.get_transport() if client else None
    link = getattr(transport, "sock", None)
    if isinstance(link, socket.socket) and link.family in (socket.AF_INET, socket.AF_INET6):
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
