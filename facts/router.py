"""What of routers, and of what stands behind them, lies on a host, declared or not."""

from __future__ import annotations

from facts.framed import Framed
from holdfast import clouds, ledger
from holdfast.router import CONFIGURATIONS, CREDENTIALS, SYSTEM


class RouterFiles(Framed[list[str]]):
    """Paths of every unit, configuration and key of a router, its queue, its clouds and the
    ledger. One command."""

    def command(self) -> str:
        """Build the probe."""
        return (
            # Drop-ins are their owner's.
            f"ls -dp {SYSTEM}/holdfast-router-*.* {SYSTEM}/holdfast-queue-*.*"
            f" {SYSTEM}/holdfast-clouds-*.* {SYSTEM}/holdfast-ledger*.*"
            f" {CREDENTIALS}/holdfast-router-* {CREDENTIALS}/holdfast-clouds-*"
            f" {CONFIGURATIONS}/*.cfg {clouds.CONFIGURATIONS}/*.json {ledger.FOLDER}/*"
            " 2>/dev/null; true"
        )

    @staticmethod
    def default() -> list[str]:
        """Nothing is there."""
        return []

    def process(self, output: list[str]) -> list[str]:
        """One path a line."""
        return [path for path in output if not path.endswith("/")]
