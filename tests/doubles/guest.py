"""Everything a virtual machine needs to have a rack, laid out from / in a folder.

`hardware` is there before any driver is installed; `user_space` and `module` are what the driver's
packages bring; `guest` is all three. After unpacking run ``ldconfig``; ``README.md`` has the rest.
"""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path

import pynvml

from holdfast.gpu import containers, limits
from tests.doubles import library
from tests.doubles.rack import Rack
from tests.doubles.sysfs import sysfs

DESCRIPTION = "/etc/holdfast-rack.json"
"""What the rack is, for every double on the machine; replaced, never written into."""

_HERE = Path(__file__).parent
_PRIVATE = "usr/lib/holdfast-rack"


def guest(rack: Rack, folder: Path) -> None:
    """Lay out the whole machine: its cards, the driver's user space, the module's source."""
    hardware(rack, folder)
    user_space(rack.driver.library, folder)
    module(rack.driver.library, folder)


def hardware(rack: Rack, folder: Path) -> None:
    """Lay out the rack description, its sysfs tree, and what shows that tree at boot."""
    description = folder / DESCRIPTION.lstrip("/")
    description.parent.mkdir(parents=True, exist_ok=True)
    rack.write(description)
    sysfs(rack, folder / "usr/share/holdfast-rack/sysfs")
    units = folder / "etc/systemd/system"
    _copy("boot/lab-rack-pci", folder / _PRIVATE, mode=0o755)
    _copy("boot/lab-rack-pci.service", units)
    for unit in (limits.SERVICE, containers.SERVICE):
        _copy("boot/fake-driver.conf", units / f"{unit}.d")
    _copy("boot/60-holdfast-rack.rules", folder / "etc/udev/rules.d")
    wanted = units / "sysinit.target.wants" / "lab-rack-pci.service"
    wanted.parent.mkdir(exist_ok=True)
    wanted.symlink_to("../lab-rack-pci.service")


def driven(version: str, folder: Path) -> None:
    """Lay out, beside `hardware`, a driver that is loaded since boot: for a container.

    A container shares its controller's kernel and loads no module into it.
    """
    loaded = folder / "usr/share/holdfast-rack/module/nvidia/version"
    loaded.parent.mkdir(parents=True)
    loaded.write_text(f"{version}\n")
    _copy("boot/driven.conf", folder / "etc/systemd/system/lab-rack-pci.service.d")


def user_space(version: str, folder: Path) -> None:
    """Lay out libnvidia-ml and nvidia-smi.

    The bindings lie beside the program that ``/usr/bin/nvidia-smi`` links to, where no other
    program finds them: a real machine has none.
    """
    library.place(folder / "usr/lib/x86_64-linux-gnu", version)
    _copy("nvidia_smi.py", folder / _PRIVATE, mode=0o755)
    (folder / _PRIVATE / "pynvml.py").write_text(inspect.getsource(pynvml))
    program = folder / "usr/bin/nvidia-smi"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.symlink_to(f"/{_PRIVATE}/nvidia_smi.py")


def module(version: str, folder: Path) -> None:
    """Lay out the kernel module's source where ``dkms install nvidia/VERSION`` looks for it."""
    source = folder / "usr/src" / f"nvidia-{version}"
    for name in ("nvidia.c", "Makefile", "dkms.conf"):
        _copy(f"module/{name}", source)
    settings = source / "dkms.conf"
    settings.write_text(settings.read_text().replace("__VERSION_STRING", version))


def describing(text: str) -> str:
    """A command that makes ``text`` the description, while a service may be changing it."""
    fresh = f"{DESCRIPTION}.described"
    return (
        f"flock {DESCRIPTION}.lock sh -c 'cat > {fresh} && mv {fresh} {DESCRIPTION}'"
        f" <<'END'\n{text}\nEND"
    )


def _copy(name: str, folder: Path, mode: int = 0o644) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / Path(name).name
    shutil.copyfile(_HERE / name, file)
    file.chmod(mode)
