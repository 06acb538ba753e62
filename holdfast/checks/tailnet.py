"""The tailnet: its control server, and who may call what."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from itertools import combinations

from holdfast import registry, secrets
from holdfast.checks.finding import Finding, Findings, is_loopback, nearest
from holdfast.egress import lies_within
from holdfast.engines.servers import served
from holdfast.refusal import Refusal
from holdfast.sandbox import TAILNET
from holdfast.settings import HostSettings
from holdfast.tailnet_policy import Hosts, groups_of, known_tags, server_of, tag_of, tags_of


def control_server(settings: HostSettings) -> Findings:
    """A control server that cannot be trusted, and relays that are not used."""
    tailnet = settings.tailnet
    if tailnet and tailnet.relays and not tailnet.control_server:
        yield Finding(
            "tailnet.relays",
            [relay.name for relay in tailnet.relays],
            "relays are used only with a control_server of your own",
            "remove them, or write your control_server",
        )
    url = tailnet.control_server if tailnet else None
    if url and url.startswith("http://") and not is_loopback(url):
        yield Finding(
            "tailnet.control_server",
            url,
            "a control server must not be trusted over plain http",
            "write its https URL",
        )


def auth_key(settings: HostSettings) -> Findings:
    """A key of the wrong kind, or from another control server."""
    tailnet = settings.tailnet
    secret = secrets.read(tailnet.auth_key) if tailnet and tailnet.auth_key else None
    if tailnet is None or secret is None:
        return
    kind = re.match(r"(tskey|hskey)-(?!auth-|client-)[a-z]+-", secret.get_secret_value())
    server = (tailnet.control_server or "").rpartition("://")[2].partition("/")[0]
    tailscale = not server or server.endswith(".tailscale.com")
    maker = {"tskey": True, "hskey": False}.get(secret.get_secret_value().partition("-")[0])
    if kind:
        wrong = f"a key that starts with {kind[0]} cannot join a machine"
        yield Finding("tailnet.auth_key", tailnet.auth_key, wrong, "make an auth key")
    elif maker is not None and maker is not tailscale:
        made = "Tailscale's own control server" if maker else "a headscale"
        wrong = f"this key is from {made}, and tailnet.control_server names another server"
        yield Finding("tailnet.auth_key", tailnet.auth_key, wrong, "make one there")


def tailnet_scope(key: str, scope: str, settings: HostSettings) -> Findings:
    """A program with scope 'tailnet' on a host without a tailnet."""
    if scope == "tailnet" and settings.tailnet is None:
        yield Finding(
            key, scope, "this host has no tailnet", "declare tailnet, or write 'loopback'"
        )


def callers(settings: HostSettings) -> Findings:
    """Callers of a port that the tailnet cannot reach."""
    scoped: dict[str, tuple[str, list[str]]] = {
        "ssh.callers": ("tailnet" if settings.tailnet else "none", settings.ssh.callers)
    }
    if settings.floor:
        scoped["floor.callers"] = settings.floor.scope, settings.floor.callers
    for key, _, engine in served(settings):
        scoped[f"{key}.callers"] = engine.scope, engine.callers
    for index, router in enumerate(settings.routers):
        scoped[f"routers[{index}].callers"] = router.scope, router.callers
    for index, service in enumerate(settings.services):
        for place, listen in enumerate(service.listens):
            key = f"services[{index}].listens[{place}].callers"
            scoped[key] = listen.scope, listen.callers
    for key, (scope, named) in scoped.items():
        if not named or scope == "tailnet":
            continue
        if scope == "none":
            yield Finding(key, named, "this host has no tailnet", "declare tailnet, or remove them")
        else:
            wrong = f"scope '{scope}' does not use callers"
            yield Finding(key, named, wrong, "write scope 'tailnet', or remove them")


def openings(settings: HostSettings) -> Findings:
    """Openings for the tailnet, which bypasses ufw."""
    for index, opening in enumerate(settings.firewall.openings):
        for source in opening.sources if opening.interface is None else ():
            if lies_within(source, map(ipaddress.ip_network, TAILNET)):
                yield Finding(
                    f"firewall.openings[{index}].sources",
                    source,
                    "ufw does not see traffic of the tailnet",
                    "declare a service that listens with scope 'tailnet'",
                )


def policy(hosts: Hosts) -> Iterator[Refusal]:
    """Contradictions between hosts of one inventory, and errors in their tags and groups."""
    yield from _unknown(hosts)
    for host, settings in hosts.items():
        for finding in _own(settings, hosts):
            yield Refusal(host, *finding)
    for (first, one), (second, other) in combinations(hosts.items(), 2):
        if one.tailnet and other.tailnet:
            for finding in [
                *_groups(first, one, other),
                *_contradictions(first, one, other, hosts),
            ]:
                yield Refusal(second, *finding)


def _unknown(hosts: Hosts) -> Iterator[Refusal]:
    tags, groups = set(known_tags(hosts)), set(groups_of(hosts))
    for host, settings in hosts.items():
        for claim in registry.tailnet_claims(settings):
            for caller in claim.callers:
                if caller.startswith("tag:") and caller not in tags:
                    wrong = "no host declares this tag under tailnet.tags or tailnet.other_tags"
                    yield Refusal(host, claim.key, caller, wrong, nearest(caller, tags))
                if caller.startswith("group:") and caller not in groups:
                    wrong = "no host declares this group under tailnet.groups"
                    yield Refusal(host, claim.key, caller, wrong, nearest(caller, groups))


def _own(settings: HostSettings, hosts: Hosts) -> Findings:
    own, ssh, groups = tags_of(settings), settings.ssh, groups_of(hosts)
    if not own and any(claim.callers for claim in registry.tailnet_claims(settings)):
        wrong = (
            "a policy identifies a host by its tag, so without one its callers could not be"
            " enforced"
        )
        yield Finding("tailnet.tags", own, wrong, "give it one such as tag:rack")
    someone = any(groups.get(caller, [caller]) for caller in ssh.callers if caller not in own)
    if ssh.callers and ssh.lan_access == "until-tailnet" and not someone:
        wrong = "only machines with this host's own tag could log in"
        yield Finding("ssh.callers", ssh.callers, wrong, "add yourself")


def _groups(first: str, one: HostSettings, other: HostSettings) -> Findings:
    theirs = one.tailnet.groups if one.tailnet else {}
    for name, people in (other.tailnet.groups if other.tailnet else {}).items():
        if set(theirs.get(name, people)) != set(people):
            wrong = f"{first} declares other members for this group"
            yield Finding(
                f"tailnet.groups.{name}",
                people,
                wrong,
                "declare it on one host only, or with the same members",
            )


def _contradictions(first: str, one: HostSettings, other: HostSettings, hosts: Hosts) -> Findings:
    if server_of(one) != server_of(other):
        return
    both = {*tags_of(one)} & {*tags_of(other)}
    tag = next((each for each in (tag_of(one, hosts), tag_of(other, hosts)) if each in both), None)
    theirs = {(claim.protocol, claim.port): claim for claim in registry.tailnet_claims(one)}
    for claim in registry.tailnet_claims(other):
        rival = theirs.get((claim.protocol, claim.port), claim)
        if tag and rival.callers != claim.callers:
            yield Finding(
                claim.key,
                list(claim.callers),
                f"{first} has other callers for {claim.protocol} port {claim.port}, and a"
                f" policy cannot distinguish hosts that share {tag}",
                "write the same callers, or put a tag of its own first on one of them",
            )
