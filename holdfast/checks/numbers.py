"""Numbers: in the unit of their key."""

from __future__ import annotations

from holdfast.checks.finding import Finding, Findings
from holdfast.grammar import unit_of, walk
from holdfast.settings import HostSettings


def numbers(settings: HostSettings) -> Findings:
    """Numbers so large that they are probably in another unit, such as bytes."""
    for key, value, _ in walk(settings, HostSettings):
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        unit, most = unit_of(key)
        if value > most:
            counted = f" {unit}" if unit else ""
            yield Finding(
                key,
                value,
                f"this is more than the maximum of {most:,}{counted}",
                f"write it in {unit}, as the key says" if unit else "write less",
            )
