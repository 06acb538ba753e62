"""SSH logins: with keys only, for the declared users, with strong algorithms."""

from __future__ import annotations

from pyinfra.api.deploy import deploy

from facts.places import SYSTEM
from holdfast import alerts, ssh
from holdfast.settings import HostSettings
from operations import host_files, sshd, units
from operations.host_files import HostDirectory, HostFile
from operations.units import Unit


@deploy("SSH")
def apply(settings: HostSettings) -> None:
    """Configure sshd, and prove with a new login that no user is locked out."""
    host_files.place(
        name="Write the way back of SSH",
        directories=[HostDirectory("/usr/local/lib/holdfast")],
        files=[
            HostFile(ssh.ROLLBACK_SCRIPT, ssh.rollback_script(), mode="755", validate="sh -n {}"),
            HostFile(f"{SYSTEM}/{ssh.ROLLBACK_UNIT}", ssh.rollback_unit()),
            HostFile(alerts.UNIT_PATH, alerts.notify_unit()),
        ],
    )
    units.settle(
        name="Have a boot undo what no login has proved",
        units=[Unit(ssh.ROLLBACK_UNIT, running=False)],
    )
    sshd.settled(name="Configure sshd and prove a new login", settings=settings)
