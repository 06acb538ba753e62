"""A machine with nothing on it, as facts: what a plan is made for, without a machine.

It has the declared cards, disks and interfaces and answers every other fact by that fact's default.
Three commands change it, for what comes after them is decided by what they did: the firewall is
enabled, a reboot loads the driver that was installed, the host joins its tailnet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pyinfra.api import FactBase

from facts.base import Account, BaseState, Ground
from facts.firewall import GUARD, FamilyState, Firewall, FirewallState
from facts.gpu import GpuPicture
from facts.gpu_containers import ContainersState, GpuContainers
from facts.gpu_driver import DriverHost, GpuDriverHost
from facts.gpu_picture import DriverState, PciCard, Picture, SmiCard
from facts.ssh import Sshd, SshState
from facts.tailnet import Node, TailnetNode
from facts.units import UnitState, UnitStates
from holdfast import firewall
from holdfast.registry import declared_services
from holdfast.settings import Gpus, HostSettings

SSHD = SshState(
    effective=frozenset(),
    is_outdated=True,
    is_unproved=False,
    came_by=22,
    has_host_key=False,
    has_strong_moduli=False,
    passwordless=frozenset(),
    keyed={},
    key_files={},
)
"""An sshd of which nothing is declared yet."""
_KERNEL = {
    "debian12": "6.1.0-41-amd64",
    "debian13": "6.12.57+deb13-amd64",
    "ubuntu2404": "6.8.0-88-generic",
    "ubuntu2604": "7.0.0-5-generic",
}
_DRIVER = {"535": "535.274.02", "550": "550.163.01", "580": "580.105.08"}
_NVSWITCHES = {"2335": 4, "2330": 4}
"""NVIDIA's boards of eight H200 and H100 have four; by the device id of the cards."""


