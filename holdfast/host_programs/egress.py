#!/usr/bin/python3 -I
"""Load the rules that enforce the tiers of services, and report refused calls.

It is copied to hosts, so it uses only the standard library of Python 3.11.

``load`` installs the table in one step: the rules in ``/etc/holdfast/egress.nft``, and one rule for
each user in ``egress-users.json`` that sends the user's packets to its service's chain. The ids
that /etc/subuid assigns to a user count as this user's. Ids from 65536 on that belong to no account
and are assigned to no user may call nothing, because systemd-nsresourced lends such ids to any
user.

``watch`` exits 1 with a sentence for each service or network that was refused a call since the last
check, for each container on a T1 network that is also on another one or has lost its bridge, and if
the table was removed or changed, which it then loads again.

``resolve`` looks up the clouds in ``egress-clouds.json`` and allows each address for six hours
after it was last seen. It exits 1 with a sentence for each name without an address for an hour.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import json
import os
import pwd
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RULES = "/etc/holdfast/egress.nft"
USERS = "/etc/holdfast/egress-users.json"
CLOUDS = "/etc/holdfast/egress-clouds.json"
NETWORKS = "/etc/holdfast/egress-networks.json"
RECORD = "/run/holdfast/egress/loaded.json"
SUBUID = "/etc/subuid"
RESOLVERS: tuple[str, ...] = ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf")
"""Files with resolvers; if systemd-resolved answers the first, containers use the second."""
DOCKER = "/run/docker.sock"
DOCKER_RUNS = "/run/docker.pid"
"""A connection to the socket of a stopped engine would start it."""
LINKS = "/sys/class/net"
KEEP_SECONDS = 6 * 3600
"""Time for which an address is allowed after a lookup last returned it: a lookup returns few of a
cloud's many addresses, and a connection outlives the lookup."""
LOST_SECONDS = 3600
"""Time without an address before a name is reported."""
TABLE = "holdfast_egress"
COUNTER = "denied-"
"""Prefix of the name of a service's counter."""
QUIET = ("tailscaled",)
"""Callers whose refusals are counted and logged, but raise no alert, because they try other
addresses by design."""
UNKNOWN_USERS = "unknown_users"
"""The name under which refused calls of unknown user ids are counted. No service may use it."""
ACCOUNT_IDS = 65536
"""Accounts and systemd's own services have ids below this."""
INTERFACE_ADDRESSES = "/proc/net/if_inet6"
LOG_PREFIX = "holdfast egress"
"""Prefix of a refusal in the kernel's log; the service's name follows."""


@dataclass
class Loaded:
    """The last load: the text, nft's listing of it, and the reported refusals.

    ``told`` maps a service to reported refused packets; it is below zero for unreported counts of a
    replaced table. ``addresses`` maps a cloud's name to its addresses and the time of their last
    lookup. ``found`` maps it to the time when it last had an address, or was first looked up. Times
    are seconds since the boot.
    """

    text: str = ""
    listing: str = ""
    told: dict[str, int] = field(default_factory=dict)
    addresses: dict[str, dict[str, float]] = field(default_factory=dict)
    found: dict[str, float] = field(default_factory=dict)


