"""Alerts of failed units, as files on the host until another program forwards them."""

from __future__ import annotations

from facts.places import SYSTEM
from holdfast.render import render
from holdfast.sandbox import sandbox
from holdfast.settings import Service

UNIT_PATH = f"{SYSTEM}/holdfast-notify@.service"
ON_FAILURE = "holdfast-notify@%n.service"
"""The value of a unit's ``OnFailure=``."""
ALERTS = "/run/holdfast/alerts"
"""The folder with one file for each failed unit, with the time; the operator removes it."""


def notify_unit() -> str:
    """The text of the unit that records an alert."""
    service = Service(name="notify", unit="holdfast-notify@.service", user="root", tier="T1")
    return render("service/holdfast-notify@.service.j2", sandbox=sandbox(service, isolated=True))
