"""SSH logins: with keys only, for the declared users, with strong algorithms."""

from __future__ import annotations

from pyinfra.api.deploy import deploy

from holdfast import ssh
from holdfast.settings import HostSettings
from operations import program, sshd
from operations.host_files import HostDirectory


@deploy("SSH")
def apply(settings: HostSettings) -> None:
    """Configure sshd, and prove with a new login that no user is locked out."""
    way_back = [ssh.rollback()]
    program.place(
        what="the way back of SSH",
        programs=way_back,
        directories=[HostDirectory("/usr/local/lib/holdfast")],
    )
    program.settle("Have a boot undo what no login has proved", way_back)
    sshd.settled(name="Configure sshd and prove a new login", settings=settings)
