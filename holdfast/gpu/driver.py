"""The driver of a rack, its source, and whether it runs as planned. Does not access a host."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from facts.gpu_picture import LIBRARY, ON_DISK, Flavour, Picture, newest_kernel
from facts.places import SYSTEM
from holdfast.render import render
from holdfast.sandbox import Directive
from holdfast.service import STAYS, File, Program, Timer, texts
from holdfast.settings import AptRepository, Distribution, GpuCard, Gpus, HostSettings, Service

Source = Literal["distribution", "vendor"]

SUPPORTED_GPUS = Path(__file__).with_name("supported_gpus.json")
"""NVIDIA's own supported-GPU data, trimmed; the file names its origin."""

PREFERENCES = "/etc/apt/preferences.d/holdfast-nvidia"
DEBIAN_SOURCE = "/etc/apt/sources.list.d/holdfast-debian.sources"
NOUVEAU = "/etc/modprobe.d/holdfast-nouveau.conf"
PERSISTENCE_UNIT = "nvidia-persistenced.service"
PERSISTENCE = f"{SYSTEM}/{PERSISTENCE_UNIT}.d/holdfast.conf"
FABRIC_UNIT = "nvidia-fabricmanager.service"
VFIO_UNIT = "holdfast-vfio.service"
VFIO = f"{SYSTEM}/{VFIO_UNIT}"
VFIO_PROGRAM = "/usr/local/lib/holdfast/vfio-bind"
KERNELS_SERVICE = "holdfast-gpu-kernels.service"
KERNELS_TIMER = "holdfast-gpu-kernels.timer"
"""Checks every hour whether the kernel that boots next has a module for the cards."""
KERNELS_UNITS = tuple(f"{SYSTEM}/{unit}" for unit in (KERNELS_TIMER, KERNELS_SERVICE))
KERNELS_PROGRAM = "/usr/local/lib/holdfast/gpu-kernels"
APT_LOCK = "/var/lib/dpkg/lock-frontend"
"""The lock that apt and unattended upgrades hold while they run."""

MODULES = "linux-modules-nvidia-"
"""Prefix of Ubuntu's packages with modules for each kernel."""
KERNELS = ("linux-image-", "linux-headers-", "linux-modules-")
"""Prefix of Ubuntu's kernel packages."""

_VENDOR = "https://developer.download.nvidia.com/compute/cuda/repos"
_CUDATOOLS = {
    "file": "3bf863cc.pub",
    "key_sha256": "7eb71103e32e813ea3e1c06bdb01b143f36feb8d83ecac2b0c11c9273f9e6822",
}
"""Fingerprint EB69 3B30 35CD 5710 E231  E123 A4B4 6996 3BF8 63CC. The checksum was computed on
2026-11-30 from the copy that the repository pardus/pardus-nvidia-installer holds, and is the one
that another project pins of NVIDIA's own file; that server could not be reached from here."""
_KITMAKER = {
    "file": "8793F200.pub",
    "key_fingerprint": "02182E60104FCDC26EAE1B8597A5D4CB8793F200",
}
"""Debian 13's apt refuses the older key's SHA-1. The fingerprint is that of the same repository's
copy, computed on 2026-11-30, and the one that three other projects pin. No second source confirmed
the checksum of the file, so apt checks the fingerprint instead."""
_VENDOR_KEYS: dict[Distribution, dict[str, str]] = {
    "debian12": _CUDATOOLS,
    "ubuntu2404": _CUDATOOLS,
    "debian13": _KITMAKER,
}
_PINNED_FROM = 580
"""The oldest branch for which NVIDIA documents a package nvidia-driver-pinning-<branch>
(NVIDIA Driver Installation Guide, "Version locking")."""
_UNNUMBERED_FROM = 590
"""From this branch on NVIDIA's packages for Ubuntu have no branch in their names (the same guide,
"Recent updates"); those for Debian never had."""
_OPEN_BY_DEFAULT_FROM = 560
"""Before it NVIDIA's own installers chose the proprietary modules if a card supports both
("NVIDIA Transitions Fully Towards Open-Source GPU Kernel Modules", 2024-07-17)."""

