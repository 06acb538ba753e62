"""The state of a host's GPU driver packages and services, in one command."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field

from facts import sections
from facts.framed import Framed
from facts.places import STATE

REBOOT_MARKER = f"{STATE}/gpu-reboot"
"""Contains the reason for the last reboot, until a deploy sees that the reboot has helped."""


@dataclass(frozen=True)
class DriverHost:
    """Packages and services of the driver.

    ``versions`` are those of the requested packages that are installed. ``idle`` are the requested
    services that do not run, or would not run after a boot. ``stale_initramfs``: the newest
    kernel's initramfs is older than the module configuration. ``rebooted_for`` is the text of the
    marker, empty if there is none.
    """

    versions: dict[str, str] = field(default_factory=dict)
    idle: tuple[str, ...] = ()
    stale_initramfs: bool = False
    rebooted_for: str = ""
    key_enrolled: bool = False


class GpuDriverHost(Framed[DriverHost]):
    """The driver's packages and services on this machine."""

    def command(
        self,
        packages: list[str],
        units: list[str],
        configuration: str,
        root: str = "",
    ) -> str:
        """Build the probe.

        Args:
            packages: whose versions are requested.
            units: services that should run, now and after a boot.
            configuration: a file of /etc/modprobe.d that is copied into the initramfs.
            root: prefix of /boot and the marker; for tests.
        """
        root = root and shlex.quote(root)
        names = " ".join(map(shlex.quote, packages)) or "-"
        services = " ".join(map(shlex.quote, units))
        return sections.probe(
            {
                "versions": "dpkg-query --show"
                f" --showformat='${{db:Status-Status}} ${{Package}} ${{Version}}\\n' {names}",
                "idle": f"for unit in {services}; do"
                ' systemctl --quiet is-active "$unit" && systemctl --quiet is-enabled "$unit"'
                ' || echo "$unit"; done',
                "initramfs": f"newest=$(ls {root}/boot/initrd.img-* | sort -V | tail -n 1);"
                f' [ "$newest" ] && [ {root}{shlex.quote(configuration)} -nt "$newest" ]'
                " && echo stale",
                "marker": f"cat {root}{REBOOT_MARKER}",
                # DKMS's key in Debian, and in Ubuntu.
                "key": "for key in /var/lib/dkms/mok.pub /var/lib/shim-signed/mok/MOK.der; do"
                ' mokutil --test-key "$key" | grep "already enrolled"; done',
            }
        )

    @staticmethod
    def default() -> DriverHost:
        """Nothing is installed."""
        return DriverHost()

    def process(self, output: list[str]) -> DriverHost:
        """Parse the probe's output."""
        found = sections.answers(output)
        rows = (line.split(" ", 2) for line in found.get("versions", []))
        return DriverHost(
            versions={name: version for status, name, version in rows if status == "installed"},
            idle=tuple(found.get("idle", [])),
            stale_initramfs=bool(found.get("initramfs")),
            rebooted_for="\n".join(found.get("marker", [])),
            key_enrolled=bool(found.get("key")),
        )
