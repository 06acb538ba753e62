"""Kernel modules that DKMS builds for a machine of the lab, on the controller.

In a chroot with the headers of that machine's kernel: a minute or some of processor time there,
most of an hour in an emulated guest.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.lab.images import RELEASES, Image, recipe_for
from tests.lab.process import LabError, output_of


def kernel_release(image: Image) -> str:
    """What ``uname -r`` says on a machine of this image.

    Read where the x86 boot protocol keeps it: 0x20E holds its offset, less 0x200.
    """
    data = image.kernel.read_bytes()
    start = int.from_bytes(data[0x20E:0x210], "little") + 0x200
    return data[start : data.index(b" ", start)].decode("ascii")


def build(image: Image, module: str, tree: Path, target: Path) -> None:
    """Build ``module`` (NAME/VERSION), whose source lies in ``tree``/usr/src, into ``target``.

    Raises:
        LabError: it could not be built.
    """
    kernel = kernel_release(image)
    recipe = recipe_for(
        RELEASES[image.release],
        "rack",
        public_key="",
        index_targets=output_of(["apt-get", "indextargets"]),
        apt_config_dump=output_of(["apt-config", "dump"]),
    )
    with tempfile.TemporaryDirectory(prefix="holdfast-module-") as name:
        work = Path(name)
        work.chmod(0o711)
        # Where the chroot's own root may look, which may be another user here.
        shutil.copytree(tree, work / "root")
        (work / "out").mkdir()
        (work / "out").chmod(0o777)
        command = [
            "mmdebstrap",
            "--variant=minbase",
            f"--mode={'root' if os.geteuid() == 0 else 'unshare'}",
            "--format=null",
            f"--include=dkms,linux-headers-{kernel}",
            *(f'--aptopt={option} "{url}"' for option, url in recipe.proxies),
            f'--customize-hook=cp -r {work}/root/. "$1"/',
            f'--customize-hook=chroot "$1" dkms install {module} -k {kernel}'
            ' || { cat "$1"/var/lib/dkms/*/*/build/make.log; exit 1; }',
            f'--customize-hook=cp "$1"/lib/modules/{kernel}/updates/dkms/*.ko* {work}/out/',
            recipe.suite,
            "/dev/null",
            *recipe.sources,
        ]
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd="/")
        if done.returncode != 0:
            raise LabError(f"{module} for {kernel} could not be built:\n{done.stderr[-3000:]}")
        for file in (work / "out").iterdir():
            shutil.copyfile(file, target / file.name)
