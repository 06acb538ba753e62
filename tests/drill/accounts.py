"""The services' users, for drills whose machine does not get the base that creates them."""

from __future__ import annotations

from pyinfra.operations import server

from holdfast.base import service_users
from holdfast.settings import HostSettings


def make(settings: HostSettings) -> None:
    """Create every user of a declared service."""
    for user in service_users(settings):
        server.user(  # noqa: S604
            name=f"Make the account {user}",
            user=user,
            home="/nonexistent",
            ensure_home=False,
            shell="/usr/sbin/nologin",
            system=True,
        )
