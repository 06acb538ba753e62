"""NVIDIA's own open kernel module, as Debian 13 packs it, for the lab's kernel.

Debian's 550.163.01 does not compile against the 6.12.117 that Debian 13 boots: a stable update gave
``pci_resize_resource`` a fourth argument. With that argument it does. Its user space is not
installed, for the lab has no card: what it shows is that the module is built and taken.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from tests.lab.artefacts import dkms, store
from tests.lab.artefacts.debian import Suite
from tests.lab.images import Image
from tests.lab.process import LabError

PACKAGE = "nvidia-open-kernel-dkms"
MODULE = "nvidia-current-open"
"""What the package calls the module whose own name is nvidia."""
_FILE = "nvidia/nv-pci.c"
_BEFORE = "pci_resize_resource(pci_dev, NV_GPU_BAR1, requested_size)"
_AFTER = "pci_resize_resource(pci_dev, NV_GPU_BAR1, requested_size, 0)"


def build(image: Image) -> store.Entry:
    """The built modules, ``nvidia-current-open*.ko.xz`` and their like, for machines of ``image``.

    Raises:
        LabError: they could not be built.
    """
    inputs = {"kernel": dkms.kernel_release(image), "mend": _AFTER}
    return store.stored("nvidia-open", inputs, lambda target: _build(image, target))


def _build(image: Image, target: Path) -> str:
    with tempfile.TemporaryDirectory(prefix="holdfast-nvidia-open-") as name:
        scratch = Path(name)
        suite = Suite("trixie", scratch / "apt", components="main contrib")
        tree = scratch / "tree"
        subprocess.run(["dpkg-deb", "--extract", suite.fetch(PACKAGE), tree], check=True)
        (source,) = (tree / "usr/src").iterdir()
        text = (source / _FILE).read_text()
        if _BEFORE not in text:
            raise LabError(f"{PACKAGE} has another {_FILE} than the one this mends")
        (source / _FILE).write_text(text.replace(_BEFORE, _AFTER))
        version = source.name.removeprefix(f"{MODULE}-")
        dkms.build(image, f"{MODULE}/{version}", tree, target)
    return version
