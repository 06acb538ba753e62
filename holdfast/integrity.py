"""Daily reports of changed programs and settings in the journal, with AIDE and debsums.

They raise no alert, because updates and deploys change these files as well. Months later they show
when a file was changed.
"""

from __future__ import annotations

from facts import places
from holdfast.render import render
from holdfast.sandbox import Directive
from holdfast.service import File, Program, Timer
from holdfast.settings import Service

PACKAGES = ["aide", "cron", "debsums"]
CONFIG = "/etc/aide/aide.conf"
DEBSUMS = "/etc/default/debsums"
STATE = f"{places.STATE}/integrity"
DATABASE = f"{STATE}/aide.db"
SERVICE = "holdfast-integrity.service"
TIMER = "holdfast-integrity.timer"


def program() -> Program:
    """What records the present state at its first run, and then reports each day's changes."""
    run = f"test -e {DATABASE} && verb=update || verb=init; exec aide --config {CONFIG} --$verb"
    return Program(
        service=Service(name="integrity", unit=SERVICE, user="root", tier="T1"),
        description="Holdfast: tell in the journal what has changed in programs and settings",
        kind="oneshot",
        command=("/bin/sh", "-c", run),
        ready=(("/bin/mv", f"{DATABASE}.new", DATABASE),),
        files=(
            File(CONFIG, render("integrity/aide.conf.j2", database=DATABASE)),
            File(DEBSUMS, render("integrity/debsums.j2")),
        ),
        state="holdfast/integrity",
        start_seconds=3600,
        tuned=(
            Directive(
                *("SuccessExitStatus", "1 2 3 4 5 6 7"),
                "New, removed or changed files: the sum of 1, 2 and 4. A report, not a failure.",
            ),
            Directive("Nice", "19"),
            Directive("CPUWeight", "20"),
            Directive("IOSchedulingClass", "idle"),
        ),
        isolated=True,
        relaxed=(
            Directive("PrivateUsers", "no", "files of every user are read"),
            Directive("CapabilityBoundingSet", "CAP_DAC_READ_SEARCH", "the same"),
            Directive("ProtectHome", "read-only", "root's SSH keys are watched"),
        ),
        timer=Timer(
            "every day",
            (
                Directive("OnCalendar", "daily"),
                Directive("RandomizedDelaySec", "1h"),
                Directive("Persistent", "true"),
            ),
        ),
    )
