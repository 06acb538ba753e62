"""Doors: how a program without a network is reached.

systemd holds the port, bound to its interface, and a process behind it carries what comes in to the
program's Unix socket. A port bound to an interface follows every change of address, and nothing
that breaks out of the program can call anyone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from holdfast.render import render
from holdfast.sandbox import LOOPBACK, RUN, TAILNET
from holdfast.settings import LOOPBACK_OF, Tier

MARK = 0x5AFE
"""On every packet of a door's sockets, the accepted ones too. None of its bits is Tailscale's
(0xff0000)."""


@dataclass(frozen=True)
class Patience:
    """How long a door's proxy waits for its callers, and how many it lets wait."""

    header_seconds: int = 5
    """For the whole of a request's headers; for it every caller can hold a place without a key."""
    body_seconds: int = 15
    """For a body, or as much of it as is kept before it goes on."""
    silent_seconds: int = 60
    """For the next byte of a body that goes on while it comes."""
    idle_seconds: int = 10
    """For the next request of a connection that stays open."""
    connections: int = 1024
    source_connections: int = 512
    """Of one address: the programs of this host share one, and hold one for each stream."""


PATIENCE = Patience()


@dataclass(frozen=True)
class Door:
    """A place where a program can be reached: a socket unit and the service behind it."""

    program: str
    """Prefix of its units' names."""
    name: str
    listen: str
    interface: str
    wanted_by: str
    peers: tuple[str, ...]
    is_open: bool = True
    dependency: ClassVar[str] = "BindsTo"
    """What the unit behind it does when its socket goes: it ends."""

    @property
    def stem(self) -> str:
        """The beginning of its units' names, and its folder below `RUN`."""
        return f"{self.program}-{self.name}"

    @property
    def socket(self) -> str:
        """The socket unit's name."""
        return f"{self.stem}.socket"

    @property
    def service(self) -> str:
        """The name of the unit behind it."""
        return f"{self.stem}.service"

    @property
    def admin(self) -> str:
        """Where its proxy takes orders, where it does; only its user, and root, may give them."""
        return f"{RUN}/{self.stem}/admin.sock"


def doors(
    program: str, port: int, scope: Literal["loopback", "tailnet"], tier: Tier = "T1"
) -> list[Door]:
    """Where a program can be reached, and where it could be: a door that is shut stays described,
    so that a host whose scope was narrowed closes it.
    """
    own = f"{LOOPBACK_OF[tier]}:{port}"
    return [
        Door(program, "loopback", own, "lo", "sockets.target", LOOPBACK),
        Door(
            program,
            "tailnet",
            str(port),
            "tailscale0",
            "sys-subsystem-net-devices-tailscale0.device",
            TAILNET,
            is_open=scope == "tailnet",
        ),
    ]


def socket_unit(door: Door) -> str:
    """The text of a door's socket unit."""
    return render("service/door.socket.j2", door=door, mark=MARK)
