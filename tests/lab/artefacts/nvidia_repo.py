"""Signed APT repositories laid out like NVIDIA's, with stand-ins for what a Debian rack is given.

Names of packages and what they leave behind are NVIDIA's; inside are the doubles of
`tests/doubles`. A virtual machine's kernel module is built by DKMS for the lab's kernel, in a
chroot on the controller: seconds there, minutes in a guest. A container loads no module, so its
package holds a file that `modinfo` reads and no kernel takes.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.doubles import guest
from tests.doubles.rack import DRIVER_VERSION
from tests.lab.artefacts import apt_repo, dkms, store
from tests.lab.images import Image
from tests.lab.process import output_of

CODENAME = "trixie"
DRIVER = "driver"
"""Folder of the driver's repository below an entry."""
TOOLKIT = "toolkit"
"""Folder of the container toolkit's."""
KEY = f"{CODENAME}.noarmor.gpg"

_DOUBLES = Path(guest.__file__).parent
_BRANCH = DRIVER_VERSION.partition(".")[0]
_CONTROL = """Package: {name}
Version: {version}
Architecture: amd64
Maintainer: Holdfast lab <lab@holdfast.invalid>
{depends}Section: misc
Priority: optional
Description: stand-in of the lab's for NVIDIA's package of this name
"""


@dataclass(frozen=True)
class _Package:
    name: str
    depends: str = ""
    after_install: str = ""
    version: str = f"{DRIVER_VERSION}-1"

    def build(self, tree: Path, folder: Path) -> Path:
        """Pack what lies in ``tree``."""
        control = tree / "DEBIAN"
        control.mkdir(parents=True)
        depends = f"Depends: {self.depends}\n" if self.depends else ""
        text = _CONTROL.format(name=self.name, version=self.version, depends=depends)
        (control / "control").write_text(text)
        if self.after_install:
            script = control / "postinst"
            script.write_text(f"#!/bin/sh\nset -e\n{self.after_install}\n")
            script.chmod(0o755)
        return apt_repo.build(tree, folder / f"{self.name}_{self.version}_amd64.deb")


def build(image: Image) -> store.Entry:
    """Both repositories, for machines of ``image``; `DRIVER` and `TOOLKIT` are their folders.

    Raises:
        LabError: the module could not be built.
    """
    kernel = dkms.kernel_release(image)
    module = store.stored(
        "nvidia-module",
        {"kernel": kernel, "version": DRIVER_VERSION, "source": _digest(_DOUBLES / "module")},
        lambda target: _build_module(image, target),
    )
    inputs = {
        "module": module.directory.name,
        "recipe": _digest(Path(__file__)),
        "doubles": _digest(_DOUBLES),
        "key": apt_repo.fingerprint(),
    }
    return store.stored(
        "nvidia-repository",
        inputs,
        lambda target: _build(target, lambda folder: [_kernel_module(module, kernel, folder)]),
    )


def build_for_container(image: Image) -> store.Entry:
    """Both repositories, for containers of ``image``; as `build`, without a module that loads.

    Kernel headers are a stand-in as well: nothing is built with them.
    """
    kernel = dkms.kernel_release(image)
    inputs = {
        "kernel": kernel,
        "recipe": _digest(Path(__file__)),
        "doubles": _digest(_DOUBLES),
        "key": apt_repo.fingerprint(),
    }
    return store.stored(
        "nvidia-container-repository",
        inputs,
        lambda target: _build(
            target,
            lambda folder: [
                _described_module(kernel, folder),
                _Package("linux-headers-amd64", version="999").build(folder / "headers", folder),
            ],
        ),
    )


def declared(url: str) -> dict[str, object]:
    """A repository that is served at ``url``, as an inventory declares it."""
    return {
        "url": url,
        "key_url": f"{url}/{KEY}",
        "suite": CODENAME,
        "components": ["main"],
    }


def _digest(path: Path) -> str:
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    digest = hashlib.sha256()
    for file in files:
        if file.is_file() and "__pycache__" not in file.parts:
            digest.update(f"{file.name}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def _build_module(image: Image, target: Path) -> str:
    with tempfile.TemporaryDirectory(prefix="holdfast-stand-in-") as name:
        guest.module(DRIVER_VERSION, Path(name))
        dkms.build(image, f"nvidia/{DRIVER_VERSION}", Path(name), target)
    return DRIVER_VERSION


def _build(target: Path, kernel_packages: Callable[[Path], list[Path]]) -> str:
    with tempfile.TemporaryDirectory(prefix="holdfast-nvidia-") as scratch:
        folder = Path(scratch)
        drivers = [
            _Package(f"nvidia-driver-pinning-{_BRANCH}").build(folder / "pinning", folder),
            *kernel_packages(folder),
            _user_space(folder),
            _persistence(folder),
        ]
        apt_repo.publish(drivers, target / DRIVER, [CODENAME], "NVIDIA", "NVIDIA CUDA")
        toolkit = [_toolkit(folder)]
        apt_repo.publish(toolkit, target / TOOLKIT, [CODENAME], "NVIDIA", "libnvidia-container")
    return DRIVER_VERSION


def _kernel_module(module: store.Entry, kernel: str, folder: Path) -> Path:
    tree = folder / "module"
    guest.module(DRIVER_VERSION, tree)
    place = tree / "lib/modules" / kernel / "updates/dkms"
    place.mkdir(parents=True)
    for file in module.directory.glob("nvidia.ko*"):
        shutil.copyfile(file, place / file.name)
    return _Package("nvidia-kernel-open-dkms", after_install=f"depmod {kernel}").build(tree, folder)


def _described_module(kernel: str, folder: Path) -> Path:
    tree = folder / "module"
    place = tree / "lib/modules" / kernel / "updates/dkms"
    place.mkdir(parents=True)
    told = f"version={DRIVER_VERSION}", "license=Dual MIT/GPL", "name=nvidia"
    lines = ".ascii " + ", ".join(f'"{each}\\0"' for each in told)
    source = folder / "nvidia.s"
    source.write_text(f'.section .modinfo,"a"\n{lines}\n')
    output_of(["gcc", "-c", "-o", place / "nvidia.ko", source])
    return _Package("nvidia-kernel-open-dkms", after_install=f"depmod {kernel}").build(tree, folder)


def _user_space(folder: Path) -> Path:
    tree = folder / "user-space"
    guest.user_space(DRIVER_VERSION, tree)
    return _Package("nvidia-driver-cuda", "python3", "ldconfig").build(tree, folder)


def _persistence(folder: Path) -> Path:
    tree = folder / "persistence"
    _copy("nvidia-persistenced", tree / "usr/bin", 0o755)
    _copy("nvidia-persistenced.service", tree / "usr/lib/systemd/system")
    return _Package("nvidia-persistenced", "nvidia-driver-cuda").build(tree, folder)


def _toolkit(folder: Path) -> Path:
    tree = folder / "toolkit"
    _copy("nvidia-ctk", tree / "usr/bin", 0o755)
    (tree / "usr/bin/nvidia-container-runtime").symlink_to("/usr/sbin/runc")
    return _Package("nvidia-container-toolkit").build(tree, folder)


def _copy(name: str, folder: Path, mode: int = 0o644) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_DOUBLES / "packages" / name, folder / name)
    (folder / name).chmod(mode)
