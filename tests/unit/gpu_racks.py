"""Recorded racks laid out as a machine: a tree of files, and the programs that look at drivers.

``recorded("rack9x3090")`` is the picture of a healthy one; `lay_out` gives a folder to make sick.
recorded/gpu/README.md names the origin of each recording.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from facts.gpu import GpuPicture
from facts.gpu_picture import Picture
from tests.unit.local_host import LocalHost

RECORDED = Path(__file__).parent / "recorded" / "gpu"
RackName = Literal["rtx3060", "rack9x3090", "rtx5090", "hgx8xh100", "h200"]
DEVICES = "sys/bus/pci/devices"

# What a test may write into the root to make a program fail: its exit status, what it says
# beside its answer, and how long it takes.
SMI_EXIT, SMI_SAYS, SMI_HANGS = "smi-exit", "smi-says", "smi-hangs"

_PROGRAMS = {
    "nvidia-smi": r"""
case $1 in
--help-query-gpu)
    head -n 1 smi.csv | sed 's/, /\n/g' | sed 's/.*/"&"\nWhat it means./' ;;
--query-gpu=*)
    [ -e smi-hangs ] && sleep 60
    awk -F ', ' -v wanted="${1#--query-gpu=}" '
        NR == 1 { for (i = 1; i <= NF; i++) column[$i] = i; n = split(wanted, names, ",")
            for (i = 1; i <= n; i++) if (!(names[i] in column)) {
                print "Field \"" names[i] "\" is not a valid field to query."; exit 2 } next }
        { for (i = 1; i <= n; i++) printf "%s%s", $column[names[i]], i < n ? ", " : "\n" }
    ' smi.csv || exit
    [ -e smi-says ] && cat smi-says ;;
topo) cat topology.txt ;;
esac
[ -e smi-exit ] && exit "$(cat smi-exit)"
exit 0
""",
    # modinfo -k KERNEL -F FIELD MODULE
    "modinfo": 'exec cat "lib/modules/$2/modinfo/$5/$4"',
    "ldconfig": r"""
printf '\tlibnvidia-ml.so.1 (libc6) => /usr/lib/i386-linux-gnu/libnvidia-ml.so.1\n'
for library in usr/lib/*/libnvidia-ml.so.1; do
    [ -e "$library" ] && printf '\tlibnvidia-ml.so.1 (libc6,x86-64) => %s\n' "$PWD/$library"
done
""",
    # --dmesg means this boot alone.
    "journalctl": """
case $* in
*--dmesg*) grep "$(tr -d - <proc/sys/kernel/random/boot_id)" journal ;;
*) cat journal ;;
esac
""",
}


@dataclass(frozen=True)
class Rack:
    """A machine in a folder. ``root`` holds its /sys, /proc, /lib, /boot; tests may change it."""

    root: Path
    programs: Path

    def device(self, address: str) -> Path:
        """The directory of a PCI device in sysfs."""
        return self.root / DEVICES / address

    def picture(self) -> Picture:
        """What the fact's own shell command sees here."""
        host = LocalHost(programs=self.programs)
        picture = host.get_fact(GpuPicture, root=str(self.root))
        assert isinstance(picture, Picture)
        return picture


def lay_out(name: RackName | None, folder: Path) -> Rack:
    """Lay the recorded rack out in ``folder``; None: a machine without anything of NVIDIA's."""
    rack = Rack(folder / "root", folder / "programs")
    rack.root.mkdir(parents=True)
    rack.programs.mkdir()
    for program, script in _PROGRAMS.items():
        if name is not None or program != "nvidia-smi":
            place_program(rack, program, script)
    if name is None:
        return rack
    for line in (RECORDED / name / "tree.txt").read_text().splitlines():
        _place(rack.root, line)
    for file in ("smi.csv", "topology.txt"):
        (rack.root / file).write_text((RECORDED / name / file).read_text())
    return rack


def place_program(rack: Rack, program: str, script: str) -> None:
    """Put a shell program into the rack's PATH; it starts in the rack's root."""
    path = rack.programs / program
    path.write_text(f"#!/bin/sh\ncd '{rack.root}' || exit 99\n{script}\n")
    path.chmod(0o755)


def _place(root: Path, line: str) -> None:
    """One line of a tree: ``path -> target`` is a link, ``path: text`` a line of a file."""
    link, arrow, target = line.partition(" -> ")
    name, _, text = line.partition(":") if not arrow else (link, "", "")
    if f"{DEVICES}/" in line and not arrow:
        # The addresses of PCI devices have colons too.
        name, _, text = line.partition(": ")
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if arrow:
        path.symlink_to(target)
    elif "/efivars/" in name:
        path.write_bytes(bytes.fromhex(text))
    else:
        with path.open("a") as file:
            file.write(f"{text.strip()}\n")


@cache
def recorded(name: RackName) -> Picture:
    """The picture of the recorded rack ``name``, in which nothing is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        return lay_out(name, Path(folder)).picture()
