"""Which distribution packages are installed."""

from __future__ import annotations

import shlex

from facts.framed import Framed


class InstalledPackages(Framed[dict[str, str]]):
    """Versions of the named packages that are completely installed, by name."""

    def command(self, packages: list[str]) -> str:
        """Build the probe for ``packages``."""
        quoted = " ".join(map(shlex.quote, packages))
        # dpkg-query fails if a package is unknown, which is an answer here, not an error.
        return (
            "dpkg-query --show --showformat='${db:Status-Status} ${Package} ${Version}\\n'"
            f" {quoted} 2>/dev/null; true"
        )

    @staticmethod
    def default() -> dict[str, str]:
        """None of them."""
        return {}

    def process(self, output: list[str]) -> dict[str, str]:
        """Parse the probe's output."""
        rows = (line.split(" ", 2) for line in output)
        return {name: version for status, name, version in rows if status == "installed"}
