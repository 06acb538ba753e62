"""Where things lie on every host, said once: facts look there and deploys write there."""

from __future__ import annotations

SYSTEM = "/etc/systemd/system"
"""Units and drop-ins of this host's own."""
CONFIGURATION = "/etc/holdfast"
"""Configuration files, in a folder for each capability."""
CREDENTIALS = f"{CONFIGURATION}/credentials"
"""Secrets, of root alone; systemd hands each unit its own."""
PROGRAMS = "/opt/holdfast"
"""Programs live in ``<PROGRAMS>/<program>/<version>``."""
STATE = "/var/lib/holdfast"
"""State that outlives a restart, in a folder for each capability."""