_FIRST_BRANCH = {
    "Pascal": 375,
    "Volta": 384,
    "Turing": 410,
    "Ampere": 455,
    "Ada Lovelace": 525,
    "Hopper": 525,
    "Blackwell": 570,
}
"""The first branch with a release for each generation, by NVIDIA's release notes."""
_LAST_BRANCH = {"Pascal": 580, "Volta": 580}
"""The last branch: 590's release notes drop them."""

_UBUNTU_BRANCHES = ("535", "580")
"""Server branches for which Ubuntu ships signed modules in both flavours, without transitional
packages, such as 570 for 580."""


class Unplannable(ValueError):
    """No driver can be planned. ``key`` is below ``gpus`` in the inventory.

    The other fields are those of `holdfast.refusal.Refusal`.
    """

    def __init__(self, key: str, value: object, wrong: str, mend: str) -> None:
        super().__init__(f"{wrong}; {mend}")
        self.key, self.value, self.wrong, self.mend = key, value, wrong, mend


@dataclass(frozen=True)
class Chip:
    """A card by its device id: NVIDIA's name, its generation, and the modules that support it."""

    name: str
    architecture: str
    flavours: frozenset[Flavour]


@dataclass(frozen=True)
class DriverPlan:
    """The packages to install and the cards to bind.

    ``source`` is None if this host itself uses no card: then nothing is installed. ``packages`` are
    installed in groups, one after the other. ``branch``, such as ``580``, and ``flavour`` are the
    expected state on disk afterwards. ``signed``: the modules have the distribution's signature and
    need no machine owner key. ``vfio`` has the addresses of guests' cards.
    """

    distribution: Distribution
    source: Source | None = None
    branch: str = ""
    flavour: Flavour = "open"
    repository: AptRepository | None = None
    packages: tuple[tuple[str, ...], ...] = ()
    signed: bool = False
    fabric_manager: bool = False
    vfio: tuple[str, ...] = ()

    @property
    def units(self) -> tuple[str, ...]:
        """The units that must run once the driver does."""
        if self.source is None:
            return ()
        fabric = (FABRIC_UNIT,) if self.fabric_manager else ()
        return (PERSISTENCE_UNIT, *fabric, KERNELS_TIMER)

    @property
    def fabric_package(self) -> str:
        """The fabric manager's package, whose version must equal the driver's."""
        unnumbered = self.source == "vendor" and int(self.branch) >= _UNNUMBERED_FROM
        return "nvidia-fabricmanager" if unnumbered else f"nvidia-fabricmanager-{self.branch}"


@dataclass(frozen=True)
class Verdict:
    """Whether a machine runs the planned driver: not at all (``stop``), not yet (``reboot``).

    Both are sentences; ``situation`` names the reason for a reboot, so that a reboot without effect
    is recognised. None and None: it does.
    """

    stop: str | None = None
    reboot: str | None = None
    situation: str = ""


@cache
def chips() -> dict[str, Chip]:
    """Every card in NVIDIA's data, by device id in lower-case hex."""
    found: dict[str, Chip] = {}
    for chip in json.loads(SUPPORTED_GPUS.read_text(encoding="utf-8"))["chips"]:
        flavours: set[Flavour] = {"open"} if "kernelopen" in chip["features"] else {"proprietary"}
        if "gsp_proprietary_supported" in chip["features"]:
            flavours.add("proprietary")
        device = chip["devid"].removeprefix("0x").lower()
        found[device] = Chip(chip["name"], chip["architecture"], frozenset(flavours))
    return found


def plan(
    gpus: Gpus, distribution: Distribution, nvswitches: int = 0, kernel: str = ""
) -> DriverPlan:
    """The driver for the declared cards.

    Args:
        gpus: what the inventory declares.
        distribution: the host's.
        nvswitches: NVSwitch bridges seen in it; unknown before the first connection.
        kernel: release of the running kernel, which names its headers; default: the
            distribution's usual one.

    Raises:
        Unplannable: no driver fits; says why and what to change.
    """
    vfio = tuple(_passed_through(gpus))
    compute = [(index, card) for index, card in enumerate(gpus.cards) if card.role == "compute"]
    if not compute:
        return DriverPlan(distribution, vfio=vfio)
    _check_branch(gpus, compute)
    flavour = _flavour(gpus, compute)
    source = _source(gpus, distribution, flavour, nvswitches)
    driver = gpus.driver
    vendor = _vendor_repository(distribution, driver.repository) if source == "vendor" else None
    planned = DriverPlan(
        distribution=distribution,
        source=source,
        branch=driver.branch,
        flavour=flavour,
        repository=vendor,
        signed=source == "distribution" and distribution.startswith("ubuntu"),
        fabric_manager=nvswitches > 0,
        vfio=vfio,
    )
    fabric = ((planned.fabric_package,),) if planned.fabric_manager else ()
    groups = (*_packages(source, distribution, driver.branch, flavour, kernel), *fabric)
    return replace(planned, packages=groups)


