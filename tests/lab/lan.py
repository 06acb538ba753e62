"""A container machine's LAN: a network namespace that is the hostile neighbour, and the switch too.

`Neighbour.namespace` is what a `ContainerMachine` takes as the far side of its cable eth1. The
neighbour is at 10.77.0.20 and fd77::20 as the one of the virtual rack is, on a card of that name.
Its programs are the controller's own: nmap and curl.
"""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from tests.lab.agent import ENVIRONMENT, Completed
from tests.lab.machine import COMMAND_TIMEOUT_SECONDS, LAN_IPV4, LAN_IPV6, Shell
from tests.lab.process import output_of

NUMBER = 20

# What the controller filters is not asked of a bridge's frames here; a kernel may not offer it.
_WIRE = f"""
for asked in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -e "$asked" ] || echo 0 > "$asked"; done
ip link set lo up
ip link add cable type bridge
ip link add eth1 type veth peer name port
ip link set port master cable up
ip address add {LAN_IPV4}.{NUMBER}/24 dev eth1
ip address add {LAN_IPV6}:{NUMBER}/64 dev eth1 nodad
ip link set eth1 up
ip link set cable up
"""


class Neighbour(Shell):
    """The neighbour and the LAN that it is on; it needs root."""

    name = "neighbour"

    def __init__(self, folder: Path) -> None:
        """``folder``: of the lab, which tells this LAN from another's."""
        digest = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()
        self.namespace = f"holdfast-lan-{digest[:8]}"

    def start(self) -> None:
        """Make the LAN and the neighbour on it, without what an earlier one left."""
        self.stop()
        output_of(["ip", "netns", "add", self.namespace])
        self.succeed(f"set -e\n{_WIRE}")

    def stop(self) -> None:
        """Remove the LAN; a machine on it keeps a card without a cable until its next boot."""
        if Path("/run/netns", self.namespace).exists():
            output_of(["ip", "netns", "delete", self.namespace])

    def run(
        self,
        command: str,
        *,
        stdin: bytes = b"",
        timeout_seconds: float = COMMAND_TIMEOUT_SECONDS,
    ) -> Completed:
        """Run a bash command as root in the neighbour's network; see `Shell.run`."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.namespace, "env", "-i", *ENVIRONMENT]
            + ["timeout", "--kill-after=5", f"{timeout_seconds:.0f}", "/bin/bash", "-c", command],
            input=stdin,
            capture_output=True,
            check=False,
        )
        out, errors = (each.decode(errors="replace") for each in (done.stdout, done.stderr))
        return Completed(done.returncode, out, errors)

    def cut(self) -> None:
        """Drop every frame on the LAN; the machines on it do not see their cards lose a cable."""
        self.succeed("ip link set cable down")

    def heal(self) -> None:
        """Undo `cut`."""
        self.succeed("ip link set cable up")