def _nft(*arguments: str, text: str = "") -> str:
    done = subprocess.run(
        ["/usr/sbin/nft", *arguments], input=text, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise OSError(" ".join(done.stderr.split()))
    return done.stdout


def ids(user: str, lent: str) -> list[str]:
    """The user ids of a user, as nftables writes them; ``lent`` is /etc/subuid's text.

    A line that the kernel's helpers would not accept is ignored.

    Raises:
        KeyError: there is no such user.
    """
    own = str(pwd.getpwnam(user).pw_uid)
    found = [own]
    for line in lent.splitlines():
        name, _, borrowed = line.partition(":")
        first, _, count = borrowed.partition(":")
        if name not in (user, own) or not (first.isdecimal() and count.isdecimal()):
            continue
        if 0 < int(count) < 2**32 - int(first):
            found.append(f"{int(first)}-{int(first) + int(count) - 1}")
    return found


def _high_ids(lent: str) -> list[str]:
    """The ids from `ACCOUNT_IDS` on that belong to accounts, as nftables writes them."""
    found: list[tuple[int, int]] = []
    for account in pwd.getpwall():
        for each in ids(account.pw_name, lent):
            first, _, last = each.partition("-")
            if int(last or first) >= ACCOUNT_IDS:
                found.append((max(int(first), ACCOUNT_IDS), int(last or first)))
    return _joined(found)


def _joined(ranges: list[tuple[int, int]]) -> list[str]:
    """Ranges of ids for one set of nftables, without overlaps."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return [f"{first}-{last}" for first, last in merged]


def _written(path: str) -> str:
    """The text of another program's file, in any encoding; empty if it does not exist."""
    file = Path(path)
    return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""


def wanted() -> str:
    """The complete table for nft."""
    text = Path(RULES).read_text(encoding="utf-8")
    lent = _written(SUBUID)
    for user, service in json.loads(Path(USERS).read_text(encoding="utf-8")).items():
        try:
            own = ", ".join(ids(user, lent))
        except KeyError:
            continue  # A user that does not exist runs no process.
        text += f"add rule inet {TABLE} output meta skuid {{ {own} }} goto from-{service}\n"
    if known := ", ".join(_high_ids(lent)):
        text += f"add rule inet {TABLE} output meta skuid {{ {known} }} accept\n"
    text += (
        f"add rule inet {TABLE} output meta skuid {ACCOUNT_IDS}-{2**32 - 2}"
        f" goto deny-{UNKNOWN_USERS}\n"
    )
    return text


def _clouds() -> tuple[dict[str, list[tuple[str, int]]], list[str]]:
    """The allowed names and ports by service or network, and resolvers besides the host's own."""
    said = json.loads(Path(CLOUDS).read_text(encoding="utf-8"))
    return said["clouds"], said["resolvers"]


def _resolvers() -> list[str]:
    """The addresses of this host's resolvers."""
    found = []
    for path in RESOLVERS:
        for line in _written(path).splitlines():
            key, _, address = line.partition(" ")
            if key == "nameserver":
                with contextlib.suppress(ValueError):
                    found.append(str(ipaddress.ip_address(address.strip().partition("%")[0])))
    return found


def _filled(name: str, elements: Iterable[str]) -> str:
    """Commands for nft that replace the content of a set in one step, so that it is never empty."""
    joined = ", ".join(elements)
    added = f"add element inet {TABLE} {name} {{ {joined} }}\n" if joined else ""
    return f"flush set inet {TABLE} {name}\n{added}"


def _own_groups() -> list[str]:
    """The solicited-node groups of this machine's IPv6 addresses (RFC 4291)."""
    path = Path(INTERFACE_ADDRESSES)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    lowest = {int(line[26:32], 16) for line in lines}
    first = int(ipaddress.IPv6Address("ff02::1:ff00:0"))
    return [str(ipaddress.IPv6Address(first + low)) for low in sorted(lowest)]


def sets(addresses: dict[str, dict[str, float]], now: float) -> str:
    """The content of the sets, for nft: groups of this machine, resolvers and clouds.

    See `Loaded` for ``addresses``.
    """
    groups = ", ".join(_own_groups())
    text = f"add element inet {TABLE} groups-ip6 {{ {groups} }}\n" if groups else ""
    clouds, resolvers = _clouds()
    if not clouds:
        return text
    asked = dict.fromkeys([*resolvers, *_resolvers()])
    for family, version in (("ip", 4), ("ip6", 6)):
        text += _filled(
            f"resolvers-{family}",
            (each for each in asked if ipaddress.ip_address(each).version == version),
        )
        for wall, called in clouds.items():
            # Two names may share an address: the latest lookup counts.
            left: dict[str, int] = {}
            for name, port in called:
                for address, seen in addresses.get(name, {}).items():
                    if ipaddress.ip_address(address).version == version:
                        element = f"{address} . {port}"
                        remaining = int(seen + KEEP_SECONDS - now)
                        left[element] = max(left.get(element, 0), remaining)
            text += _filled(
                f"clouds-{family}-{wall}",
                (f"{element} timeout {rest}s" for element, rest in left.items() if rest > 0),
            )
    return text


def _addresses(name: str) -> list[str]:
    """A name's addresses of both IP versions; empty if it is unknown, or no resolver answers."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return sorted({str(each[4][0]).partition("%")[0] for each in found})


def _resolved() -> dict[str, list[str]]:
    """The clouds' names and their present addresses."""
    called = sorted({name for names in _clouds()[0].values() for name, _ in names})
    # If no resolver answers, each name takes 15 seconds.
    with ThreadPoolExecutor(max_workers=16) as pool:
        return dict(zip(called, pool.map(_addresses, called), strict=True))


def _let_through(loaded: Loaded, resolved: dict[str, list[str]]) -> Iterator[str]:
    now = time.monotonic()
    before, loaded.addresses = loaded.addresses, {}
    for name, addresses in resolved.items():
        seen = before.get(name, {}) | dict.fromkeys(addresses, now)
        loaded.addresses[name] = {
            address: at for address, at in seen.items() if at + KEEP_SECONDS > now
        }
        lost = now - loaded.found.setdefault(name, now)
        if addresses:
            loaded.found[name] = now
        elif lost > LOST_SECONDS:
            yield f"{name} has had no address for {lost / 60:.0f} minutes: calls to it are refused"
    _nft("--file", "-", text=sets(loaded.addresses, now))


def _containers() -> list[dict[str, Any]]:
    """The running containers, from Docker; none if it does not run."""
    if not Path(DOCKER_RUNS).exists():
        return []
    with socket.socket(socket.AF_UNIX) as engine:
        engine.settimeout(20)
        engine.connect(DOCKER)
        engine.sendall(b"GET /containers/json HTTP/1.0\r\nHost: docker\r\n\r\n")
        with engine.makefile("rb") as answer:
            said = json.loads(answer.read().partition(b"\r\n\r\n")[2])
    return said if isinstance(said, list) else []


def astray(containers: list[dict[str, Any]], sovereign: dict[str, str]) -> Iterator[str]:
    """A sentence for each container on a T1 network that the rules do not restrict.

    ``sovereign`` maps T1 networks to their bridges in the rules.
    """
    for container in containers:
        on = sorted(container["NetworkSettings"]["Networks"])
        name = container["Names"][0].strip("/")
        for network in (each for each in on if each in sovereign):
            if len(on) > 1:
                others = ", ".join(other for other in on if other != network)
                yield (
                    f"the container {name} is on the T1 network {network} and on {others}: it"
                    " can send through the other"
                )
            if not Path(LINKS, sovereign[network]).exists():
                yield (
                    f"the container {name} is on the T1 network {network}, whose bridge"
                    f" {sovereign[network]} is gone: no rule restricts it"
                )


def _listing() -> str:
    """The table in the kernel without counters and set contents; empty if there is none."""
    try:
        return _nft("--stateless", "--terse", "list", "table", "inet", TABLE)
    except OSError:
        return ""


def _counts() -> dict[str, int]:
    """Refused packets since the table was loaded, by service; empty without a table."""
    try:
        said = json.loads(_nft("--json", "list", "counters", "table", "inet", TABLE))
    except OSError:
        return {}
    counters = [item["counter"] for item in said["nftables"] if "counter" in item]
    return {each["name"].removeprefix(COUNTER): each["packets"] for each in counters}


@contextmanager
def _record() -> Iterator[Loaded]:
    """The record of the last load, locked for one process; its changes are saved."""
    path = Path(RECORD)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        try:
            loaded = Loaded(**json.loads(file.read()))
        except (ValueError, TypeError):
            # It does not exist yet, is incomplete, or another version of this program wrote it.
            loaded = Loaded()
        try:
            yield loaded
        finally:
            file.truncate(0)
            json.dump(asdict(loaded), file)


def _load(loaded: Loaded) -> None:
    text, counts = wanted(), _counts()
    _nft("--file", "-", text=text + sets(loaded.addresses, time.monotonic()))
    loaded.told = {name: loaded.told.get(name, 0) - count for name, count in counts.items()}
    loaded.text, loaded.listing = text, _listing()


def _problems(loaded: Loaded) -> Iterator[str]:
    listing = _listing()
    for service, count in _counts().items():
        told = loaded.told.get(service, 0)
        if count > told and service not in QUIET:
            yield (
                f"{service} was refused {count - told} attempts to leave since the last check; see:"
                f" journalctl --dmesg --grep '{LOG_PREFIX} {service}:'"
            )
        loaded.told[service] = count
    if listing != loaded.listing:
        what = "was changed by hand" if listing else "was gone"
        yield f"the table {TABLE} {what}: loading it again"
    if listing != loaded.listing or wanted() != loaded.text:
        _load(loaded)
    if sovereign := json.loads(Path(NETWORKS).read_text(encoding="utf-8")):
        try:
            yield from astray(_containers(), sovereign)
        except (OSError, ValueError) as error:
            yield f"Docker did not list the containers on T1 networks: {error}"


def _say(level: int, line: str) -> None:
    prefix = f"<{level}>" if "JOURNAL_STREAM" in os.environ else ""
    print(f"{prefix}{line}", file=sys.stderr)  # noqa: T201


def main(verb: str = "") -> int:
    """Run the command in the first argument; return 1 if there is something to report."""
    if verb not in ("load", "watch", "resolve"):
        _say(3, "usage: holdfast-egress load | watch | resolve")
        return 2
    # Before the record is locked, because lookups may take long.
    resolved = _resolved() if verb == "resolve" else {}
    with _record() as loaded:
        if verb == "load":
            _load(loaded)
            return 0
        problems = list(_problems(loaded) if verb == "watch" else _let_through(loaded, resolved))
    for problem in problems:
        _say(3, problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