def _passed_through(gpus: Gpus) -> list[str]:
    addresses = []
    for index, card in enumerate(gpus.cards):
        if card.role == "compute":
            continue
        if card.pci_address is None:
            raise Unplannable(
                f"cards[{index}].pci_address",
                None,
                f"{card.name} is bound to vfio-pci by its address, because other cards may"
                f" have the same device id {card.device}",
                "write its address, which `holdfast gpus` shows",
            )
        addresses.append(card.pci_address)
    return addresses


def _called(card: GpuCard) -> str:
    chip = chips().get(card.device)
    return f"{card.name} ({chip.name if chip else f'10de:{card.device}'})"


def _check_branch(gpus: Gpus, compute: list[tuple[int, GpuCard]]) -> None:
    branch = int(gpus.driver.branch)
    for index, card in compute:
        chip = chips().get(card.device)
        if chip is None:
            if gpus.driver.flavour == "auto":
                raise Unplannable(
                    f"cards[{index}].device",
                    card.device,
                    "NVIDIA's supported-GPU data does not list this card, so the kernel"
                    f" module for {card.name} is unknown",
                    "compare it with `lspci -nn`; if it is right, write driver.flavour as NVIDIA"
                    " documents it for this card",
                )
            continue
        first, last = _FIRST_BRANCH[chip.architecture], _LAST_BRANCH.get(chip.architecture)
        if branch < first:
            wrong, mend = f"branches before {first} do not", f"write '{first}' or later"
        elif last and branch > last:
            wrong, mend = f"{last} is the last branch that does", f"write '{last}'"
        else:
            continue
        raise Unplannable(
            "driver.branch",
            gpus.driver.branch,
            f"this branch does not drive {_called(card)}, a {chip.architecture} card; {wrong}",
            mend,
        )


def _flavour(gpus: Gpus, compute: list[tuple[int, GpuCard]]) -> Flavour:
    wanted = gpus.driver.flavour
    able = {card.name: _flavours_of(card, wanted) for _, card in compute}
    common = frozenset[Flavour]({"open", "proprietary"}).intersection(*able.values())
    cards = [card for _, card in compute]
    if not common:
        opens = [_called(card) for card in cards if able[card.name] == {"open"}]
        closed = [_called(card) for card in cards if able[card.name] == {"proprietary"}]
        raise Unplannable(
            "cards",
            [card.name for card in cards],
            f"{', '.join(opens)} need the open kernel modules, {', '.join(closed)} the"
            " proprietary ones, and a kernel can load one of the two only",
            "give one kind the role 'passthrough', or move it to another machine",
        )
    if wanted != "auto" and wanted not in common:
        able_card = next(card for card in cards if wanted not in able[card.name])
        (other,) = able[able_card.name]
        raise Unplannable(
            "driver.flavour",
            wanted,
            f"{_called(able_card)} needs the {other} kernel modules",
            f"write '{other}' or 'auto'",
        )
    if wanted != "auto":
        return wanted
    by_default: Flavour = (
        "open" if int(gpus.driver.branch) >= _OPEN_BY_DEFAULT_FROM else "proprietary"
    )
    return by_default if by_default in common else next(iter(common))


def _flavours_of(card: GpuCard, wanted: str) -> frozenset[Flavour]:
    chip = chips().get(card.device)
    # The inventory must declare the flavour for an unknown card.
    return chip.flavours if chip else frozenset({"open" if wanted == "open" else "proprietary"})


