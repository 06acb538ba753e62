"""Doors: how callers reach a program without a network.

systemd opens the port, bound to an interface, and a proxy behind it forwards requests to the
program's Unix socket. A port that is bound to an interface follows every change of address. A
compromised program has no network to call out with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from holdfast.render import render
from holdfast.sandbox import LOOPBACK, RUN, TAILNET
from holdfast.settings import LOOPBACK_OF, Tier

MARK = 0x5AFE
"""The mark of every packet of a door's sockets, including accepted ones. It uses none of
Tailscale's bits (0xff0000)."""


@dataclass(frozen=True)
class Patience:
    """How long a door's proxy waits for callers, and how many connections it accepts."""

    header_seconds: int = 5
    """Limit for all headers of a request. For so long a caller without a key can hold a
    connection."""
    body_seconds: int = 15
    """Limit for a body, or for the part of it that the proxy buffers before it forwards it."""
    silent_seconds: int = 60
    """Limit for the next byte of a body that is already being forwarded."""
    idle_seconds: int = 10
    """Limit for the next request of a connection that stays open."""
    connections: int = 1024
    source_connections: int = 512
    """Connections from one address. The programs of this host share one address, and each stream
    holds a connection."""


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
    """How the unit behind it depends on the socket: `BindsTo` stops the unit with the socket."""

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
        """The proxy's admin socket, if it has one; only its own user and root may connect."""
        return f"{RUN}/{self.stem}/admin.sock"


def doors(
    program: str, port: int, scope: Literal["loopback", "tailnet"], tier: Tier = "T1"
) -> list[Door]:
    """The doors of a program, open and closed.

    A closed door is listed too, so that a host whose ``scope`` was narrowed closes it.
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
