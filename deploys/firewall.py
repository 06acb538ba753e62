"""The firewall: only declared ports are open, for programs and containers."""

from __future__ import annotations

from pyinfra.api.deploy import deploy

from facts.firewall import BLOCK_BEGIN, BLOCK_END, GUARD
from facts.places import SYSTEM
from holdfast import alerts
from holdfast.firewall import DOCKER_USER_SCRIPT, ROLLBACK_UNIT, TIMER, unit_files
from holdfast.host_programs import firewall as firewall_program
from holdfast.render import render
from holdfast.settings import HostSettings
from operations import host_files, packages, ufw, units
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
    host_files.place(
        name="Write the firewall's guards",
        directories=[HostDirectory("/usr/local/lib/holdfast")],
        files=[
            HostFile(
                DOCKER_USER_SCRIPT,
                render("firewall/docker-user.j2", guard=GUARD, **markers),
                mode="755",
                validate="sh -n {}",
            ),
            host_files.program(firewall_program),
            HostFile(alerts.UNIT_PATH, alerts.notify_unit()),
            *(HostFile(path, text) for path, text in unit_files().items()),
        ],
        # The program's path in older versions of Holdfast.
        absent=["/usr/local/lib/holdfast/firewall-rollback"],
    )
    units.settle(
        name="Have the firewall load at boot, and watch it",
        units=[
            # Debian's nftables.service flushes all tables when it starts or stops.
            Unit("nftables.service", masked=True),
            Unit(ROLLBACK_UNIT, running=False),
            Unit("ufw.service"),
            Unit(TIMER, restart_after=[f"{SYSTEM}/{TIMER}"]),
        ],
    )
    ufw.enforce(name="Enforce the firewall", settings=settings)


def withdraw_lan_ssh(settings: HostSettings) -> None:
    """Close SSH on the LAN after a login over the tailnet, unless the inventory keeps it open."""
    if settings.ssh.lan_access == "until-tailnet" and settings.tailnet is not None:
        ufw.withdraw_lan_ssh(name="Withdraw SSH from the LAN", settings=settings)