def _source(gpus: Gpus, distribution: Distribution, flavour: Flavour, nvswitches: int) -> Source:
    driver = gpus.driver
    problems: dict[Source, tuple[str, str, str] | None] = {
        "distribution": _distribution_problem(gpus, distribution, flavour, nvswitches),
        "vendor": _vendor_problem(distribution, driver.branch, driver.repository),
    }
    candidates: tuple[Source, ...] = (
        ("distribution", "vendor") if driver.source == "auto" else (driver.source,)
    )
    for candidate in candidates:
        if problems[candidate] is None:
            return candidate
    key, wrong, mend = problems[candidates[-1]] or ("", "", "")
    value = {"source": driver.source, "branch": driver.branch, "repository": None}[key]
    if driver.source == "auto" and (other := problems["distribution"]):
        wrong = f"{other[1]}, and {wrong}"
    raise Unplannable(f"driver.{key}", value, wrong, mend)


_DEBIAN_SHIPS = {"debian12": "535", "debian13": "550"}


def _distribution_problem(
    gpus: Gpus, distribution: Distribution, flavour: Flavour, nvswitches: int
) -> tuple[str, str, str] | None:
    """Key below ``driver``, error and correction; None if its packages support the cards."""
    branch, vendor = gpus.driver.branch, "write source 'vendor' or 'auto'"
    if shipped := _DEBIAN_SHIPS.get(distribution):
        wrong = f"{distribution} ships driver {shipped}"
        if left := _undriven(gpus, int(shipped)):
            return "source", f"{wrong}, which does not drive {left}", vendor
        if distribution == "debian13":
            # Measured 2026-11: pci_resize_resource has other arguments there.
            return "source", f"{wrong}, which does not build on its own kernel (6.12.117)", vendor
        if branch != shipped:
            return "source", f"{wrong} and not {branch}", f"{vendor}, or write branch '{shipped}'"
        return _debian12_problem(flavour, nvswitches, vendor)
    if branch not in _UBUNTU_BRANCHES:
        known = " and ".join(_UBUNTU_BRANCHES)
        return (
            "branch",
            f"{distribution} ships signed modules for the server branches {known} and not {branch}",
            f"write one of those, or {vendor.removeprefix('write ')}",
        )
    return None


def _undriven(gpus: Gpus, branch: int) -> str | None:
    """The first own card of this host that ``branch`` is too old for."""
    for card in gpus.cards:
        chip = chips().get(card.device)
        if card.role == "compute" and chip and branch < _FIRST_BRANCH[chip.architecture]:
            return _called(card)
    return None


def _debian12_problem(
    flavour: Flavour, nvswitches: int, vendor: str
) -> tuple[str, str, str] | None:
    if flavour == "open":
        # Measured 2026-11 with the security updates enabled.
        wrong = "debian12's open kernel modules cannot be installed beside its security updates"
        return "source", wrong, vendor
    if nvswitches:
        return "source", "debian12 has no fabric manager, which NVSwitches need", vendor
    return None


def _vendor_problem(
    distribution: Distribution, branch: str, mirror: AptRepository | None
) -> tuple[str, str, str] | None:
    if int(branch) < _PINNED_FROM:
        return (
            "branch",
            f"NVIDIA's repository has no package that pins a host to branch {branch}",
            f"write '{_PINNED_FROM}' or later",
        )
    if distribution not in _VENDOR_KEYS and mirror is None:
        return (
            "repository",
            f"the key of NVIDIA's repository for {distribution} is not known here",
            "declare driver.repository with its key_url",
        )
    return None


def _vendor_repository(distribution: Distribution, mirror: AptRepository | None) -> AptRepository:
    """NVIDIA's CUDA repository, which has the drivers for ``distribution``, or a mirror of it."""
    if mirror is not None:
        return mirror
    url = f"{_VENDOR}/{distribution}/x86_64"
    key = _VENDOR_KEYS[distribution]
    return AptRepository(
        url=url,
        key_url=f"{url}/{key['file']}",
        key_sha256=key.get("key_sha256"),
        key_fingerprint=key.get("key_fingerprint"),
        suite="/",
        components=[],
    )


