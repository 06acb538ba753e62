"""Where things lie on every host, said once: facts look there and deploys write there."""

from __future__ import annotations

SYSTEM = "/etc/systemd/system"
"""Units and drop-ins of this host's own."""
CONFIGURATION = "/etc/holdfast"
"""What the capabilities are told, a folder each."""
CREDENTIALS = f"{CONFIGURATION}/credentials"
"""Secrets, of root alone; systemd hands each unit its own."""
PROGRAMS = "/opt/holdfast"
"""Programs live in ``<PROGRAMS>/<program>/<version>``."""
STATE = "/var/lib/holdfast"
"""What the capabilities keep, a folder each."""
