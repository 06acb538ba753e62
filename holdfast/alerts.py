"""Alerts of failed units, as files on the host until another program forwards them."""

from __future__ import annotations

from holdfast.sandbox import Directive
from holdfast.service import Program
from holdfast.settings import Service

ALERTS = "/run/holdfast/alerts"
"""The folder with one file for each failed unit, with the time; the operator removes it."""

NOTIFY = Program(
    service=Service(name="notify", unit="holdfast-notify@.service", user="root", tier="T1"),
    description="Holdfast: record that %i failed",
    kind="oneshot",
    command=(
        *("/bin/sh", "-c"),
        f'date --iso-8601=seconds > {ALERTS}/%i && echo "<3>%i has failed; read: journalctl -u %i"',
    ),
    runtime="holdfast/alerts",
    runtime_mode="0755",
    start_seconds=60,
    tuned=(
        Directive(
            *("RuntimeDirectoryPreserve", "yes"),
            "The alert stays until an operator removes it, or the machine restarts.",
        ),
    ),
    isolated=True,
    # It would call itself.
    alerts=False,
)
"""Records an alert; every other program names it as `holdfast.service.ON_FAILURE`."""