def _packages(
    source: Source, distribution: Distribution, branch: str, flavour: Flavour, kernel: str
) -> tuple[tuple[str, ...], ...]:
    is_open = flavour == "open"
    kind = _kernel_kind(distribution, kernel)
    if source == "distribution" and distribution.startswith("ubuntu"):
        server = _server(branch, flavour)
        # Installed first: together with the rest, apt would choose to build modules with DKMS.
        return (
            (f"{MODULES}{server}-{kind}",),
            (
                f"nvidia-headless-no-dkms-{server}",
                f"nvidia-compute-utils-{branch}-server",
                f"nvidia-utils-{branch}-server",
            ),
        )
    # Without headers DKMS builds nothing and only logs it.
    headers = "proxmox-default-headers" if kind == "pve" else f"linux-headers-{kind}"
    if source == "distribution":
        kernel_module = "nvidia-open-kernel-dkms" if is_open else "nvidia-kernel-dkms"
        library = ("libcuda1", "nvidia-smi", "libnvidia-cfg1", "nvidia-persistenced")
        return ((headers, kernel_module, *library),)
    pinning = (f"nvidia-driver-pinning-{branch}",)
    if distribution.startswith("debian"):
        kernel_module = "nvidia-kernel-open-dkms" if is_open else "nvidia-kernel-dkms"
        return pinning, (headers, kernel_module, "nvidia-driver-cuda", "nvidia-persistenced")
    number = "" if int(branch) >= _UNNUMBERED_FROM else f"-{branch}"
    return pinning, (
        headers,
        f"nvidia-dkms{number}{'-open' if is_open else ''}",
        f"libnvidia-compute{number}",
        f"libnvidia-cfg1{number}",
        f"nvidia-compute-utils{number}",
        f"nvidia-utils{number}",
    )


def _kernel_kind(distribution: Distribution, kernel: str) -> str:
    """The suffix of the metapackages of the running kernel's line.

    ``6.12.74+deb13+1-cloud-amd64`` is of the line ``cloud-amd64``, ``6.14.0-35-generic`` on Ubuntu
    24.04, whose own kernel is 6.8, of ``generic-hwe-24.04``.
    """
    if kernel.endswith("-pve"):
        return "pve"
    if distribution.startswith("debian"):
        for kind in ("cloud-amd64", "rt-amd64"):
            if kernel.endswith(f"-{kind}"):
                return kind
        return "amd64"
    kind = kernel.rpartition("-")[2] or "generic"
    is_newer = distribution == "ubuntu2404" and kernel and not kernel.startswith("6.8.")
    return f"{kind}-hwe-24.04" if is_newer else kind


def files(plan: DriverPlan) -> dict[str, str]:
    """Path to content of the files that pin the source, block nouveau, and bind cards of guests."""
    wanted = {NOUVEAU: render("gpu_driver/nouveau.conf.j2"), **texts(programs(plan))}
    if plan.source is None:
        return wanted
    wanted[PREFERENCES] = render(
        "gpu_driver/preferences.j2",
        source=plan.source,
        archive="Debian" if plan.distribution.startswith("debian") else "Ubuntu",
    )
    wanted[PERSISTENCE] = render("gpu_driver/nvidia-persistenced.conf.j2")
    if plan.distribution.startswith("debian"):
        # Only the distribution's own driver is in non-free; NVIDIA's needs helpers from contrib.
        non_free = ["non-free", "non-free-firmware"] if plan.source == "distribution" else []
        suite = {"debian12": "bookworm", "debian13": "trixie"}[plan.distribution]
        wanted[DEBIAN_SOURCE] = render(
            "gpu_driver/debian.sources.j2", suite=suite, components=["contrib", *non_free]
        )
    return wanted


def kernels_program(plan: DriverPlan, root: str = "") -> str:
    """The script that checks the kernel that boots next; ``root`` is a prefix, for tests."""
    return render(
        "gpu_driver/kernels.j2",
        newest=newest_kernel(root),
        apt_lock=f"{root}{APT_LOCK}",
        on_disk=ON_DISK,
        library=LIBRARY,
        no_module=_spoken(_no_module(plan, "$newest")),
        mixed=_spoken(_mixed(plan, "$library", "$newest", "$version")),
    )


def _spoken(sentence: str) -> str:
    """The sentence as a word of the script, with the script's variables."""
    parts = re.split(r"(\$(?:newest|version|library)\b)", sentence)
    return "".join(f'"{part}"' if part.startswith("$") else shlex.quote(part) for part in parts)


