"""The keys of a host in an inventory, with type, unit and default.

An inventory is data; these models are its grammar, a file for each capability. `holdfast.site.load`
parses every host with them before the first connection and refuses what cannot work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, create_model

from holdfast.settings.backup import Backup, DataPath, Repository
from holdfast.settings.base import Base, DiskCheck, Distribution
from holdfast.settings.clouds import Clouds, Provider
from holdfast.settings.docker import Docker, DockerNetwork
from holdfast.settings.egress import LOOPBACK_OF, Cloud, Peer, Tier
from holdfast.settings.engines import SERVERS, Engine, EngineServer
from holdfast.settings.firewall import Firewall, NetworkInterface, Opening
from holdfast.settings.floor import Floor
from holdfast.settings.gpu import GpuCard, Gpus, PowerSupply
from holdfast.settings.gpu_driver import GpuDriver
from holdfast.settings.gpu_modes import CardSet, Mode
from holdfast.settings.router import CallerKey, Queue, Router
from holdfast.settings.services import Container, HealthCheck, Listen, PythonProgram, Service
from holdfast.settings.sources import AptRepository, Artefact
from holdfast.settings.ssh import Ssh
from holdfast.settings.storage import Checkpoint, ModelFile, NfsMount, Storage
from holdfast.settings.tailnet import Tailnet
from holdfast.types import ControllerPath, HostLabel, Interface, LoginHost, Model, Port, UserName

__all__ = [
    "LOOPBACK_OF",
    "SERVERS",
    "AptRepository",
    "Artefact",
    "Backup",
    "Base",
    "CallerKey",
    "CardSet",
    "Checkpoint",
    "Cloud",
    "Clouds",
    "Container",
    "DataPath",
    "DiskCheck",
    "Distribution",
    "Docker",
    "DockerNetwork",
    "Engine",
    "EngineServer",
    "Firewall",
    "Floor",
    "GpuCard",
    "GpuDriver",
    "Gpus",
    "HealthCheck",
    "HostSettings",
    "Listen",
    "Mode",
    "ModelFile",
    "NetworkInterface",
    "NfsMount",
    "Opening",
    "Peer",
    "PowerSupply",
    "Provider",
    "PythonProgram",
    "Queue",
    "Repository",
    "Router",
    "Service",
    "Ssh",
    "Storage",
    "Tailnet",
    "Tier",
]


class _Machine(Model):
    """The keys before those of engine servers."""

    hostname: HostLabel
    """The host's own name."""
    distribution: Distribution
    interfaces: dict[Interface, NetworkInterface] = Field(min_length=1)
    """Its physical network interfaces, by their names in the kernel."""
    base: Base = Base()
    ssh: Ssh = Ssh()
    firewall: Firewall = Firewall()
    docker: Docker | None = Docker()
    """None: no container engine."""
    tailnet: Tailnet | None = Tailnet()
    """None: no tailnet; then SSH must stay open on the LAN."""
    gpus: Gpus | None = None
    """None: Holdfast manages no NVIDIA card."""
    storage: Storage = Storage()
    floor: Floor | None = None
    """None: no floor."""


if TYPE_CHECKING:
    _Served = _Machine
else:
    # One key for each engine server: mypy reads them as `HostSettings.servers`.
    _Served = create_model(
        "_Served",
        __base__=_Machine,
        **{
            name: (EngineServer | None, Field(None, description=f"None: no engine of {name}."))
            for name in SERVERS
        },
    )


class HostSettings(_Served):
    """All settings of one host."""

    clouds: Clouds | None = None
    """None: no router uses a cloud."""
    routers: list[Router] = []
    """Addresses for requests to models. The profile limits what each may reach."""
    backup: Backup | None = None
    """None: nothing is backed up."""
    services: list[Service] = []
    """Services besides Holdfast's own."""

    lan_address: LoginHost | None = None
    """The host's address before it has joined the tailnet."""
    ssh_hostname: LoginHost | None = None
    """Its name on the tailnet; default: its name in the inventory."""
    ssh_user: UserName | None = None
    """The user that logs in; default: your own SSH configuration decides."""
    ssh_port: Port | None = None
    """The port of the login; default: your own SSH configuration decides."""
    ssh_key: ControllerPath | None = None
    """The private key of the login; default: keys of the agent and of ~/.ssh."""
    ssh_config_file: ControllerPath | None = None
    """An SSH configuration in place of ~/.ssh/config."""
    ssh_known_hosts_file: ControllerPath | None = None
    """Known host keys in place of ~/.ssh/known_hosts."""
    ssh_strict_host_key_checking: Literal["yes", "accept-new"] = "accept-new"
    """``accept-new`` trusts an unknown host; both refuse a changed key."""
    sudo: bool = Field(default=False, alias="_sudo")
    """Whether ``ssh_user`` becomes root by sudo, without a password."""

    @property
    def servers(self) -> dict[str, EngineServer]:
        """The declared engine servers, by their keys."""
        found = {name: getattr(self, name) for name in SERVERS}
        return {name: declared for name, declared in found.items() if declared is not None}
