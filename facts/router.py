"""What of routers and their queues lies on a host, declared or not."""

from __future__ import annotations

from pyinfra.api import FactBase

from holdfast.router import CONFIGURATIONS, CREDENTIALS, SYSTEM


class RouterFiles(FactBase[list[str]]):
    """Paths of every unit, configuration and key of a router or its queue. One command."""

    def command(self) -> str:
        """Build the probe."""
        return (
            f"ls {SYSTEM}/holdfast-router-*.* {SYSTEM}/holdfast-queue-*.*"
            f" {CREDENTIALS}/holdfast-router-* {CONFIGURATIONS}/*.cfg 2>/dev/null; true"
        )

    @staticmethod
    def default() -> list[str]:
        """Nothing is there."""
        return []

    def process(self, output: list[str]) -> list[str]:
        """One path a line."""
        return list(output)
