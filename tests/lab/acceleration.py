"""Whether this controller can run guests in hardware, and QEMU's arguments either way."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryFile

from tests.lab.images import Image, LabError, cache_directory
from tests.lab.process import output_of

MINIMUM_EMULATING_QEMU = 8
"""QEMU 7.2 corrupts guests under multi-threaded emulation: they oops at random."""
CONSOLE_BYTES = 1 << 20
"""How much of a console is read: a kernel has started long before it has said so much."""


def accelerator(accelerated: bool) -> list[str]:
    """QEMU's arguments for hardware virtualisation, or for emulation."""
    if accelerated:
        return ["-accel", "kvm", "-cpu", "host"]
    return ["-accel", "tcg,thread=multi", "-cpu", "max"]


def acceleration_works(image: Image, timeout_seconds: float = 25) -> bool:
    """Whether hardware virtualisation really runs this image's kernel here.

    /dev/kvm can exist and still not run a stock kernel, so a probe boots one and looks for the
    kernel's own words. The verdict is kept for this QEMU and this boot of the controller.

    Raises LabError when it does not and QEMU is too old to emulate.
    """
    return _acceleration_works(image.kernel, image.initrd, timeout_seconds)


@functools.cache
def _acceleration_works(kernel: Path, initrd: Path, timeout_seconds: float) -> bool:
    version = qemu_version()
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    record = cache_directory() / "acceleration.json"
    asked = {"qemu": list(version), "boot": boot_id}
    known = json.loads(record.read_text()) if record.exists() else {}
    if known.get("asked") == asked:
        works = bool(known["works"])
    else:
        works = os.access("/dev/kvm", os.W_OK) and _probe(kernel, initrd, timeout_seconds)
        partial = record.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps({"asked": asked, "works": works}))
        partial.replace(record)
    major = version[0]
    if not works and major < MINIMUM_EMULATING_QEMU:
        raise LabError(
            f"QEMU {major} crashes guests under emulation and this machine offers no usable "
            f"hardware virtualisation: install QEMU {MINIMUM_EMULATING_QEMU} or newer "
            f"(on Debian 12, from backports)."
        )
    return works


@functools.cache
def qemu_version() -> tuple[int, int]:
    """The installed QEMU's major and minor version.

    Raises LabError when there is none.
    """
    line = output_of(["qemu-system-x86_64", "--version"]).splitlines()[0]
    major, minor = line.split("version ")[1].split(".")[:2]
    return int(major), int(minor)


def forget() -> None:
    """Ask again: the controller is no longer what it was."""
    _acceleration_works.cache_clear()
    qemu_version.cache_clear()


def _probe(kernel: Path, initrd: Path, timeout_seconds: float) -> bool:
    command = ["qemu-system-x86_64", "-machine", "q35", *accelerator(True), "-m", "512M"]
    command += ["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]
    command += ["-kernel", str(kernel), "-initrd", str(initrd), "-append", "console=ttyS0 panic=-1"]
    # A file, not a pipe: QEMU stays after its error, and where gevent reads a pipe it waits for the
    # end.
    with TemporaryFile() as console:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT
        )
        deadline = time.monotonic() + timeout_seconds
        try:
            while True:
                ended = process.poll() is not None
                seen = os.pread(console.fileno(), CONSOLE_BYTES, 0)
                if b"KVM internal error" in seen:
                    return False
                if b"Run /init" in seen or b"Freeing unused kernel" in seen:
                    return True
                if ended or time.monotonic() > deadline:
                    return False
                time.sleep(0.1)
        finally:
            process.kill()
            process.wait()
