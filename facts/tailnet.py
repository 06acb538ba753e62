"""Membership of a tailnet, typed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from pyinfra.api import FactProcessError

from facts.framed import Framed
from facts.sections import is_starting

_DIVIDER = "-- preferences --"
_RELAYS = "-- relays --"


@dataclass(frozen=True)
class Node:
    """The state of a host in its own ``tailscaled`` and at the control server.

    ``backend`` is empty if no daemon answers. ``name`` is the host's label on the tailnet,
    ``hostname`` the requested one. ``relays`` are names and ports of the tailnet's DERP map.
    ``expires`` is when its node key ends, None for never.
    """

    backend: str = ""
    has_key: bool = False
    control_server: str = ""
    hostname: str = ""
    name: str = ""
    tags: tuple[str, ...] = ()
    requested_tags: tuple[str, ...] = ()
    accept_dns: bool = True
    ssh: bool = False
    shields_up: bool = False
    online: bool = False
    expired: bool = False
    expires: datetime | None = None
    health: tuple[str, ...] = ()
    v4: IPv4Address | None = None
    v6: IPv6Address | None = None
    relays: tuple[tuple[str, int], ...] = ()

    @property
    def joined(self) -> bool:
        """Whether the host is a member, with its connection up or down."""
        return self.has_key and not self.expired and self.backend not in ("", "NeedsLogin")


def _addresses(status: dict[str, Any]) -> tuple[IPv4Address | None, IPv6Address | None]:
    found = [ip_address(text) for text in status.get("TailscaleIPs") or []]
    v4 = next((address for address in found if isinstance(address, IPv4Address)), None)
    v6 = next((address for address in found if isinstance(address, IPv6Address)), None)
    return v4, v6


def _relays(found: dict[str, Any]) -> tuple[tuple[str, int], ...]:
    nodes = [
        node
        for region in (found.get("Regions") or {}).values()
        for node in region.get("Nodes") or []
        if not node.get("STUNOnly")
    ]
    named = {(node["HostName"].lower(), node.get("DERPPort") or 443) for node in nodes}
    return tuple(sorted(named))


def _expiry(text: str | None) -> datetime | None:
    found = datetime.fromisoformat(text) if text else None
    # A control server may write "never" as the year 1.
    return found if found is not None and found.year >= 1970 else None


class TailnetNode(Framed[Node]):
    """The host as a node; an empty ``Node`` if no ``tailscaled`` answers. One command."""

    def command(self) -> str:
        """Build the probe; a daemon that hangs counts as one that does not answer. A daemon that is
        starting has half a minute to report its state.
        """
        return (
            "command -v tailscale >/dev/null || exit 0; for second in $(seq 30); do"
            " status=$(timeout 20 tailscale status --json --peers=false 2>/dev/null)"
            f" || {{ {is_starting('tailscaled.service')} || exit 0; sleep 1; continue; }};"
            """ case $status in *'"BackendState": "NoState"'*|*'"BackendState": "Starting"'*)"""
            " sleep 1;; *) break;; esac; done; printf '%s\\n' \"$status\""
            f" && echo '{_DIVIDER}' && timeout 20 tailscale debug prefs 2>/dev/null"
            f" && echo '{_RELAYS}' && timeout 20 tailscale debug derp-map 2>/dev/null; true"
        )

    @staticmethod
    def default() -> Node:
        """No tailnet."""
        return Node()

    def process(self, output: list[str]) -> Node:
        """Parse the probe's output.

        Raises:
            FactProcessError: ``tailscale`` printed something that is not its JSON.
        """
        status_text, _, prefs_text = "\n".join(output).partition(_DIVIDER)
        prefs_text, _, relays_text = prefs_text.partition(_RELAYS)
        if not prefs_text.strip():
            return Node()
        try:
            status, prefs = json.loads(status_text), json.loads(prefs_text)
            me = status.get("Self") or {}
            expires = _expiry(me.get("KeyExpiry"))
            # A daemon that is not a member yet has no map, and prints a sentence instead.
            relays = json.loads(relays_text) if relays_text.strip().startswith("{") else {}
        except ValueError as error:
            raise FactProcessError(f"tailscale did not print its JSON: {error}") from None
        v4, v6 = _addresses(status)
        return Node(
            backend=status.get("BackendState", ""),
            has_key=bool(status.get("HaveNodeKey")),
            control_server=prefs.get("ControlURL", ""),
            hostname=prefs.get("Hostname", ""),
            name=me.get("DNSName", "").split(".")[0],
            tags=tuple(me.get("Tags") or ()),
            requested_tags=tuple(prefs.get("AdvertiseTags") or ()),
            accept_dns=bool(prefs.get("CorpDNS")),
            ssh=bool(prefs.get("RunSSH")),
            shields_up=bool(prefs.get("ShieldsUp")),
            online=bool(me.get("Online")),
            expired=bool(me.get("Expired")),
            expires=expires,
            health=tuple(status.get("Health") or ()),
            v4=v4,
            v6=v6,
            relays=_relays(relays),
        )


@dataclass(frozen=True)
class Addresses:
    """The host's own addresses on the tailnet; None if it has none."""

    v4: IPv4Address | None
    v6: IPv6Address | None


class TailnetAddresses(Framed[Addresses]):
    """The host's addresses for tailnet peers. Use it inside an operation: a bare host has none
    yet."""

    def command(self) -> str:
        """Build the probe; it prints one address a line."""
        return "timeout 20 tailscale ip 2>/dev/null; true"

    @staticmethod
    def default() -> Addresses:
        """Not on a tailnet."""
        return Addresses(None, None)

    def process(self, output: list[str]) -> Addresses:
        """Parse the probe's output."""
        return Addresses(*_addresses({"TailscaleIPs": [line.strip() for line in output if line]}))
