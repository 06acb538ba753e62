"""Booted machines in the cache, so that a machine that is not on trial is up in two seconds.

A boot under emulation takes 15 s on an idle controller and minutes on a busy one. So each kind of
machine is booted once per image, saved while it runs, and copied from then on; every copy gets its
own SSH host keys and machine id. The rack of a drill always boots for real.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from tests.lab.images import Image, cache_directory, locked
from tests.lab.machine import DISK, Machine, Spec
from tests.lab.network import Network
from tests.lab.process import output_of

TAG = "booted"


def booted_disk(spec: Spec, image: Image) -> Path:
    """A disk that holds the saved state `TAG` of this machine, booted now if there is none yet.

    Raises MachineError when it does not boot; its logs stay beside the cached disks.
    """
    directory = cache_directory() / "booted"
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    # What the state depends on: the devices, the emulator and the disk beneath.
    parts = [image.directory.name, output_of(["qemu-system-x86_64", "--version"])]
    parts += Machine(Path(spec.name), spec, image).command(ssh_port=0)
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    disk = directory / f"{image.directory.name}-{key}.qcow2"
    with locked(disk.with_suffix(".lock")):
        if not disk.exists():
            _boot(disk.with_suffix(".boot"), spec, image).rename(disk)
            shutil.rmtree(disk.with_suffix(".boot"))
    return disk


def _boot(directory: Path, spec: Spec, image: Image) -> Path:
    Machine.power_off_leftover(directory / spec.name)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    network, machine = Network(directory), Machine(directory / spec.name, spec, image)
    network.start([spec.name])
    try:
        machine.start()
        machine.wait_for_boot()
        machine.wait_for_ssh()
        machine.execute("systemctl is-system-running --wait; sync")
        machine.save(TAG)
    finally:
        machine.crash()
        network.stop()
    return machine.directory / DISK