@dataclass
class BareMachine:
    """Answers facts for the host of ``settings``; ``distribution`` is what it really runs."""

    settings: HostSettings
    distribution: str
    _walled: bool = False
    _rebooted: bool = False
    _joined: bool = False
    _answers: dict[type, Callable[..., Any]] = field(init=False)

    def __post_init__(self) -> None:
        self._answers = {
            Ground: self._ground,
            Sshd: self._sshd,
            Firewall: self._firewall,
            UnitStates: self._units,
            GpuPicture: self._picture,
            GpuDriverHost: self._driver,
            GpuContainers: self._containers,
            TailnetNode: self._node,
        }

    def answer(self, fact: type[FactBase[Any]], **arguments: Any) -> Any:
        """What ``fact`` says here."""
        known = self._answers.get(fact)
        return known(**arguments) if known else fact().default()

    def wall(self) -> None:
        """Have the declared firewall in force, with SSH open on the LAN."""
        self._walled = True

    def reboot(self) -> None:
        """Start again, with the driver that was installed."""
        self._rebooted = True

    def join(self) -> None:
        """Become a member of the declared tailnet."""
        self._joined = True

    def _ground(self, disks: list[str], modes: list[str], **_: object) -> BaseState:
        return BaseState(
            distribution=self.distribution,
            hostname="localhost",
            live_hostname="localhost",
            interfaces=frozenset({"lo", *self.settings.interfaces}),
            root_read_only=False,
            begun=False,
            free_mib=dict.fromkeys(disks, 10**6),
            boot_free_mib=None,
            sysctls={"kernel/sysrq": "438"},
            # Who may log in is there: somebody has installed the distribution.
            accounts={
                user: Account(1000 + number, "/bin/bash", f"/home/{user}")
                for number, user in enumerate(self.settings.ssh.authorised_keys)
            },
            hosts_file="127.0.0.1 localhost",
            timezone="Etc/UTC",
            legacy_timezone=None,
            locale="",
            authorities=frozenset(),
            authorities_outdated=bool(self.settings.base.trusted_cas),
            modes=dict.fromkeys(modes, "644"),
            default_core_limit="infinity",
            audit_rules=frozenset(),
            audit_enabled=False,
        )

    def _sshd(self, **_: object) -> SshState:
        return SSHD

    def _firewall(self) -> FirewallState:
        if not self._walled:
            return Firewall.default()
        settings = self.settings
        lan_ssh = firewall.lan_ssh_wanted(settings, Firewall.default())
        declared = firewall.holes(settings, declared_services(settings), lan_ssh=lan_ssh)
        return FirewallState(
            options=firewall.OPTIONS | {"ENABLED": "yes"},
            v4=self._family(4, "", declared),
            v6=self._family(6, "6", declared),
            ipv6_in_kernel=True,
            external=frozenset(),
            armed=False,
            proved=True,
        )

    def _family(
        self, family: firewall.Family, infix: str, declared: list[firewall.Hole]
    ) -> FamilyState:
        external = set(self.settings.interfaces)
        chains = (firewall.DOCKER_USER, GUARD)
        return FamilyState(
            rules=tuple(
                hole.rule for hole in declared if hole.family == family and not hole.container
            ),
            block=tuple(firewall.block(declared, external, family)),
            live=(
                *("-P INPUT DROP", "-P FORWARD DROP", "-P OUTPUT ACCEPT"),
                f"-A INPUT -j ufw{infix}-before-input",
                f"-A ufw{infix}-before-input -j ufw{infix}-user-input",
                *(f"-A FORWARD -j {chain}" for chain in chains),
                f"-A FORWARD -j ufw{infix}-before-forward",
                "-A FORWARD -j ACCEPT",
                *(
                    rule
                    for chain in chains
                    for rule in firewall.container_rules(chain, declared, external, family)
                ),
            ),
        )

    def _units(self, watched: dict[str, list[str]]) -> dict[str, UnitState]:
        absent = UnitState("not-found", "inactive", "", False, None, None, None)
        return dict.fromkeys(watched, absent)

    def _node(self) -> Node:
        tailnet = self.settings.tailnet
        if tailnet is None or not self._joined:
            return Node()
        name = tailnet.hostname or self.settings.hostname
        return Node(
            backend="Running",
            has_key=True,
            control_server=tailnet.control_server or "https://controlplane.tailscale.com",
            hostname=name,
            name=name,
            tags=tuple(tailnet.tags),
            requested_tags=tuple(tailnet.tags),
            accept_dns=tailnet.accept_dns,
            online=True,
        )

    def _driver(self, packages: list[str], units: list[str], **_: object) -> DriverHost:
        versions = dict.fromkeys(packages, f"{self._version()}-1") if self._rebooted else {}
        return DriverHost(versions=versions, idle=tuple(units))

    def _containers(self) -> ContainersState:
        cards = self._picture().smi
        if cards is None:
            return ContainersState()
        return ContainersState(
            uuids=frozenset(card.uuid for card in cards), driver=self._version(), unread=True
        )

    def _version(self) -> str:
        return _DRIVER[self.settings.gpus.driver.branch] if self.settings.gpus else ""

    def _picture(self) -> Picture:
        gpus, kernel = self.settings.gpus, _KERNEL[self.settings.distribution]
        if gpus is None:
            return Picture()
        version = self._version()
        return Picture(
            pci=tuple(self._pci_cards(gpus)),
            smi=tuple(self._smi_cards(gpus)) if self._rebooted else None,
            smi_exit=0 if self._rebooted else None,
            driver=DriverState(
                loaded=version if self._rebooted else None,
                on_disk=version,
                library=version,
                running_kernel=kernel,
                newest_kernel=kernel,
            ),
            nvswitches=_NVSWITCHES.get(gpus.cards[0].device, 0),
        )

    def _addresses(self, gpus: Gpus) -> list[str]:
        return [
            card.pci_address or f"0000:{number:02x}:00.0"
            for number, card in enumerate(gpus.cards, start=1)
        ]

    def _pci_cards(self, gpus: Gpus) -> list[PciCard]:
        return [
            PciCard(
                address=address,
                device=card.device,
                subsystem="10de:0000",
                link_width=card.link_width,
                link_width_max=16,
                link_speed=16.0,
                link_speed_max=16.0,
                iommu_group=number,
                numa_node=-1,
                driver=self._holder(card.role),
                boot_vga=False,
            )
            for number, (address, card) in enumerate(
                zip(self._addresses(gpus), gpus.cards, strict=True)
            )
        ]

    def _holder(self, role: str) -> str | None:
        if not self._rebooted:
            return None
        return "nvidia" if role == "compute" else "vfio-pci"

    def _smi_cards(self, gpus: Gpus) -> list[SmiCard]:
        compute = [
            (address, card)
            for address, card in zip(self._addresses(gpus), gpus.cards, strict=True)
            if card.role == "compute"
        ]
        return [
            SmiCard(
                index=index,
                name=card.name,
                uuid=card.uuid or f"GPU-00000000-0000-0000-0000-{index:012}",
                address=address,
                device=card.device,
                vbios=None,
                compute_capability=None,
                driver_version=self._version(),
                persistence=True,
                link_generation=4,
                link_generation_max=4,
                link_width=card.link_width,
                link_width_max=16,
                power_limit_w=card.power_cap_w,
                power_default_w=card.power_cap_w,
                power_min_w=100.0,
                power_max_w=1000.0,
                memory_total_mib=card.vram_mib,
                memory_used_mib=1,
                display_active=False,
                ecc=None,
                mig=None,
                recovery_action=None,
                throttle=0,
                remapped_rows_pending=None,
                remapped_rows_failed=None,
            )
            for index, (address, card) in enumerate(compute)
        ]
