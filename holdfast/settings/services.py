"""The settings under ``services``.

A service is declared once; unit sandbox, firewall, backup and checks all derive from this. ``unit``
names the unit of a service that is on the host already: it is declared only, and Holdfast neither
installs nor starts it. ``container`` and ``python`` say what Holdfast installs, starts, updates and
removes; one of the three is written.

For example::

    "services": [
        {
            "name": "pictures",
            "container": {
                "image": "ghcr.io/example/pictures@sha256:"
                "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
                "ports": {8188: 80},
                "mounts": {"/srv/pictures": "/data"},
                "environment": {"TOKEN_FILE": "/run/secrets/token"},
                "secrets": {"token": "PICTURES_TOKEN"},
            },
            "tier": "T1",
            "network": "sealed",
            "listens": [{"port": 8188, "scope": "tailnet"}],
            "cards": ["one"],
            "gpu_mib": 12000,
            "memory_max_mib": 8192,
            "data": [{"path": "/srv/pictures", "backup": "state"}],
            "health": {"url": "http://127.0.0.1:8188/health", "contains": "ok"},
        },
        {
            "name": "photos",
            "unit": "photos.service",
            "user": "photos",
            "tier": "T1",
            "listens": [{"port": 2342, "scope": "tailnet", "callers": ["group:family"]}],
            "peers": [{"network": "192.168.1.30/32", "port": 5432}],
            "run_paths": ["/run/postgresql"],
            "data": [{"path": "/srv/photos", "backup": "state"}],
            "health": {"url": "http://127.0.0.1:2342/health", "contains": "ok"},
        },
    ]
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from facts.tenants import TENANT
from holdfast.settings.backup import DataPath
from holdfast.settings.egress import Cloud, Peer, Tier
from holdfast.types import (
    AbsolutePath,
    Caller,
    Cidr,
    ContainerUser,
    ControllerPath,
    FileName,
    ImageDigest,
    Interface,
    LocalUrl,
    Model,
    Name,
    Port,
    SecretName,
    Sentence,
    Text,
    UnitName,
    Url,
    UserName,
    VariableName,
)

Relaxation = Literal[
    "root",
    "writable",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "IPC_LOCK",
    "KILL",
    "NET_BIND_SERVICE",
    "SETGID",
    "SETUID",
    "SYS_NICE",
]


class Listen(Model):
    """The port and callers of a service.

    ``loopback``: this host only. ``tailnet``: loopback and tailnet peers. ``lan``: loopback and
    the given ``sources`` on a declared LAN ``interface``. ``public``: any address, any interface.
    """

    port: Port
    protocol: Literal["tcp", "udp"] = "tcp"
    scope: Literal["loopback", "tailnet", "lan", "public"] = "loopback"
    interface: Interface | None = None
    sources: list[Cidr] = []
    callers: list[Caller] = []
    """Who on the tailnet may call it, with scope ``tailnet``; empty: every member."""
    container: bool = False
    """The port is published by Docker: it is opened in DOCKER-USER, not in INPUT."""


class HealthCheck(Model):
    """The check that a service answers, not only that it runs."""

    url: LocalUrl
    contains: Text
    """Text that the first MiB of the answer's body must contain. A redirect is not an answer."""
    timeout_seconds: int = Field(default=30, ge=1, le=600)


class Container(Model):
    """A container of one image, which Docker runs in the foreground of a systemd unit.

    Its file system is read-only except /tmp and its mounts, and it has no capability.
    """

    image: ImageDigest
    command: list[Text] = []
    """The words after the image; empty: the image's own command."""
    environment: dict[VariableName, Text] = {}
    """No secrets: every user who may ask Docker can read these."""
    secrets: dict[FileName, SecretName] = {}
    """Files below ``/run/secrets``, and the secret that each holds."""
    ports: dict[Port, Port] = {}
    """Ports of ``listens``, and the port inside the container; default: the same."""
    mounts: dict[AbsolutePath, AbsolutePath] = {}
    """Paths of ``data``, and where the container finds each."""
    user: ContainerUser = "65532:65532"
    """User and group of its processes and of its new data, in numbers."""
    stop_seconds: int = Field(default=10, ge=1, le=600)
    """It is killed when it has not ended by then."""
    relaxed: dict[Relaxation, Sentence] = {}
    """What it needs beyond the rule, and why: ``root`` runs its processes as root, ``writable``
    makes its file system writable, the others are capabilities."""


