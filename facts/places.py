"""The paths on every host, which facts read and deploys write."""

from __future__ import annotations

SYSTEM = "/etc/systemd/system"
"""Units and drop-ins of this host's own."""
CONFIGURATION = "/etc/holdfast"
"""Configuration files, in a folder for each capability."""
CREDENTIALS = f"{CONFIGURATION}/credentials"
"""Secrets, readable by root only; systemd passes each unit its own."""
PROGRAMS = "/opt/holdfast"
"""Programs are in ``<PROGRAMS>/<program>/<version>``."""
STATE = "/var/lib/holdfast"
"""State that outlives a restart, in a folder for each capability."""
