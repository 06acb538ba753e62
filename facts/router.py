"""All files of routers, queues, clouds and the ledger on a host, declared or not."""

from __future__ import annotations

from facts.framed import Framed
from facts.places import CONFIGURATION, CREDENTIALS, SYSTEM

CONFIGURATIONS = f"{CONFIGURATION}/router"
CLOUDS_CONFIGURATIONS = f"{CONFIGURATION}/clouds"
LEDGER_FOLDER = f"{CONFIGURATION}/ledger"


class RouterFiles(Framed[list[str]]):
    """Paths of every unit, configuration and key of a router, its queue, its clouds and the
    ledger. One command."""

    def command(self) -> str:
        """Build the probe."""
        return (
            # Drop-ins belong to their owner.
            f"ls -dp {SYSTEM}/holdfast-router-*.* {SYSTEM}/holdfast-queue-*.*"
            f" {SYSTEM}/holdfast-clouds-*.* {SYSTEM}/holdfast-ledger*.*"
            f" {CREDENTIALS}/holdfast-router-* {CREDENTIALS}/holdfast-clouds-*"
            f" {CONFIGURATIONS}/*.cfg {CLOUDS_CONFIGURATIONS}/*.json {LEDGER_FOLDER}/*"
            " 2>/dev/null; true"
        )

    @staticmethod
    def default() -> list[str]:
        """No files."""
        return []

    def process(self, output: list[str]) -> list[str]:
        """One path a line."""
        return [path for path in output if not path.endswith("/")]
