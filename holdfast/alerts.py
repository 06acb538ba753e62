"""Where a failed unit's alert goes, until a host has something that carries it further."""

from __future__ import annotations

from facts.places import SYSTEM
from holdfast.render import render
from holdfast.sandbox import sandbox
from holdfast.settings import Service

UNIT_PATH = f"{SYSTEM}/holdfast-notify@.service"
ON_FAILURE = "holdfast-notify@%n.service"
"""For a unit's ``OnFailure=``."""
ALERTS = "/run/holdfast/alerts"
"""One file per unit that failed, holding the time; removed by the person who has dealt with it."""


def notify_unit() -> str:
    """The text of the unit that records an alert."""
    service = Service(name="notify", unit="holdfast-notify@.service", user="root", tier="T1")
    return render("service/holdfast-notify@.service.j2", sandbox=sandbox(service, isolated=True))
