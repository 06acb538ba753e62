"""Which units were given a drop-in for their tier, and who tried to leave."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from facts import sections
from facts.framed import Framed
from holdfast.egress_program import COUNTER, LOG_PREFIX, TABLE

DROP_IN = "50-holdfast-tier.conf"
"""systemd's own wall, for a service whose unit file is not ours."""


class TierDropIns(Framed[list[str]]):
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


@dataclass(frozen=True)
class Attempt:
    """A call that was refused; ``at`` as journalctl writes it, port None where there is none."""

    service: str
    at: str
    protocol: str
    address: str
    port: int | None


@dataclass(frozen=True)
class Attempts:
    """Refused packets by service since the rules were loaded, and the calls the journal holds.

    ``enforced`` tells that the rules are in the kernel. The journal has at most twelve calls a
    minute of each service, of the last seven days.
    """

    enforced: bool = False
    refused: dict[str, int] = field(default_factory=dict)
    calls: tuple[Attempt, ...] = ()


_CALL = re.compile(rf"^(\S+) .*{LOG_PREFIX} (\S+): .*DST=(\S+) .*PROTO=(\S+)(?:.*DPT=(\d+))?")


class EgressAttempts(Framed[Attempts]):
    """Who tried to leave. One command."""

    def command(self) -> str:
        """Build the probe."""
        return sections.probe(
            {
                "counters": f"PATH=$PATH:/usr/sbin nft --json list counters table inet {TABLE}",
                "calls": "journalctl --quiet --no-pager --output=short-iso --since=-7days"
                f" --grep='^{LOG_PREFIX} ' _TRANSPORT=kernel | tail -n 1000",
            }
        )

    @staticmethod
    def default() -> Attempts:
        """No rules."""
        return Attempts()

    def process(self, output: list[str]) -> Attempts:
        """Parse the probe's output."""
        found = sections.answers(output)
        told = "".join(found.get("counters", []))
        counters = [
            item["counter"]
            for item in json.loads(told or "{}").get("nftables", [])
            if "counter" in item
        ]
        calls = [match for line in found.get("calls", []) if (match := _CALL.match(line))]
        return Attempts(
            enforced=bool(told),
            refused={each["name"].removeprefix(COUNTER): each["packets"] for each in counters},
            calls=tuple(
                Attempt(service, at, protocol.lower(), address, int(port) if port else None)
                for at, service, address, protocol, port in (match.groups() for match in calls)
            ),
        )
