"""Daily reports of changed programs and settings in the journal, with AIDE and debsums.

They raise no alert, because updates and deploys change these files as well. Months later they show
when a file was changed.
"""

from __future__ import annotations

from facts import places
from facts.places import SYSTEM
from holdfast import alerts
from holdfast.render import render
from holdfast.sandbox import Directive, sandbox
from holdfast.settings import Service

PACKAGES = ["aide", "cron", "debsums"]
CONFIG = "/etc/aide/aide.conf"
DEBSUMS = "/etc/default/debsums"
STATE = f"{places.STATE}/integrity"
DATABASE = f"{STATE}/aide.db"
SERVICE = "holdfast-integrity.service"
TIMER = "holdfast-integrity.timer"


def config_files() -> dict[str, str]:
    """Path to text of the configuration of AIDE and debsums."""
    return {
        CONFIG: render("integrity/aide.conf.j2", database=DATABASE),
        DEBSUMS: render("integrity/debsums.j2"),
    }


def unit_files() -> dict[str, str]:
    """Path to text of the units."""
    service = Service(name="integrity", unit=SERVICE, user="root", tier="T1")
    relaxed = [
        Directive("PrivateUsers", "no", "files of every user are read"),
        Directive("CapabilityBoundingSet", "CAP_DAC_READ_SEARCH", "the same"),
        Directive("ProtectHome", "read-only", "root's SSH keys are watched"),
    ]
    return {
        f"{SYSTEM}/{SERVICE}": render(
            "integrity/holdfast-integrity.service.j2",
            config=CONFIG,
            database=DATABASE,
            on_failure=alerts.ON_FAILURE,
            sandbox=sandbox(service, isolated=True, relaxed=relaxed),
        ),
        f"{SYSTEM}/{TIMER}": render("integrity/holdfast-integrity.timer.j2"),
    }
