"""The steps that make a host a member of its tailnet as declared. Pure decisions."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from facts.places import CONFIGURATION, SYSTEM
from facts.tailnet import Node
from holdfast.service.capability import Declared
from holdfast.settings import (
    AptRepository,
    Cloud,
    Distribution,
    HostSettings,
    Listen,
    Service,
    Tailnet,
)

ENVIRONMENT = f"{CONFIGURATION}/tailscaled.env"
"""The daemon's variables."""
DROP_IN = f"{SYSTEM}/tailscaled.service.d/holdfast.conf"
"""The drop-in of the daemon's unit."""
VENDOR_CONTROL = "https://controlplane.tailscale.com"
VENDOR_PACKAGES = "https://pkgs.tailscale.com/stable"
# One key signs all of the vendor's suites; https://pkgs.tailscale.com/stable, fingerprint
# 2596 A99E AAB3 3821 893C 0A79 458C A832 957F 5868.
VENDOR_KEY_SHA256 = "3e03dacf222698c60b8e2f990b809ca1b3e104de127767864284e6c228f1fb39"

_SUITES: dict[Distribution, str] = {
    "debian12": "debian/bookworm",
    "debian13": "debian/trixie",
    "ubuntu2404": "ubuntu/noble",
    "ubuntu2604": "ubuntu/resolute",
}


def vendor_repository(distribution: Distribution) -> AptRepository:
    """Tailscale's own APT repository for ``distribution``."""
    family, suite = _SUITES[distribution].split("/")
    return AptRepository(
        url=f"{VENDOR_PACKAGES}/{family}",
        key_url=f"{VENDOR_PACKAGES}/{family}/{suite}.noarmor.gpg",
        key_sha256=VENDOR_KEY_SHA256,
        suite=suite,
    )


@dataclass(frozen=True)
class Steps:
    """The steps, in this order. A ``refusal`` is one sentence and excludes the others."""

    refusal: str | None = None
    join: bool = False
    connect: bool = False
    change: tuple[str, ...] = field(default=())
    """Flags for ``tailscale set``, which does not interrupt the connection."""
    request_tags: bool = False


def _control_server(settings: Tailnet) -> str:
    return (settings.control_server or VENDOR_CONTROL).rstrip("/")


def called(settings: Tailnet) -> list[Cloud]:
    """The servers that tailscaled may call by TCP: control server and relays, if not Tailscale's.

    The list is empty for Tailscale's own control server.
    """
    if settings.control_server is None:
        return []
    server = urlsplit(settings.control_server)
    # tailscaled tries the two usual ports besides the declared one.
    ports = dict.fromkeys([server.port or 443, 443, 80])
    own = [Cloud.model_construct(name=server.hostname or "", port=port) for port in ports]
    return [*own, *settings.relays]


def relays_missing(settings: Tailnet, node: Node) -> str | None:
    """A sentence on relays that the control server names but the inventory does not, or None."""
    if settings.control_server is None:
        return None
    known = {(one.name, one.port) for one in called(settings)}
    others = [f"{name}:{port}" for name, port in node.relays if (name, port) not in known]
    if not others:
        return None
    return (
        f"the control server names relays that are not declared ({', '.join(others)}):"
        " tailscaled could not use them, and peers that have no other path to this host would"
        " lose it"
    )


def join_flags(settings: Tailnet, hostname: str) -> list[str]:
    """Flags of ``tailscale up`` that describe the host, besides the key and the timeout.

    headscale binds tags to the key and refuses a host that requests tags. With Tailscale the host
    requests tags, and the key must allow them.
    """
    flags = [
        "--reset",
        f"--login-server={_control_server(settings)}",
        f"--hostname={hostname}",
        f"--accept-dns={str(settings.accept_dns).lower()}",
    ]
    if settings.tags and settings.control_server is None:
        flags.append(f"--advertise-tags={','.join(sorted(settings.tags))}")
    return flags


def plan(settings: Tailnet, hostname: str, node: Node) -> Steps:
    """The steps from the state of ``node`` to the settings; none if they agree."""
    if not node.joined:
        return Steps(join=True)
    current, wanted = node.control_server.rstrip("/") or VENDOR_CONTROL, _control_server(settings)
    if current != wanted:
        return Steps(
            refusal=f"tailnet.control_server: the host is a member at {current}, but the inventory"
            f" declares {wanted}; moving it drops every tailnet connection, so run 'tailscale"
            " logout' over the LAN or the console and deploy again"
        )
    change = []
    if node.hostname != hostname:
        change.append(f"--hostname={hostname}")
    if node.accept_dns != settings.accept_dns:
        change.append(f"--accept-dns={str(settings.accept_dns).lower()}")
    if node.ssh:
        # Tailscale's own SSH server would answer instead of the hardened sshd.
        change.append("--ssh=false")
    if node.shields_up:
        change.append("--shields-up=false")
    asks = set(settings.tags) if settings.control_server is None else set(node.requested_tags)
    return Steps(
        connect=node.backend == "Stopped",
        change=tuple(change),
        request_tags=set(node.requested_tags) != asks,
    )


def complaint(settings: Tailnet, hostname: str, node: Node, changed: bool) -> str | None:
    """Why ``node`` is not as declared, in one sentence, or None.

    Its name, and whether it is online, are checked only after a change. A control server that is
    down for an hour must not stop a deploy that connects over the LAN.
    """
    reason = f" ({node.health[0]})" if node.health else ""
    if not node.joined:
        return f"tailnet: the host is not a member{reason}"
    if node.backend != "Running":
        return f"tailnet: tailscaled stays in state {node.backend}{reason}"
    if set(node.tags) != set(settings.tags):
        return (
            f"tailnet.tags: the host has {_list(node.tags)} at the control server, but"
            f" {_list(settings.tags)} in the inventory; tag the key or the node there and"
            " deploy again"
        )
    if changed and not node.online:
        return "tailnet: the host joined, but its control server does not see it online"
    if changed and node.name and node.name != hostname:
        return (
            f"tailnet.hostname: the host's name on the tailnet is {node.name}, not {hostname};"
            f" delete or rename the other {hostname} at the control server, then rename this"
            " one"
        )
    return None


def keeps_lan_ssh(settings: Tailnet, node: Node) -> str | None:
    """Why SSH must stay open on the LAN, in one sentence, or None."""
    if node.expires is None or settings.key_may_expire:
        return None
    return (
        f"tailnet.key_may_expire: the node key of this host expires on {node.expires:%Y-%m-%d},"
        " and then no login over the tailnet works, so SSH stays open on the LAN; disable the"
        " key's expiry at"
        " the control server and deploy again, or set this key to True and renew the node key in"
        " time"
    )


def _list(tags: tuple[str, ...] | list[str]) -> str:
    return ", ".join(sorted(tags)) or "no tags"


def services(settings: HostSettings) -> list[Declared]:
    """tailscaled, where the host has a tailnet."""
    if settings.tailnet is None:
        return []
    tailscaled = Service(
        name="tailscaled",
        unit="tailscaled.service",
        user="root",
        tier="T4",
        listens=[Listen(port=settings.tailnet.port, protocol="udp", scope="public")],
    )
    return [("tailnet", tailscaled)]
