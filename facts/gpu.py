"""A machine's NVIDIA cards in two commands: their state, and samples over time."""

from __future__ import annotations

import base64
import inspect
import zlib
from functools import cache
from shlex import quote

import pynvml

from facts import gpu_picture, sections
from facts.framed import Framed
from facts.gpu_picture import SMI, SMI_FIELDS, Picture
from holdfast.host_programs import gpu_samples
from holdfast.host_programs.gpu_samples import Samples
from holdfast.shipping import text_of

_SECURE_BOOT = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
"""UEFI's global variable. Read directly: mokutil need not be installed."""
_HISTORY = "-7days"
_HISTORY_LINES = 100

_DEVICE_FILES = (
    "class device subsystem_vendor subsystem_device current_link_speed max_link_speed"
    " current_link_width max_link_width numa_node boot_vga"
    " aer_dev_correctable aer_dev_nonfatal aer_dev_fatal"
)


class GpuPicture(Framed[Picture]):
    """All data of the cards that needs no load, with or without a driver."""

    def command(self, root: str = "") -> str:
        """Build the probe.

        Args:
            root: prefix of /sys, /proc, /lib and /boot; for tests.
        """
        root = root and quote(root)
        fields = " ".join(SMI_FIELDS.values())
        questions = {
            # This runs first: it loads an installed driver. It requests only fields that its own
            # help lists, because one unknown field makes it fail.
            "smi": (
                "command -v nvidia-smi >/dev/null && {"
                ' known=$(timeout --kill-after=5 20 nvidia-smi --help-query-gpu); fields="";'
                f' for field in {fields}; do case $known in *"\\"$field\\""*)'
                ' fields="$fields,$field";; esac; done; fields=${fields:-,index,pci.bus_id};'
                ' fields=${fields#,}; echo "fields $fields";'
                f' {SMI} --query-gpu="$fields" --format=csv,noheader,nounits 2>&1; smi=$?;'
                ' echo; echo "exit $smi"; }'
            ),
            "topology": f'[ "$smi" = 0 ] && {SMI} topo -m',
            "pci": (
                f"for path in {root}/sys/bus/pci/devices/*; do"
                ' read -r vendor <"$path/vendor" && [ "$vendor" = 0x10de ] || continue;'
                ' read -r class <"$path/class"; case $class in 0x0300*|0x0302*|0x0680*) ;;'
                ' *) continue;; esac; echo "device=${path##*/}";'
                f' (cd "$path" && grep -H "" {_DEVICE_FILES};'
                " for link in driver iommu_group; do"
                ' to=$(readlink $link) && echo "$link:${to##*/}"; done); done'
            ),
            "loaded": f"cat {root}/sys/module/nvidia/version",
            "loaded-flavour": f"cat {root}/proc/driver/nvidia/version",
            "running-kernel": f"cat {root}/proc/sys/kernel/osrelease",
            "newest-kernel": f'newest={gpu_picture.newest_kernel(root)}; echo "$newest"',
            "on-disk": gpu_picture.ON_DISK,
            "library": gpu_picture.LIBRARY,
            "nouveau": f"ls -d {root}/sys/module/nouveau",
            "secure-boot": f"od -An -tu1 {root}/sys/firmware/efi/efivars/{_SECURE_BOOT}",
            "boot": f"cat {root}/proc/sys/kernel/random/boot_id",
            # Not --dmesg, which means this boot only.
            "journal": (
                "timeout --kill-after=5 30 journalctl --quiet --no-pager --output=json"
                f" --output-fields=MESSAGE,_BOOT_ID --since={_HISTORY} _TRANSPORT=kernel"
                " | grep -e 'NVRM: Xid' -e 'fallen off the bus'"
                f" | tail -n {_HISTORY_LINES}"
            ),
        }
        # The PATH of a login other than root may lack the directories of modinfo and ldconfig.
        return f"PATH=$PATH:/usr/sbin:/sbin; {sections.probe(questions)}"

    @staticmethod
    def default() -> Picture:
        """The machine has nothing of NVIDIA."""
        return Picture()

    def process(self, output: list[str]) -> Picture:
        """Parse the probe's output."""
        return gpu_picture.parse(sections.answers(output))


class GpuSamples(Framed[Samples]):
    """Samples of the cards over some seconds, under load or idle.

    The command contains the program and this controller's NVML bindings, so that the host needs
    only Python 3.
    """

    def command(self, seconds: float = 5.0) -> str:
        """Build the probe, which watches for ``seconds``."""
        return (
            f"timeout --kill-after=5 {seconds + 60:.0f}"
            f" python3 -I -c {quote(_program())} {seconds} 2>&1; true"
        )

    @staticmethod
    def default() -> Samples:
        """Nothing could be read."""
        return Samples(error="the probe printed nothing")

    def process(self, output: list[str]) -> Samples:
        """Parse the probe's output."""
        return gpu_samples.parse(output)


@cache
def _program() -> str:
    """The program with its bindings as one line of Python, 70 kB; the kernel allows 128 KiB."""
    program = (
        "import sys, types\n"
        "sys.modules['pynvml'] = pynvml = types.ModuleType('pynvml')\n"
        f"exec({inspect.getsource(pynvml)!r}, pynvml.__dict__)\n"
        f"exec({text_of(gpu_samples)!r})\n"
    )
    packed = base64.b64encode(zlib.compress(program.encode(), 9)).decode()
    return f'import base64, zlib; exec(zlib.decompress(base64.b64decode("{packed}")))'
