"""The driver: chosen by device id, from one origin, and running; a reboot helps once or not."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from pyinfra.api import Config, FunctionCommand, Inventory, State, StringCommand
from pyinfra.api.connect import connect_all
from pyinfra.api.deploy import add_deploy
from pyinfra.api.exceptions import ConnectError
from pyinfra.api.operations import run_ops
from pyinfra.api.state import StateStage
from pyinfra.context import ctx_host

from deploys import gpu_driver as deploy
from facts.framed import answer
from facts.gpu import GpuPicture
from facts.gpu_driver import DriverHost, GpuDriverHost
from facts.gpu_picture import DriverState, PciCard, Picture
from facts.packages import InstalledPackages
from facts.units import UnitState, UnitStates
from holdfast.base import blacklist_patterns
from holdfast.checks.gpu_driver import driver as check
from holdfast.gpu import driver
from holdfast.gpu.driver import DriverPlan, Unplannable, Verdict, plan, verdict
from holdfast.refusal import Refused
from holdfast.render import render
from holdfast.settings import Distribution, Gpus, HostSettings
from operations import apt_repository, gpu_driver
from tests.unit.gpu_racks import Rack, lay_out
from tests.unit.local_host import LocalHost
from tests.unit.recorded_facts import framed_lines, read

RTX3090, RTX3060, RTX5090, H200, GTX1080, V100 = "2204", "2504", "2b85", "2335", "1b80", "1db6"
ADDRESS = "0000:01:00.0"


def card(device: str, name: str = "one", **more: Any) -> dict[str, Any]:
    return {"name": name, "device": device, "vram_mib": 24576} | more


def rack(*devices: str, **choice: str) -> Gpus:
    cards = [card(device, f"card-{index}") for index, device in enumerate(devices)]
    return Gpus.model_validate({"cards": cards, "driver": choice})


def guest(device: str = RTX5090, **more: Any) -> dict[str, Any]:
    return card(device, "guest", role="passthrough", pci_address=ADDRESS) | more


# --- which


@pytest.mark.parametrize(
    ("devices", "branch", "flavour"),
    [
        ([RTX3090], "580", "open"),
        ([RTX3060, RTX5090], "580", "open"),
        ([H200], "580", "open"),
        ([GTX1080], "580", "proprietary"),
        ([V100, RTX3090], "580", "proprietary"),
        # Before 560 the open modules were no default for what the proprietary ones drive.
        ([RTX3090], "535", "proprietary"),
    ],
)
def test_the_flavour_follows_the_device_ids(devices: list[str], branch: str, flavour: str) -> None:
    assert plan(rack(*devices, branch=branch), "ubuntu2404").flavour == flavour


def test_names_decide_nothing() -> None:
    cards = [card(GTX1080, "rtx-5090")]
    assert plan(Gpus.model_validate({"cards": cards}), "debian13").flavour == "proprietary"


ALL = get_args(Distribution)


@pytest.mark.parametrize("distribution", ALL)
def test_each_distribution_has_one_driver_for_blackwell(distribution: Distribution) -> None:
    found = plan(rack(RTX5090), distribution)
    names = [name for group in found.packages for name in group]
    assert found.flavour == "open"
    assert any("open" in name for name in names)
    assert found.signed is distribution.startswith("ubuntu")


@pytest.mark.parametrize(
    ("distribution", "choice", "packages"),
    [
        (
            "debian12",
            {"branch": "535"},
            [
                ["linux-headers-amd64", "nvidia-kernel-dkms", "libcuda1", "nvidia-smi"]
                + ["libnvidia-cfg1", "nvidia-persistenced"]
            ],
        ),
        (
            "debian13",
            {},
            [
                ["nvidia-driver-pinning-580"],
                ["linux-headers-amd64", "nvidia-kernel-open-dkms", "nvidia-driver-cuda"]
                + ["nvidia-persistenced"],
            ],
        ),
        (
            "debian13",
            {"flavour": "proprietary"},
            [
                ["nvidia-driver-pinning-580"],
                ["linux-headers-amd64", "nvidia-kernel-dkms", "nvidia-driver-cuda"]
                + ["nvidia-persistenced"],
            ],
        ),
        (
            "ubuntu2404",
            {},
            [
                ["linux-modules-nvidia-580-server-open-generic"],
                ["nvidia-headless-no-dkms-580-server-open", "nvidia-compute-utils-580-server"]
                + ["nvidia-utils-580-server"],
            ],
        ),
        (
            "ubuntu2404",
            {"source": "vendor"},
            [
                ["nvidia-driver-pinning-580"],
                ["linux-headers-generic", "nvidia-dkms-580-open", "libnvidia-compute-580"]
                + ["libnvidia-cfg1-580", "nvidia-compute-utils-580", "nvidia-utils-580"],
            ],
        ),
        (
            "ubuntu2404",
            {"branch": "590"},
            [
                ["nvidia-driver-pinning-590"],
                ["linux-headers-generic", "nvidia-dkms-open", "libnvidia-compute"]
                + ["libnvidia-cfg1", "nvidia-compute-utils", "nvidia-utils"],
            ],
        ),
    ],
)
def test_packages(
    distribution: Distribution, choice: dict[str, str], packages: list[list[str]]
) -> None:
    assert [list(group) for group in plan(rack(RTX3090, **choice), distribution).packages] == (
        packages
    )


@pytest.mark.parametrize(
    ("distribution", "kernel", "name"),
    [
        ("debian13", "6.12.74+deb13+1-cloud-amd64", "linux-headers-cloud-amd64"),
        ("debian13", "6.12.74+deb13+1-amd64", "linux-headers-amd64"),
        ("debian13", "6.14.11-4-pve", "proxmox-default-headers"),
        ("ubuntu2404", "6.8.0-85-generic", "linux-modules-nvidia-580-server-open-generic"),
        (
            "ubuntu2404",
            "6.14.0-35-generic",
            "linux-modules-nvidia-580-server-open-generic-hwe-24.04",
        ),
    ],
)
def test_modules_and_headers_are_those_of_the_running_kernels_line(
    distribution: Distribution, kernel: str, name: str
) -> None:
    groups = plan(rack(RTX3090), distribution, kernel=kernel).packages
    assert name in [package for group in groups for package in group]


def test_the_repository_is_that_of_the_distribution() -> None:
    repository = plan(rack(RTX5090), "debian13").repository
    assert repository is not None
    assert repository.url.endswith("/repos/debian13/x86_64")
    assert repository.key_url.startswith(repository.url)
    assert (repository.suite, repository.components) == ("/", [])
    assert plan(rack(RTX5090), "ubuntu2404").repository is None


def test_nvswitches_need_a_fabric_manager_of_the_same_version() -> None:
    found = plan(rack(H200), "debian13", nvswitches=4)
    assert found.packages[-1] == ("nvidia-fabricmanager-580",)
    assert driver.FABRIC_UNIT in found.units
    for version in ("580.105.08-1", "580.105.08-0ubuntu0.24.04.1", "1:580.105.08-1"):
        assert driver.fabric_problem(version, "580.105.08") is None
    for other in ("580.95.05-1", None):
        assert "580.105.08" in (driver.fabric_problem(other, "580.105.08") or "")


def test_a_host_whose_cards_all_belong_to_guests_gets_no_driver() -> None:
    found = plan(Gpus.model_validate({"cards": [guest()]}), "debian13")
    assert (found.source, found.packages, found.vfio) == (None, (), (ADDRESS,))
    assert set(driver.files(found)) == {driver.NOUVEAU, driver.VFIO, driver.VFIO_PROGRAM}


# --- refused

MIRROR = {
    "url": "https://mirror.example/cuda",
    "key_url": "https://mirror.example/key.asc",
    "suite": "cuda",
}


@pytest.mark.parametrize(
    ("cards", "choice", "distribution", "key", "words"),
    [
        ([card(RTX5090, "desk")], {"source": "distribution"}, "debian12", "driver.source",
         "535, which does not drive desk .NVIDIA GeForce RTX 5090."),
        ([card(RTX5090, "desk")], {"source": "distribution"}, "debian13", "driver.source",
         "550, which does not drive desk"),
        ([card(RTX3090)], {"source": "distribution"}, "debian13", "driver.source",
         "does not build on its own kernel"),
        ([card(RTX3090)], {"source": "distribution"}, "debian12", "driver.source",
         "write branch '535'"),
        ([card(RTX3090)], {"branch": "535", "flavour": "open", "source": "distribution"},
         "debian12", "driver.source", "security updates"),
        ([card(RTX3090)], {"source": "distribution", "branch": "570"}, "ubuntu2404",
         "driver.branch", "535 and 580 and not 570"),
        ([card(RTX3090)], {"branch": "570"}, "debian13", "driver.branch", "'580' or later"),
        ([card(RTX5090, "desk")], {"branch": "550"}, "ubuntu2404", "driver.branch",
         "desk .NVIDIA GeForce RTX 5090., a Blackwell card; branches before 570"),
        ([card(GTX1080, "old")], {"branch": "590"}, "debian13", "driver.branch",
         "old .NVIDIA GeForce GTX 1080., a Pascal card; 580 is the last"),
        ([card(RTX5090, "desk")], {"flavour": "proprietary"}, "debian13", "driver.flavour",
         "desk .*needs the open kernel modules"),
        ([card(GTX1080, "old")], {"flavour": "open"}, "debian13", "driver.flavour",
         "old .*needs the proprietary kernel modules"),
        ([card(RTX5090, "desk"), card(V100, "old")], {}, "ubuntu2404", "cards",
         "desk .*need the open kernel modules, old .*the proprietary ones"),
        ([card("ffff", "new")], {}, "debian13", "cards[0].device", "does not list this card"),
        ([guest(pci_address=None)], {}, "debian13", "cards[0].pci_address", "by its address"),
        ([card(RTX3090)], {"source": "vendor"}, "ubuntu2604", "driver.repository", "key_url"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_is_refused_in_one_sentence(
    cards: list[dict[str, Any]],
    choice: dict[str, str],
    distribution: Distribution,
    key: str,
    words: str,
) -> None:
    gpus = {"cards": cards, "driver": choice}
    with pytest.raises(Unplannable, match=words) as no:
        plan(Gpus.model_validate(gpus), distribution)
    assert no.value.key == key
    assert "\n" not in str(no.value)
    assert [found.key for found in check(_host(gpus, distribution))] == [f"gpus.{key}"]


def _host(gpus: dict[str, Any], distribution: Distribution = "debian13") -> HostSettings:
    return HostSettings.model_validate(
        {
            "hostname": "rack",
            "distribution": distribution,
            "interfaces": {"eth0": {"role": "lan"}},
            "gpus": gpus,
        }
    )


def test_an_unknown_card_is_driven_as_its_owner_says() -> None:
    assert plan(rack("ffff", flavour="open"), "debian13").flavour == "open"
    assert plan(rack("ffff", flavour="proprietary"), "debian13").flavour == "proprietary"


def test_a_mirror_that_would_not_be_used_is_refused() -> None:
    gpus = {"cards": [card(RTX3090)], "driver": {"repository": MIRROR}}
    (found,) = check(_host(gpus, "ubuntu2404"))
    assert found.key == "gpus.driver.repository.url"
    assert list(check(_host(gpus))) == []


# --- one origin


@pytest.mark.parametrize(
    ("distribution", "source", "archive"),
    [
        ("debian12", "vendor", "Debian"),
        ("debian13", "vendor", "Debian"),
        ("debian12", "distribution", "Debian"),
        ("ubuntu2404", "vendor", "Ubuntu"),
        ("ubuntu2404", "distribution", "Ubuntu"),
    ],
)
def test_apt_takes_the_driver_from_one_origin_alone(
    distribution: Distribution, source: str, archive: str, tmp_path: Path
) -> None:
    old = {"branch": "535"} if (distribution, source) == ("debian12", "distribution") else {}
    found = plan(rack(H200, source=source, **old), distribution)
    names = [name for group in found.packages for name in group if "headers" not in name]
    beside = ["libnvidia-ml1", "firmware-nvidia-gsp", "libcuda1", "nvidia-modprobe"]
    common = ["nvidia-kernel-common", "cuda-toolkit-13-0", "bash"]
    # The other origin always has the newer version, which apt would take.
    winner, loser = ("nvidia", "archive") if source == "vendor" else ("archive", "nvidia")
    everything = [*names, *beside, *common]
    origins = {"nvidia": ("NVIDIA", "NVIDIA CUDA"), "archive": (archive, archive)}
    _repository(tmp_path / winner, *origins[winner], everything, "2")
    _repository(tmp_path / loser, *origins[loser], [*everything, "nvidia-only-there"], "3")
    (tmp_path / "preferences").write_text(driver.files(found)[driver.PREFERENCES])

    candidates = _candidates(tmp_path, [*everything, "nvidia-only-there"])
    assert {name for name in [*names, *beside] if candidates[name] != "2"} == set()
    # Nor may a dependency come from there that the chosen origin lacks.
    assert candidates["nvidia-only-there"] == "(none)"
    # What is no driver is left to apt.
    assert (candidates["bash"], candidates["cuda-toolkit-13-0"]) == ("3", "3")
    if source == "vendor":
        # The archive's own helper, which NVIDIA's packages may need too.
        assert candidates["nvidia-kernel-common"] == "3"


def _repository(folder: Path, origin: str, label: str, names: list[str], version: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "Packages").write_text(
        "".join(
            f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: x <x@x>\n"
            f"Filename: ./{name}.deb\nSize: 1\nSHA256: {'0' * 64}\nDescription: x\n\n"
            for name in dict.fromkeys(names)
        )
    )
    (folder / "Release").write_text(f"Origin: {origin}\nLabel: {label}\nSuite: stable\n")


def _candidates(folder: Path, names: list[str]) -> dict[str, str]:
    (folder / "sources.list").write_text(
        "".join(f"deb [trusted=yes] file:{folder}/{name} ./\n" for name in ("nvidia", "archive"))
    )
    for directory in ("state/lists/partial", "cache/archives/partial", "empty"):
        (folder / directory).mkdir(parents=True)
    (folder / "status").touch()
    options = {
        "APT::Architecture": "amd64",
        "APT::Architectures": "amd64",
        "Dir::State": folder / "state",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder / "cache",
        "Dir::Etc::SourceList": folder / "sources.list",
        "Dir::Etc::SourceParts": folder / "empty",
        "Dir::Etc::Preferences": folder / "preferences",
        "Dir::Etc::PreferencesParts": folder / "empty",
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "",
    }
    arguments = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
    environment = {**os.environ, "LC_ALL": "C", "APT_CONFIG": os.devnull}

    def apt(program: str, *words: str) -> str:
        return subprocess.check_output([program, *arguments, *words], text=True, env=environment)

    apt("apt-get", "-qq", "update")
    shown = apt("apt-cache", "policy", *names)
    found: dict[str, str] = {}
    name = ""
    for line in shown.splitlines():
        if not line.startswith(" "):
            name = line.rstrip(":")
        elif line.strip().startswith("Candidate:"):
            found[name] = line.split()[-1]
    return found


# --- as it runs

VERSION = "580.105.08"
KERNEL = "6.12.74+deb13+1-amd64"
STATE = DriverState(
    loaded=VERSION,
    loaded_flavour="open",
    on_disk=VERSION,
    on_disk_flavour="open",
    library=VERSION,
    running_kernel=KERNEL,
    newest_kernel=KERNEL,
)
GUESTS_CARD = PciCard(ADDRESS, RTX5090, "", 16, 16, 32.0, 32.0, 7, -1, "nvidia", boot_vga=False)


def seen(**state: Any) -> Picture:
    return Picture(driver=replace(STATE, **state))


PLAN = plan(rack(RTX3090), "debian13")
WITH_GUEST = plan(Gpus.model_validate({"cards": [guest(), card(RTX3090, "own")]}), "debian13")


def test_a_driver_that_runs_is_left_alone() -> None:
    assert verdict(PLAN, seen()) == Verdict()


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"on_disk": None, "newest_kernel": "6.12.117-amd64"},
         "the newest kernel 6.12.117-amd64 has no nvidia module"),
        # Even where a reboot was due: not into a kernel without the module.
        ({"on_disk": None, "loaded": None, "nouveau_loaded": True}, "has no nvidia module"),
        ({"on_disk": "550.163.01"}, "is 550.163.01"),
        ({"on_disk_flavour": "proprietary"}, "has the proprietary one"),
        ({"library": "580.95.05"}, "libnvidia-ml is 580.95.05"),
    ],
)  # fmt: skip
def test_a_reboot_that_would_lose_the_cards_is_never_asked_for(
    state: dict[str, Any], words: str
) -> None:
    found = verdict(PLAN, seen(**state))
    assert words in (found.stop or "")
    assert found.reboot is None


@pytest.mark.parametrize(
    ("distribution", "source", "module", "mixture"),
    [
        ("ubuntu2404", "distribution",
         "install linux-modules-nvidia-580-server-open-6.8.0-90-generic with apt-get",
         "apt-get install linux-modules-nvidia-580-server-open-generic nvidia-headless-no-dkms"),
        ("ubuntu2404", "vendor", "dkms status", "--fix-broken"),
        ("debian13", "vendor", "dkms status", "--fix-broken"),
    ],
)  # fmt: skip
def test_the_advice_fits_how_the_module_came(
    distribution: Distribution, source: str, module: str, mixture: str
) -> None:
    found = plan(rack(RTX3090, source=source), distribution)
    newest = {"newest_kernel": "6.8.0-90-generic"}
    without = verdict(found, seen(on_disk=None, **newest)).stop or ""
    assert module in without
    assert ("dkms" in without) is ("dkms" in module)
    assert mixture in (verdict(found, seen(library="580.95.05", **newest)).stop or "")


@pytest.mark.parametrize(
    ("distribution", "choice", "own", "holds"),
    [
        ("ubuntu2404", {}, None, True),
        ("ubuntu2404", {}, ["linux-modules-nvidia-580-"], True),
        ("ubuntu2404", {}, ["linux-"], True),
        # Neither is held.
        ("ubuntu2404", {}, ["nvidia-", "libnvidia-"], False),
        # DKMS builds a module for whichever kernel comes.
        ("ubuntu2404", {"source": "vendor"}, None, False),
        ("debian13", {}, None, False),
    ],
)
def test_a_kernel_is_held_back_where_its_ready_made_modules_are(
    distribution: Distribution, choice: dict[str, str], own: list[str] | None, holds: bool
) -> None:
    settings = _host({"cards": [card(RTX3090)], "driver": choice}, distribution)
    if own is not None:
        base = settings.base.model_copy(update={"held_back": own})
        settings = settings.model_copy(update={"base": base})
    patterns = blacklist_patterns(driver.held_back(settings))
    # As unattended-upgrades asks; the second brings the driver for the first.
    kernel, modules = (
        any(re.match(pattern, name) for pattern in patterns)
        for name in (
            "linux-image-6.8.0-90-generic",
            "linux-modules-nvidia-580-server-open-6.8.0-90-generic",
        )
    )
    assert kernel is holds
    assert modules or not kernel
    if holds:
        assert any(re.match(pattern, "linux-headers-generic") for pattern in patterns)


def test_a_host_without_cards_holds_what_it_says() -> None:
    settings = HostSettings.model_validate(
        {"hostname": "x", "distribution": "ubuntu2404", "interfaces": {"eth0": {"role": "lan"}}}
    )
    assert driver.held_back(settings) == settings.base.held_back


def _new_kernel(root: Path) -> None:
    release = "999.0.0-1"
    (root / f"boot/vmlinuz-{release}").touch()
    (root / f"lib/modules/{release}").mkdir()


def _other_library(root: Path) -> None:
    (library,) = root.glob("usr/lib/*/libnvidia-ml.so.1")
    other = library.with_name("libnvidia-ml.so.580.1.1")
    other.touch()
    library.unlink()
    library.symlink_to(other.name)


def _no_modules(root: Path) -> None:
    for folder in root.glob("lib/modules/*/modinfo"):
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (Path.exists, ""),
        (_no_modules, "has no nvidia module"),
        (_new_kernel, "the newest kernel 999.0.0-1 has no nvidia module"),
        (_other_library, "libnvidia-ml is 580.1.1 and the module for kernel"),
    ],
)
def test_a_host_sees_for_itself_that_its_next_kernel_has_a_driver(
    tmp_path: Path, change: Callable[[Path], object], says: str
) -> None:
    for distribution in get_args(Distribution)[1:3]:
        recorded = lay_out("rack9x3090", tmp_path / distribution)
        change(recorded.root)
        done = _look(recorded, plan(rack(RTX3090), distribution))
        assert (done.returncode, says in done.stderr) == (bool(says), True), done.stderr
        assert len(done.stderr.splitlines()) == bool(says), done.stderr
        if "no nvidia module" in says:
            assert ("dkms" in done.stderr) is distribution.startswith("debian")


def test_a_kernel_is_not_judged_while_apt_is_at_work(tmp_path: Path) -> None:
    recorded = lay_out("rack9x3090", tmp_path)
    _new_kernel(recorded.root)
    lock = recorded.root / driver.APT_LOCK.lstrip("/")
    lock.parent.mkdir(parents=True)
    lock.touch()
    assert _look(recorded, PLAN).returncode == 1
    with lock.open("w") as held:
        fcntl.lockf(held, fcntl.LOCK_EX)
        assert _look(recorded, PLAN).returncode == 0


def _look(recorded: Rack, found: DriverPlan) -> subprocess.CompletedProcess[str]:
    script = driver.kernels_program(found, str(recorded.root))
    return subprocess.run(
        ["sh", "-c", script.replace("PATH=/usr/sbin:", f"PATH={recorded.programs}:/usr/sbin:")],
        cwd=recorded.root,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"loaded": "580.95.05"}, "loaded driver is 580.95.05 and the installed one 580.105.08"),
        ({"loaded": None}, "loaded driver is none"),
        ({"loaded": None, "nouveau_loaded": True}, "nouveau controls the cards"),
    ],
)
def test_a_mismatch_is_mended_by_a_reboot(state: dict[str, Any], words: str) -> None:
    found = verdict(PLAN, seen(**state))
    assert words in (found.reboot or "")
    assert found.stop is None


def test_a_guests_card_that_another_driver_holds_is_mended_by_a_reboot() -> None:
    held = replace(seen(), pci=(GUESTS_CARD,))
    assert f"{ADDRESS} belongs to a guest, but nvidia controls it" in (
        verdict(WITH_GUEST, held).reboot or ""
    )
    free = replace(held, pci=(replace(GUESTS_CARD, driver="vfio-pci"),))
    assert verdict(WITH_GUEST, free) == Verdict()


def _admitted(found: DriverPlan, picture: Picture, key_enrolled: bool = False) -> str | None:
    gpus = Gpus.model_validate({"cards": [guest(), card(RTX3090, "own")]})
    try:
        driver.check_machine(found, gpus, picture, key_enrolled)
    except Unplannable as no:
        return str(no)
    return None


def test_secure_boot_refuses_modules_that_it_would_not_load() -> None:
    bare = seen(loaded=None, on_disk=None, library=None, secure_boot=True)
    assert "mokutil --import" in (_admitted(PLAN, bare) or "")
    assert _admitted(PLAN, bare, key_enrolled=True) is None
    assert _admitted(PLAN, seen(secure_boot=True)) is None
    assert _admitted(PLAN, seen(loaded=None, secure_boot=False)) is None
    assert _admitted(plan(rack(RTX3090), "ubuntu2404"), bare) is None


def test_a_guests_card_without_an_iommu_is_refused() -> None:
    alone = replace(seen(), pci=(replace(GUESTS_CARD, iommu_group=None),))
    assert "no IOMMU group" in (_admitted(WITH_GUEST, alone) or "")
    assert _admitted(WITH_GUEST, replace(seen(), pci=(GUESTS_CARD,))) is None


# --- the operation

GOOD = DriverHost(versions={name: "1" for group in PLAN.packages for name in group})
RUNS = UnitState("loaded", "active", "enabled", False, 2.0, 2.0, 1.0)


@dataclass
class Machine(LocalHost):
    """Answers facts from memory; a reboot makes the next picture true."""

    pictures: list[Picture] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    said: str = ""
    reboots: int = 0

    def get_fact(self, fact: type[Any], **arguments: Any) -> Any:
        if fact is GpuPicture:
            return self.pictures[0]
        return super().get_fact(fact, **arguments)

    def run(
        self,
        found: DriverPlan = PLAN,
        state: DriverHost = GOOD,
        reboot: str = "when-needed",
        touched: Callable[[], bool] = lambda: False,
    ) -> None:
        self.facts = {
            GpuDriverHost: state,
            InstalledPackages: state.versions,
            UnitStates: dict.fromkeys(
                (*found.units, driver.VFIO_UNIT, driver.KERNELS_SERVICE), RUNS
            ),
        }
        with ctx_host.use(self):
            for command in gpu_driver.running._inner(
                plan=found, reboot=reboot, picture=self.pictures[0], touched=touched
            ):
                if isinstance(command, StringCommand):
                    self.commands.append(command.get_raw_value())
                elif command.function is gpu_driver.reboot_once:
                    assert isinstance(command, FunctionCommand)
                    self.reboots += 1
                    self.pictures = self.pictures[1:] or self.pictures
                else:
                    self.said = str(command.args[0])
                    return


def test_nothing_is_run_where_all_is_so() -> None:
    machine = Machine(pictures=[seen()])
    machine.run()
    assert (machine.commands, machine.said, machine.reboots) == ([], "", 0)


def test_a_bare_machine_is_installed_group_by_group() -> None:
    machine = Machine(pictures=[seen()])
    machine.run(state=DriverHost())
    text = "\n".join(machine.commands)
    assert " update\n" in text
    assert text.index("nvidia-driver-pinning-580") < text.index("nvidia-kernel-open-dkms")
    assert machine.reboots == 0


def test_a_mismatch_reboots_once_and_goes_on() -> None:
    machine = Machine(pictures=[seen(loaded="580.95.05"), seen()])
    machine.run()
    assert (machine.reboots, machine.said) == (1, "")
    # The reboot has helped: the next situation of this kind may have one of its own.
    assert any("rm -f" in command for command in machine.commands)


def test_a_reboot_that_did_not_help_stops_the_run() -> None:
    machine = Machine(pictures=[seen(loaded="580.95.05")])
    machine.run()
    assert machine.reboots == 1
    assert "loaded driver is 580.95.05" in machine.said
    assert not any("rm -f" in command for command in machine.commands)


def test_it_is_not_rebooted_twice_for_the_same() -> None:
    sick = seen(loaded="580.95.05")
    marked = replace(GOOD, rebooted_for=verdict(PLAN, sick).situation)
    machine = Machine(pictures=[sick, seen()])
    machine.run(state=marked)
    assert machine.reboots == 0
    assert "has not fixed it" in machine.said
    # Another upgrade is another situation.
    newer = Machine(pictures=[seen(loaded="580.65.06"), seen()])
    newer.run(state=marked)
    assert newer.reboots == 1


def test_never_means_never() -> None:
    machine = Machine(pictures=[seen(loaded="580.95.05"), seen()])
    machine.run(reboot="never")
    assert machine.reboots == 0
    assert "driver.reboot is 'never'; reboot this host" in machine.said


def test_a_kernel_without_the_module_stops_before_any_reboot() -> None:
    machine = Machine(pictures=[seen(on_disk=None, newest_kernel="6.12.117+deb13-amd64")])
    machine.run()
    assert machine.reboots == 0
    assert "6.12.117+deb13-amd64 has no nvidia module" in machine.said


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (replace(GOOD, stale_initramfs=True), "update-initramfs"),
        (replace(GOOD, idle=(driver.PERSISTENCE_UNIT,)), "rm -f"),
    ],
)
def test_what_is_left_of_a_run_that_died_is_done(state: DriverHost, words: str) -> None:
    machine = Machine(pictures=[seen()])
    machine.run(state=state)
    assert words in "\n".join(machine.commands)


def test_a_fabric_manager_of_another_version_stops_the_run() -> None:
    found = plan(rack(H200), "debian13", nvswitches=4)
    versions = {name: "580.95.05-1" for group in found.packages for name in group}
    machine = Machine(pictures=[seen()])
    machine.run(found, DriverHost(versions), touched=lambda: True)
    assert "fabric manager is 580.95.05 and the driver 580.105.08" in machine.said


# --- the deploy


def _deploy(
    tmp_path: Path, distribution: Distribution, change: Callable[[Path], object] = Path.exists
) -> tuple[list[str], list[bool]]:
    """Commands run on a recorded rack that is as planned but for ``change``; what changed."""
    recorded = lay_out("rack9x3090", tmp_path)
    change(recorded.root)
    probe = GpuPicture().command(root=str(recorded.root))
    settings = _host({"cards": [card(RTX3090)]}, distribution)
    assert settings.gpus is not None
    found = plan(settings.gpus, distribution, kernel=KERNEL)
    contents = driver.files(found)
    if found.repository:
        key = apt_repository.key_path("nvidia-cuda", found.repository)
        source = apt_repository.source_path("nvidia-cuda")
        template = "apt/repository.sources.j2"
        contents |= {key: "", source: render(template, repository=found.repository, key=key)}
    host = inventory_of(
        {
            "nvidia-smi": answer(LocalHost(recorded.programs)._run(probe).stdout.splitlines()),
            "S|%F": [
                line
                for path, text in contents.items()
                for line in (
                    f"S|regular file|{_mode(path)}|root|root|{path}|'{path}'",
                    f"{hashlib.sha256(text.encode()).hexdigest()}  {path}",
                )
            ],
            "dpkg-query": ["#= versions"]
            + [f"installed {name} 1" for group in found.packages for name in group],
        }
    )
    state = host.state
    add_deploy(state, deploy.apply, settings=settings)
    state.set_stage(StateStage.Execute)
    run_ops(state)
    metas = [state.get_op_data_for_host(host, op).operation_meta for op in state.get_op_order()]
    return host.connector.executed_commands, [meta.did_change() for meta in metas]


def _mode(path: str) -> str:
    return "755" if path in driver.PROGRAMS else "644"


def inventory_of(answers: dict[str, list[str]]) -> Any:
    state = State(check_for_changes=False)
    framed = {command: framed_lines(lines) for command, lines in answers.items()}
    data = {"fake_responses": framed, "fake_delay": 0.0, "fake_delay_jitter": 0.0}
    inventory = Inventory(([("@fake/rack", data)], {}))  # type: ignore[no-untyped-call]
    state.init(inventory, Config())  # type: ignore[no-untyped-call]
    state.set_stage(StateStage.Connect)
    connect_all(state)
    state.set_stage(StateStage.Prepare)
    return inventory.get_host("@fake/rack")


@pytest.mark.parametrize(("distribution", "commands"), [("debian13", 4), ("ubuntu2404", 3)])
def test_a_run_with_nothing_to_do_changes_nothing_and_asks_little(
    distribution: Distribution, commands: int, tmp_path: Path
) -> None:
    run, changed = _deploy(tmp_path, distribution)
    assert not any(changed)
    assert len(run) == commands


def test_secure_boot_stops_the_run_before_anything_is_planned(tmp_path: Path) -> None:
    def lock(root: Path) -> None:
        (variable,) = root.glob("sys/firmware/efi/efivars/SecureBoot-*")
        variable.write_bytes(bytes([6, 0, 0, 0, 1]))
        (root / "sys/module/nvidia/version").unlink()

    with pytest.raises(Refused, match="Secure Boot is on") as no:
        _deploy(tmp_path, "debian13", lock)
    assert "nothing was touched" in str(no.value)


# --- the reboot


class Rebooting:
    """A host that goes down a while after it was asked to, and comes back as another boot."""

    name = "rack"
    connector: Any = object()

    def __init__(self, polls_up: int, polls_down: int, comes_back: bool = True) -> None:
        self.data = SimpleNamespace(get=lambda _name: False)
        self.polls_up, self.polls_down, self.comes_back = polls_up, polls_down, comes_back
        self.polls: int | None = None
        self.connected = True
        self.marker = ""
        self.log: list[str] = []

    def log_styled(self, sentence: str, **_: Any) -> None:
        self.log.append(sentence)

    def disconnect(self) -> None:
        self.connected = False

    def connect(self, **_: Any) -> None:
        assert self.polls is not None
        self.polls += 1
        is_down = self.polls > self.polls_up and (
            not self.comes_back or self.polls <= self.polls_up + self.polls_down
        )
        if is_down:
            raise ConnectError("refused")
        self.connected = True

    def run_shell_command(self, command: StringCommand, **_: Any) -> tuple[bool, Any]:
        text = command.get_raw_value()
        if "systemctl reboot" in text:
            self.polls, self.marker = 0, text
            return True, SimpleNamespace(stdout_lines=framed_lines(["asked"]))
        is_new = self.polls is not None and self.polls > self.polls_up
        return True, SimpleNamespace(
            stdout_lines=["hello", *framed_lines(["after" if is_new else "before"])]
        )


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr("time.sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))


@pytest.mark.usefixtures("patience")
def test_a_reboot_waits_for_another_boot_and_not_for_the_dying_sshd() -> None:
    host: Any = Rebooting(polls_up=8, polls_down=20)
    assert gpu_driver.reboot_once(host, host, "the loaded driver is none", "loaded none")
    assert host.polls == 29
    assert "the loaded driver is none: rebooting this host once" in host.log[0]
    assert "loaded none" in host.marker


@pytest.mark.usefixtures("patience")
def test_a_host_that_does_not_come_back_is_said() -> None:
    host: Any = Rebooting(polls_up=1, polls_down=0, comes_back=False)
    assert not gpu_driver.reboot_once(host, host, "nouveau controls the cards", "nouveau")
    assert "console" in host.log[-1]


# --- files and facts


def test_a_guests_card_is_bound_by_address_and_never_by_id(tmp_path: Path) -> None:
    program = driver.files(WITH_GUEST)[driver.VFIO_PROGRAM]
    assert RTX5090 not in program
    bus = tmp_path / "bus" / "pci"
    drivers = {"0000:01:00.0": None, "0000:01:00.1": "snd_hda_intel", "0000:02:00.0": "nvidia"}
    for address, name in drivers.items():
        device = bus / "devices" / address
        device.mkdir(parents=True)
        (device / "driver_override").write_text("")
        if name:
            (bus / "drivers" / name).mkdir(parents=True, exist_ok=True)
            (device / "driver").symlink_to(bus / "drivers" / name)
    script = program.replace("devices=/sys/bus/pci", f"devices={bus}")
    subprocess.run(["sh", "-c", script], check=True)
    overrides = {
        address: (bus / "devices" / address / "driver_override").read_text().strip()
        for address in drivers
    }
    assert overrides == {
        "0000:01:00.0": "vfio-pci",
        "0000:01:00.1": "vfio-pci",
        "0000:02:00.0": "",
    }
    assert (bus / "drivers" / "snd_hda_intel" / "unbind").read_text().strip() == "0000:01:00.1"
    assert (bus / "drivers_probe").exists()


def test_a_card_that_its_driver_holds_is_not_taken_from_it(tmp_path: Path) -> None:
    program = driver.files(WITH_GUEST)[driver.VFIO_PROGRAM]
    bus = tmp_path / "bus" / "pci"
    device = bus / "devices" / ADDRESS
    (bus / "drivers" / "nvidia").mkdir(parents=True)
    device.mkdir(parents=True)
    (device / "driver").symlink_to(bus / "drivers" / "nvidia")
    script = program.replace("devices=/sys/bus/pci", f"devices={bus}")
    subprocess.run(["sh", "-c", script], check=True, capture_output=True)
    assert not (bus / "drivers" / "nvidia" / "unbind").exists()
    assert not (bus / "drivers_probe").exists()


def test_persistence_is_on_and_stays(tmp_path: Path) -> None:
    text = driver.files(PLAN)[driver.PERSISTENCE]
    assert "StopWhenUnneeded=no" in text
    assert "--no-persistence-mode" not in text.split("ExecStart=", 1)[1]
    # The command as systemd hands it to the shell, on a machine with Ubuntu's user.
    (line,) = [line for line in text.splitlines() if line.startswith("ExecStart=/bin/sh")]
    script = line.removeprefix("ExecStart=/bin/sh -c '").removesuffix("'").replace("$$", "$")
    tools = {"id": '[ "$1" = nvidia-persistenced ]', "nvidia-persistenced": 'echo "$@"'}
    for name, body in tools.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    script = script.replace("/usr/bin/nvidia-persistenced", str(tmp_path / "nvidia-persistenced"))
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    said = subprocess.check_output(["sh", "-c", script], text=True, env=environment)
    assert said.split() == ["--persistence-mode", "--user", "nvidia-persistenced"]


def test_systemd_knows_what_the_guests_unit_says(tmp_path: Path) -> None:
    unit = tmp_path / driver.VFIO_UNIT
    text = driver.files(WITH_GUEST)[driver.VFIO]
    unit.write_text(text.replace(driver.VFIO_PROGRAM, "/bin/true"))
    judged = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False
    )
    assert (judged.returncode, judged.stderr) == (0, "")


def test_the_fact_reads_a_machine(tmp_path: Path) -> None:
    programs, root = tmp_path / "programs", tmp_path / "root"
    (root / "boot").mkdir(parents=True)
    (root / "etc/modprobe.d").mkdir(parents=True)
    (root / "var/lib/holdfast").mkdir(parents=True)
    programs.mkdir()
    scripts = {
        "dpkg-query": "echo 'installed nvidia-smi 580.1-1'; echo 'config-files nvidia-utils 1'; "
        "exit 1",
        "systemctl": 'case "$*" in *is-enabled*persistenced*) exit 1;; esac',
        "mokutil": 'echo "$2 is already enrolled"',
    }
    for name, body in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    initrd = root / "boot/initrd.img-6.12"
    initrd.touch()
    (root / "var/lib/holdfast/gpu-reboot").write_text("nouveau is loaded\n")
    configuration = root / driver.NOUVEAU.lstrip("/")
    configuration.touch()
    os.utime(initrd, (1, 1))
    host = LocalHost(programs=programs)
    arguments = {
        "packages": ["nvidia-smi", "nvidia-utils"],
        "units": [driver.PERSISTENCE_UNIT, driver.FABRIC_UNIT],
        "configuration": driver.NOUVEAU,
        "root": str(root),
    }
    assert host.get_fact(GpuDriverHost, **arguments) == DriverHost(
        versions={"nvidia-smi": "580.1-1"},
        idle=(driver.PERSISTENCE_UNIT,),
        stale_initramfs=True,
        rebooted_for="nouveau is loaded",
        key_enrolled=True,
    )
    os.utime(configuration, (0, 0))
    assert not host.get_fact(GpuDriverHost, **arguments).stale_initramfs
    assert read(GpuDriverHost, []) == GpuDriverHost.default()
