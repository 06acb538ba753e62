"""The services' users, where a drill's machine cannot take the ground that would make them."""

from __future__ import annotations

from pyinfra.operations import server

from holdfast.base import service_users
from holdfast.settings import HostSettings


def make(settings: HostSettings) -> None:
    """Make every user that a declared service runs as."""
    for user in service_users(settings):
        server.user(  # noqa: S604
            name=f"Make the account {user}",
            user=user,
            home="/nonexistent",
            ensure_home=False,
            shell="/usr/sbin/nologin",
            system=True,
        )
