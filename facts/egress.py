"""The units with a drop-in for their tier, and the refused calls of services."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from facts import sections
from facts.framed import Framed
from facts.places import SYSTEM
from holdfast.host_programs.egress import COUNTER, LOG_PREFIX, TABLE

DROP_IN = "50-holdfast-tier.conf"
"""systemd's own restriction, for a service whose unit file is not ours."""


class TierDropIns(Framed[list[str]]):
    """Paths of the drop-ins that enforce the tier of units."""

    def command(self) -> str:
        """Build the probe."""
        return f"find {SYSTEM} -mindepth 2 -maxdepth 2 -name {DROP_IN}"

    @staticmethod
    def default() -> list[str]:
        """None."""
        return []

    def process(self, output: list[str]) -> list[str]:
        """One path a line."""
        return sorted(output)


@dataclass(frozen=True)
class Attempt:
    """A refused call; ``at`` as journalctl writes it, port None if there is none."""

    service: str
    at: str
    protocol: str
    address: str
    port: int | None


@dataclass(frozen=True)
class OpenSocket:
    """A Unix socket that any user of the host may open.

    ``path`` begins with @ if the socket has a name but no file. ``kind`` is one of Python's
    ``SOCK_``. ``program`` listens on it as the user ``runs_as``.
    """

    kind: str
    path: str
    program: str
    runs_as: str


_KINDS = {"u_str": "SOCK_STREAM", "u_dgr": "SOCK_DGRAM", "u_seq": "SOCK_SEQPACKET"}
_HOLDER = re.compile(r'"([^"]*)",pid=(\d+)')
_ANY_USER = "setpriv --reuid=65534 --regid=65534 --clear-groups"
"""Runs a command as Debian's account that owns no file (65534)."""
_LISTEN = "ss --no-header --all --unix --processes"
_OPENS = 'while read -r path; do if [ -w "$path" ]; then echo "$path"; fi; done'
_SOCKET_QUESTIONS = {
    "sockets": _LISTEN,
    "programs": "ps -e --no-headers -o pid:1,user:64",
    "may be opened": f"{_LISTEN} | awk '$5 ~ \"^/\" {{print $5}}' | sort --unique"
    f" | {_ANY_USER} sh -c '{_OPENS}'",
}


def _open_sockets(found: dict[str, list[str]]) -> Iterator[OpenSocket]:
    """The sockets that every user may open, from the answers to those queries."""
    owners = dict(line.split(maxsplit=1) for line in found.get("programs", []))
    opened = set(found.get("may be opened", []))
    for line in sorted(set(found.get("sockets", []))):
        kind, state, _, _, path, *rest = line.split()
        # Datagram sockets have no listeners. A socket without a file has no owner and is open to
        # all.
        listens = kind in _KINDS and (state == "LISTEN" or kind == "u_dgr")
        if listens and (path in opened or path.startswith("@")):
            holders = _HOLDER.findall(rest[-1])
            # systemd also owns sockets of other programs.
            own = [each for each in holders if each[1] != "1"] or holders or [("", "")]
            program, pid = own[0]
            yield OpenSocket(_KINDS[kind], path, program, owners.get(pid, ""))


@dataclass(frozen=True)
class Attempts:
    """Refused packets by service since the rules were loaded, and the refused calls in the journal.
    ``enforced``: the rules are in the kernel. The journal has at most twelve calls a minute for
    each service, from the last seven days. ``sockets`` are those that any user may open.
    """

    enforced: bool = False
    refused: dict[str, int] = field(default_factory=dict)
    calls: tuple[Attempt, ...] = ()
    sockets: tuple[OpenSocket, ...] = ()


_CALL = re.compile(rf"^(\S+) .*{LOG_PREFIX} (\S+): .*DST=(\S+) .*PROTO=(\S+)(?:.*DPT=(\d+))?")


class EgressAttempts(Framed[Attempts]):
    """Refused calls, and sockets through which any user can reach a program. One command."""

    def command(self) -> str:
        """Build the probe."""
        return sections.probe(
            {
                "counters": f"PATH=$PATH:/usr/sbin nft --json list counters table inet {TABLE}",
                "calls": "journalctl --quiet --no-pager --output=short-iso --since=-7days"
                f" --grep='^{LOG_PREFIX} ' _TRANSPORT=kernel | tail -n 1000",
                **_SOCKET_QUESTIONS,
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
            sockets=tuple(sorted(_open_sockets(found), key=lambda each: each.path)),
        )