class PythonProgram(Model):
    """A program of a locked Python environment, with a user of its own.

    It listens on the Unix socket ``/run/holdfast/holdfast-tenant-NAME/http.sock``, which a proxy
    reaches from the port in ``listens``. Without ``peers`` and ``clouds`` it has no network.
    """

    lock: ControllerPath
    """Requirements with hashes, which `uv pip compile --generate-hashes` prints."""
    packages: Url | None = None
    """A package index in place of PyPI."""
    command: list[Text] = Field(min_length=1)
    """A program of the environment, and its words."""
    environment: dict[VariableName, Text] = {}
    """No secrets: other users can read these."""
    secrets: dict[FileName, SecretName] = {}
    """Files below ``/run/credentials/holdfast-tenant-NAME.service``, and the secret that each
    holds."""
    executable_memory: Sentence | None = None
    """Why it makes code while it runs (a JIT, some C libraries); None: it may not."""


def _unit(declared: dict[str, Any]) -> str:
    is_tenant = declared.get("container") or declared.get("python")
    return f"{TENANT}{declared['name']}.service" if is_tenant else ""


def _user(declared: dict[str, Any]) -> str:
    if declared.get("container"):
        return "root"
    return f"tenant-{declared['name']}" if declared.get("python") else ""


class Service(Model):
    """One long-running program on a host."""

    name: Name
    container: Container | None = None
    """Holdfast runs this container as the service."""
    python: PythonProgram | None = None
    """Holdfast runs this program as the service."""
    unit: UnitName = Field(default_factory=_unit)
    """The unit of a service that is installed by other means; that of a service of Holdfast's
    follows from the name."""
    user: UserName = Field(default_factory=_user)
    """The user of that unit."""
    tier: Tier
    listens: list[Listen] = []
    peers: list[Peer] = []
    """What it may call. A T1 service reaches no others. A service of another tier is restricted to
    its peers if it declares any."""
    clouds: list[Cloud] = []
    """Names on the internet that a T2, T3 or T4 service may call. If it declares any, it reaches no
    others."""
    run_paths: list[AbsolutePath] = []
    """Sockets of other programs below /run that a T1 service opens, or their folders. Otherwise its
    unit sees only its own RuntimeDirectory and the log there."""
    network: Name | None = None
    """The network under ``docker.networks`` that its container is on; a T1 container needs one."""
    gpu_mib: int = Field(default=0, ge=0)
    """GPU memory that it may use, MiB."""
    cards: list[Name] = []
    """The declared cards on which it uses that much, each; empty: any card."""
    memory_max_mib: int | None = Field(default=None, ge=16)
    data: list[DataPath] = []
    health: HealthCheck | None = None
    idle: HealthCheck | None = None
    """The check that it is idle, before a switch to another mode. Without it, the service is idle
    when its cards are."""

    @field_validator("listens")
    @classmethod
    def _published(cls, listens: list[Listen], declared: ValidationInfo) -> list[Listen]:
        # Docker publishes every port of a container.
        if not declared.data.get("container"):
            return listens
        return [each.model_copy(update={"container": True}) for each in listens]

    @property
    def is_tenant(self) -> bool:
        """Whether Holdfast installs and runs what the inventory declares."""
        return self.container is not None or self.python is not None

    @property
    def in_container(self) -> bool:
        """Whether it runs in a container, be it of Holdfast or not."""
        return self.container is not None or any(listen.container for listen in self.listens)