def kernels(plan: DriverPlan) -> Program:
    """What checks every hour whether the kernel that boots next has a module for the cards."""
    return Program(
        service=Service(name="gpu-kernels", unit=KERNELS_SERVICE, user="root", tier="T1"),
        description="Holdfast: check that the kernel that boots next will drive the cards",
        kind="oneshot",
        command=(KERNELS_PROGRAM,),
        files=(File(KERNELS_PROGRAM, kernels_program(plan), mode="755"),),
        start_seconds=600,
        isolated=True,
        relaxed=(
            Directive("ProtectKernelModules", "no", "it looks at each kernel's modules"),
            Directive("ProcSubset", "all", "it reads in /proc/locks whether apt is at work"),
        ),
        timer=Timer(
            "every hour",
            (
                Directive("OnActiveSec", "10min"),
                Directive("OnUnitInactiveSec", "1h"),
                Directive("AccuracySec", "1min"),
            ),
        ),
    )


def vfio(plan: DriverPlan) -> Program:
    """What gives the cards of guests to vfio-pci, before another driver can claim them."""
    module = "modprobe@vfio_pci.service"
    early = "it runs before the root file system can be written and any other is there"
    return Program(
        service=Service(name="vfio", unit=VFIO_UNIT, user="root", tier="T1"),
        description="Holdfast: give the cards of guests to vfio-pci",
        kind="oneshot",
        command=(VFIO_PROGRAM,),
        files=(
            File(VFIO_PROGRAM, render("gpu_driver/vfio-bind.j2", addresses=plan.vfio), mode="755"),
        ),
        # The boot waits for it.
        start_seconds=300,
        at_boot=True,
        wanted_by=("sysinit.target",),
        order=(
            Directive("DefaultDependencies", "no"),
            Directive("Wants", module, "systemd loads the module: the unit has no right to do it."),
            Directive("After", module),
            Directive("Before", "systemd-udev-trigger.service systemd-modules-load.service"),
            Directive("Before", "sysinit.target"),
        ),
        tuned=(STAYS,),
        isolated=True,
        relaxed=(
            *(
                Directive("ReadWritePaths", path, "where a card gets its driver")
                for path in ("/sys/bus/pci", "/sys/devices")
            ),
            Directive("PrivateUsers", "no", "those files are the machine's own root's"),
            Directive("PrivateTmp", "no", early),
            Directive("PrivateDevices", "no", early),
        ),
    )


def programs(plan: DriverPlan) -> list[Program]:
    """The programs that ``plan`` needs on the host."""
    return [
        *([vfio(plan)] if plan.vfio else []),
        *([kernels(plan)] if plan.source is not None else []),
    ]


ALL_FILES = (
    *(NOUVEAU, VFIO, VFIO_PROGRAM, PREFERENCES, PERSISTENCE, DEBIAN_SOURCE),
    *(*KERNELS_UNITS, KERNELS_PROGRAM),
)
PROGRAMS = (VFIO_PROGRAM, KERNELS_PROGRAM)
"""Every path that `files` may name, so that unwanted ones can be removed."""


def needs_own_key(plan: DriverPlan, picture: Picture) -> bool:
    """Whether the plan's modules load only after the owner's key was enrolled."""
    builds = plan.source is not None and not plan.signed
    # A loaded module was signed with such a key.
    return builds and bool(picture.driver.secure_boot) and picture.driver.loaded is None


def check_machine(plan: DriverPlan, gpus: Gpus, picture: Picture, key_enrolled: bool) -> None:
    """Check that the present machine allows the plan.

    ``key_enrolled``: DKMS has a signing key that is enrolled in the firmware.

    Raises:
        Unplannable: it does not; with the reason and the correction.
    """
    if needs_own_key(plan, picture) and not key_enrolled:
        ubuntu = plan.distribution.startswith("ubuntu")
        signed = ", or write source 'distribution', whose modules are signed" if ubuntu else ""
        raise Unplannable(
            "driver.source",
            gpus.driver.source,
            "Secure Boot is on, and modules that this host builds would be signed with a key its"
            " firmware does not know",
            "install dkms and mokutil, run `dkms generate_mok` and `mokutil --import"
            " /var/lib/dkms/mok.pub`, reboot, enrol the key at the console, and deploy again; or"
            f" turn Secure Boot off{signed}",
        )
    groups = {card.address: card.iommu_group for card in picture.pci}
    for index, card in enumerate(gpus.cards):
        address = card.pci_address
        if card.role == "passthrough" and address in groups and groups[address] is None:
            raise Unplannable(
                f"cards[{index}].role",
                card.role,
                f"{_called(card)} at {address} is in no IOMMU group, which vfio-pci needs",
                "turn on VT-d or AMD-Vi in the firmware, and on Intel boot with intel_iommu=on",
            )


