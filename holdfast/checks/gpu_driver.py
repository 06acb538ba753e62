"""The GPU driver: errors that are visible without the machine."""

from __future__ import annotations

from holdfast.checks.finding import Finding, Findings
from holdfast.gpu.driver import Unplannable, plan
from holdfast.settings import HostSettings


def driver(settings: HostSettings) -> Findings:
    """A driver that does not support the declared cards, or an unused mirror."""
    gpus = settings.gpus
    if gpus is None:
        return
    try:
        planned = plan(gpus, settings.distribution)
    except Unplannable as no:
        yield Finding(f"gpus.{no.key}", no.value, no.wrong, no.mend)
        return
    mirror = gpus.driver.repository
    if mirror and planned.source != "vendor":
        why = (
            f"{settings.distribution}'s own packages drive these cards"
            if planned.source
            else "every card belongs to a guest"
        )
        yield Finding(
            "gpus.driver.repository.url",
            mirror.url,
            f"{why}, and NVIDIA's repository is not used",
            "remove it, or write driver.source 'vendor'",
        )
