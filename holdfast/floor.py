"""The floor: its units and the files they read, from settings alone.

llama-server has no network. It answers on a Unix socket; systemd holds the ports, each bound to its
interface, and a proxy without a network of its own carries the bytes. A port bound to an interface
follows every change of address, and nothing that breaks out of the engine can call anyone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from holdfast import alerts
from holdfast.registry import floor_model, floor_service
from holdfast.render import render
from holdfast.sandbox import LOOPBACK, TAILNET, sandbox
from holdfast.secrets import Secret
from holdfast.services import Service
from holdfast.settings import Floor, HostSettings
from holdfast.storage import model_path

PROGRAM = "llama.cpp"
UNIT = "holdfast-floor.service"
RUNTIME_DIRECTORY = "holdfast-floor"
SOCKET = f"/run/{RUNTIME_DIRECTORY}/http.sock"
"""Where llama-server listens; only its own user may connect."""
KEY_FILE = "/etc/holdfast/credentials/floor-api-key"
PROBE_FILE = "/etc/holdfast/credentials/floor-probe"
"""A curl configuration that asks for one token; it holds the key, so that no argv has to."""


@dataclass(frozen=True)
class Door:
    """A place where the floor can be reached: a socket unit and the proxy behind it."""

    name: str
    listen: str
    interface: str
    wanted_by: str
    peers: tuple[str, ...]
    is_open: bool = True

    @property
    def socket(self) -> str:
        """The socket unit's name."""
        return f"holdfast-floor-{self.name}.socket"

    @property
    def proxy(self) -> str:
        """The proxy unit's name."""
        return f"holdfast-floor-{self.name}.service"


def doors(floor: Floor) -> list[Door]:
    """Where the floor can be reached, and where it could be: a door that is shut stays described,
    so that a host whose scope was narrowed closes it.
    """
    return [
        Door("loopback", f"127.0.0.1:{floor.port}", "lo", "sockets.target", LOOPBACK),
        Door(
            "tailnet",
            str(floor.port),
            "tailscale0",
            "sys-subsystem-net-devices-tailscale0.device",
            TAILNET,
            is_open=floor.scope == "tailnet",
        ),
    ]


def key_problem(key: Secret) -> str | None:
    """Why ``key`` would not protect the floor, or None.

    llama-server reads one key a line and takes a line that starts with # for a comment: such a key
    would leave the floor open to everyone who can reach it.
    """
    value = key.get_secret_value()
    if value.startswith("#"):
        return "must not start with #, which llama-server reads as a comment"
    if not value.isascii() or not value.isprintable() or " " in value or '"' in value:
        return "must be printable ASCII without spaces or double quotes"
    return None


def unit_files(settings: HostSettings, release_directory: str) -> dict[str, str]:
    """Path to text of every unit the floor needs; ``release_directory`` holds ``llama-server``.

    Raises:
        ValueError: the host has no floor, or its model is not declared.
    """
    floor, service, model = settings.floor, floor_service(settings), floor_model(settings)
    if floor is None or service is None or model is None:
        raise ValueError(f"{settings.hostname} declares no floor with a declared model")
    units = {
        UNIT: render(
            "floor/holdfast-floor.service.j2",
            floor=floor,
            model=model_path(settings.storage, model),
            release_directory=release_directory,
            runtime_directory=RUNTIME_DIRECTORY,
            socket=SOCKET,
            key_file=KEY_FILE,
            probe_file=PROBE_FILE,
            on_failure=alerts.ON_FAILURE,
            sandbox=sandbox(service, isolated=True),
        )
    }
    for door in doors(floor):
        proxy = Service(name=door.name, unit=door.proxy, user=service.user, tier=service.tier)
        units[door.socket] = render("floor/holdfast-floor-door.socket.j2", door=door)
        units[door.proxy] = render(
            "floor/holdfast-floor-door.service.j2",
            door=door,
            socket=SOCKET,
            on_failure=alerts.ON_FAILURE,
            sandbox=sandbox(proxy, isolated=True),
        )
    return {f"/etc/systemd/system/{name}": text for name, text in units.items()}


def probe(key: Secret) -> str:
    """A curl configuration that asks the floor for one token and says nothing unless it fails."""
    body = json.dumps({"prompt": "ready", "max_tokens": 1})
    lines = {
        "url": "http://floor/v1/completions",
        "unix-socket": SOCKET,
        "header": f"Authorization: Bearer {key.get_secret_value()}",
        "json": body,
        "output": "/dev/null",
        "max-time": "300",
    }
    quoted = [f"{name} = {json.dumps(value)}" for name, value in lines.items()]
    return "\n".join(["fail", "silent", "show-error", *quoted, ""])
