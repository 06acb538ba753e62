"""The firewall: nothing gets in but what is declared, to programs or to containers."""

from __future__ import annotations

from pyinfra.api.deploy import deploy

from facts.firewall import BLOCK_BEGIN, BLOCK_END, GUARD, ROLLBACK_STATE
from holdfast.firewall import (
    DOCKER_USER_SCRIPT,
    ROLLBACK_SCRIPT,
    ROLLBACK_UNIT,
    rollback_unit,
)
from holdfast.render import render
from holdfast.settings import HostSettings
from operations import host_files, packages, ufw, units
from operations.host_files import HostDirectory, HostFile
from operations.units import Unit


@deploy("Firewall")
def apply(settings: HostSettings) -> None:
    """Install ufw, give it the declared rules, and guard what Docker publishes."""
    # ufw's package conflicts with iptables-persistent, which would bring old rules back at boot.
    packages.present(name="Install ufw", packages=["ufw"])
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
            HostFile(
                ROLLBACK_SCRIPT,
                render(
                    "firewall/firewall-rollback.j2",
                    state=ROLLBACK_STATE,
                    docker_user=DOCKER_USER_SCRIPT,
                    unit=ROLLBACK_UNIT,
                    **markers,
                ),
                mode="755",
                validate="sh -n {}",
            ),
            HostFile(f"/etc/systemd/system/{ROLLBACK_UNIT}", rollback_unit()),
        ],
    )
    units.settle(
        name="Have the firewall load at boot",
        units=[
            # Debian's nftables.service flushes every rule of every table when it starts or stops.
            Unit("nftables.service", masked=True),
            Unit(ROLLBACK_UNIT, running=False),
            Unit("ufw.service"),
        ],
    )
    ufw.enforce(name="Enforce the firewall", settings=settings)


def withdraw_lan_ssh(settings: HostSettings) -> None:
    """Close SSH on the LAN after a login over the tailnet, unless the inventory keeps it open."""
    if settings.ssh.lan_access == "until-tailnet" and settings.tailnet is not None:
        ufw.withdraw_lan_ssh(name="Withdraw SSH from the LAN", settings=settings)
