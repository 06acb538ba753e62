"""Which units were given a drop-in for their tier, by this run or an earlier one."""

from __future__ import annotations

from pyinfra.api import FactBase

DROP_IN = "50-holdfast-tier.conf"
"""systemd's own wall, for a service whose unit file is not ours."""


class TierDropIns(FactBase[list[str]]):
    """Paths of the drop-ins that hold units to their tier."""

    def command(self) -> str:
        """Build the probe."""
        return f"find /etc/systemd/system -mindepth 2 -maxdepth 2 -name {DROP_IN}"

    @staticmethod
    def default() -> list[str]:
        """None."""
        return []

    def process(self, output: list[str]) -> list[str]:
        """One path a line."""
        return sorted(output)
