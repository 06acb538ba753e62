"""Where the configuration of routers, clouds and the ledger is on a host."""

from __future__ import annotations

from facts.places import CONFIGURATION

CONFIGURATIONS = f"{CONFIGURATION}/router"
CLOUDS_CONFIGURATIONS = f"{CONFIGURATION}/clouds"
LEDGER_FOLDER = f"{CONFIGURATION}/ledger"
