"""The policy of a tailnet, which says who may call what, for its control server.

One document covers all hosts of an inventory. It follows from the same declarations as each host's
own rules. Tailscale and headscale (0.29 or newer) accept it. They deny everything else.
"""

from __future__ import annotations

from typing import Any

from holdfast.refusal import Refusal, Refused
from holdfast.registry import tailnet_claims
from holdfast.settings import HostSettings

EVERYBODY = ("autogroup:member", "autogroup:tagged")
"""Every machine of the tailnet, of a user or tagged; ``*`` would also allow shared machines."""

Hosts = dict[str, HostSettings]
Door = tuple[str, str, int, tuple[str, ...]]
"""A tag, a protocol, a port of its hosts, and who may call it."""


def _members(hosts: Hosts) -> Hosts:
    return {name: settings for name, settings in hosts.items() if settings.tailnet}


def tags_of(settings: HostSettings) -> list[str]:
    """The tags of a host; none without a tailnet."""
    return settings.tailnet.tags if settings.tailnet else []


def groups_of(hosts: Hosts) -> dict[str, list[str]]:
    """Every declared group and its members."""
    found: dict[str, list[str]] = {}
    for settings in hosts.values():
        found |= settings.tailnet.groups if settings.tailnet else {}
    return dict(sorted(found.items()))


def known_tags(hosts: Hosts) -> list[str]:
    """Every declared tag: the hosts' own, and those of other machines."""
    found: set[str] = set()
    for settings in hosts.values():
        found |= {*tags_of(settings), *(settings.tailnet.other_tags if settings.tailnet else ())}
    return sorted(found)


def tag_of(settings: HostSettings, hosts: Hosts) -> str | None:
    """The tag that identifies a host in the policy: the one that the fewest hosts share."""
    shared = [tag for other in hosts.values() for tag in tags_of(other)]
    return min(tags_of(settings), key=shared.count, default=None)


def server_of(settings: HostSettings) -> str | None:
    """The control server of a host's tailnet; None for Tailscale's own."""
    return settings.tailnet.control_server if settings.tailnet else None


def document(hosts: Hosts) -> dict[str, Any]:
    """The policy of the tailnet of these hosts.

    Raises:
        Refused: there is no tailnet, there are several, or a host has no tag.
    """
    members = _members(hosts)
    first = next(iter(members), "inventory")
    refusals = []
    if not members:
        wrong = "no host declares a tailnet"
        refusals.append(Refusal(first, "tailnet", None, wrong, "declare tailnet"))
    for host, settings in members.items():
        if not tags_of(settings):
            wrong = "a policy identifies a host by its tag"
            refusals.append(
                Refusal(host, "tailnet.tags", [], wrong, "give it one such as tag:rack")
            )
        if server_of(settings) != server_of(members[first]):
            wrong = f"{first} is on another tailnet, and a policy covers one only"
            mend = "keep them in two inventories"
            server = server_of(settings)
            refusals.append(Refusal(host, "tailnet.control_server", server, wrong, mend))
    if refusals:
        raise Refused(refusals)
    doors: list[Door] = sorted(
        {
            (tag, claim.protocol, claim.port, claim.callers)
            for settings in members.values()
            if (tag := tag_of(settings, members))
            for claim in tailnet_claims(settings)
        }
    )
    granted: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for tag, protocol, port, callers in doors:
        granted.setdefault((tag, callers or EVERYBODY), []).append(f"{protocol}:{port}")
    return {
        "groups": groups_of(members),
        # Only the control server's administrator may assign tags.
        "tagOwners": {tag: [] for tag in known_tags(members)},
        "grants": [
            {"src": list(callers), "dst": [tag], "ip": ports}
            for (tag, callers), ports in granted.items()
        ],
        "tests": _tests(members, doors),
    }


def _tests(hosts: Hosts, doors: list[Door]) -> list[dict[str, Any]]:
    """The tests of the policy, which the control server runs: who is accepted, and who denied."""
    groups = groups_of(hosts)
    people = {person for group in groups.values() for person in group}
    people |= {caller for door in doors for caller in door[3] if ":" not in caller}
    unused = next(port for port in range(1, 65536) if port not in {door[2] for door in doors})
    tests = []
    for subject in [*known_tags(hosts), *sorted(people)]:
        for protocol in ("tcp", "udp"):
            said: dict[str, list[str]] = {"accept": [], "deny": []}
            for tag, spoken, port, callers in doors:
                verdict = _verdict(subject, callers, groups, hosts)
                if spoken == protocol and verdict:
                    said[verdict].append(f"{tag}:{port}")
            if protocol == "tcp":
                said["deny"] += sorted({f"{door[0]}:{unused}" for door in doors})
            if any(said.values()):
                kept = {verdict: ports for verdict, ports in said.items() if ports}
                tests.append({"src": subject, "proto": protocol, **kept})
    return tests


def _verdict(
    subject: str, callers: tuple[str, ...], groups: dict[str, list[str]], hosts: Hosts
) -> str | None:
    """The verdict on a tag or user that calls; None if another of its tags may be accepted."""
    named = {subject, *(group for group, people in groups.items() if subject in people)}
    if not callers or named & {*callers}:
        return "accept"
    beside = {tag for host in hosts.values() if subject in tags_of(host) for tag in tags_of(host)}
    return None if beside & {*callers} else "deny"
