"""Logins: by key, by whom the inventory names, with algorithms that are not broken."""

from __future__ import annotations

from pyinfra.api.deploy import deploy

from holdfast.settings import HostSettings
from operations import sshd


@deploy("SSH")
def apply(settings: HostSettings) -> None:
    """Bring sshd to the settings, and prove by a new login that no user is locked out."""
    sshd.settled(name="Configure sshd and prove a new login", settings=settings)
