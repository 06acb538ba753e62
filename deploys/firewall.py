"""The firewall: only declared ports are open, for programs and containers."""

from __future__ import annotations

from pyinfra.api.deploy import deploy

from facts.firewall import BLOCK_BEGIN, BLOCK_END, GUARD
from holdfast.firewall import DOCKER_USER_SCRIPT, programs
from holdfast.render import render
from holdfast.settings import HostSettings
from operations import packages, program, ufw, units
from operations.host_files import HostDirectory, HostFile
from operations.units import Unit


@deploy("Firewall")
def apply(settings: HostSettings) -> None:
    """Install ufw with the declared rules, and guard the ports that Docker publishes."""
    # ufw's package conflicts with iptables-persistent, which would load old rules at boot.
    packages.present(
        name="Install ufw, and what guards it while it loads",
        packages=["ufw", "nftables", packages.PYTHON],
    )
    markers = {"begin": BLOCK_BEGIN, "end": BLOCK_END}
    rollback, watch = programs()
    program.place(
        what="the firewall's guards",
        programs=[rollback, watch],
        directories=[HostDirectory("/usr/local/lib/holdfast")],
        files=[
            HostFile(
                DOCKER_USER_SCRIPT,
                render("firewall/docker-user.j2", guard=GUARD, **markers),
                mode="755",
                validate="sh -n {}",
            ),
        ],
        # The program's path in older versions of Holdfast.
        absent=["/usr/local/lib/holdfast/firewall-rollback"],
    )
    units.settle(
        name="Have the firewall load at boot, and watch it",
        units=[
            # Debian's nftables.service flushes all tables when it starts or stops.
            Unit("nftables.service", masked=True),
            *program.settled([rollback]),
            Unit("ufw.service"),
            *program.settled([watch]),
        ],
    )
    ufw.enforce(name="Enforce the firewall", settings=settings)


def withdraw_lan_ssh(settings: HostSettings) -> None:
    """Close SSH on the LAN after a login over the tailnet, unless the inventory keeps it open."""
    if settings.ssh.lan_access == "until-tailnet" and settings.tailnet is not None:
        ufw.withdraw_lan_ssh(name="Withdraw SSH from the LAN", settings=settings)