def held_back(settings: HostSettings) -> list[str]:
    """Prefixes of package names that unattended upgrades must skip.

    If the driver's modules are packages for each kernel, kernels are held with them: a new kernel
    alone would boot without a driver. An inventory that does not hold modules does not hold
    kernels.
    """
    own = settings.base.held_back
    if settings.gpus is None or not plan(settings.gpus, settings.distribution).signed:
        return own
    # Either may be the longer one.
    if not any(MODULES.startswith(prefix) or prefix.startswith(MODULES) for prefix in own):
        return own
    return list(dict.fromkeys([*own, *KERNELS]))


def _no_module(plan: DriverPlan, kernel: str) -> str:
    lost = f"the newest kernel {kernel} has no nvidia module, and a reboot would lose every card"
    if plan.signed:
        return (
            f"{lost}; install {MODULES}{_server(plan.branch, plan.flavour)}-{kernel} with apt-get,"
            f" or, where there is none, remove that kernel: `apt-get remove linux-image-{kernel}`"
        )
    return (
        f"{lost}; see `dkms status` and /var/lib/dkms/nvidia*/*/build/make.log, and fix the"
        " build or remove that kernel"
    )


def _mixed(plan: DriverPlan, library: str, kernel: str, module: str) -> str:
    packages = " ".join(name for group in plan.packages for name in group)
    mend = f"apt-get install {packages}" if plan.signed else "apt-get --fix-broken install"
    return (
        f"libnvidia-ml is {library} and the module for kernel {kernel} is {module}; an upgrade"
        f" stopped half way: run `{mend}`"
    )


def _server(branch: str, flavour: Flavour) -> str:
    return f"{branch}-server{'-open' if flavour == 'open' else ''}"


def verdict(plan: DriverPlan, picture: Picture) -> Verdict:
    """Whether the machine of ``picture`` runs the driver of ``plan``, and what to do if not.

    Never requests a reboot into a kernel without the module.
    """
    state = picture.driver
    # Its name is unknown before the first query.
    newest = state.newest_kernel or "of this host"
    if plan.source:
        if state.on_disk is None:
            return Verdict(f"{_no_module(plan, newest)}, and deploy again")
        if state.on_disk.partition(".")[0] != plan.branch:
            return Verdict(
                f"driver.branch is {plan.branch}, and the module for kernel {newest} is"
                f" {state.on_disk}; remove the packages of the other driver"
                " (`dpkg --list '*nvidia*'` shows them) and deploy again"
            )
        if state.on_disk_flavour not in (None, plan.flavour):
            return Verdict(
                f"the {plan.flavour} kernel module was planned, and kernel {newest} has the"
                f" {state.on_disk_flavour} one; remove its package and deploy again"
            )
        if state.library and state.library != state.on_disk:
            mixed = _mixed(plan, state.library, newest, state.on_disk)
            return Verdict(f"{mixed}, and deploy again")
    return _needs_reboot(plan, picture)


def _needs_reboot(plan: DriverPlan, picture: Picture) -> Verdict:
    state = picture.driver
    if plan.source and state.nouveau_loaded:
        return Verdict(reboot="nouveau controls the cards", situation="nouveau is loaded")
    if plan.source and state.loaded != state.on_disk:
        loaded = state.loaded or "none"
        return Verdict(
            reboot=f"the loaded driver is {loaded} and the installed one {state.on_disk}",
            situation=f"loaded {loaded}, installed {state.on_disk}",
        )
    for card in picture.pci:
        if card.address in plan.vfio and card.driver != "vfio-pci":
            holder = card.driver or "no driver"
            return Verdict(
                reboot=f"the card at {card.address} belongs to a guest, but {holder} controls it",
                situation=f"{card.address} controlled by {holder}",
            )
    return Verdict()


def fabric_problem(version: str | None, driver: str) -> str | None:
    """Why a fabric manager of package ``version`` does not fit ``driver``, or None."""
    # 1:580.105.08-1 and 580.105.08-0ubuntu0.24.04.1 are both of driver 580.105.08.
    own = (version or "none").rpartition(":")[2].partition("-")[0]
    if own == driver:
        return None
    return (
        f"the fabric manager is {own} and the driver {driver}, and NVSwitches work only where both"
        " are the same; bring both to one version with apt and deploy again"
    )
