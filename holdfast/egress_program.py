#!/usr/bin/python3
"""Load the rules that hold services to their tier, and tell who ran into them.

Placed on hosts as it is, so it uses the standard library only and needs Python 3.11.

``load`` puts the table in place in one step: the rules in ``/etc/holdfast/egress.nft``, and one
for each user in ``egress-users.json`` that leads what this user sends into its service's chain.
The ids that /etc/subuid lends a user are this user's as well.

``watch`` exits 1 with a sentence for each service that was refused something since the last look,
and where somebody took or changed the table, which it then loads again.
"""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

RULES = "/etc/holdfast/egress.nft"
USERS = "/etc/holdfast/egress-users.json"
RECORD = "/run/holdfast/egress/loaded.json"
SUBUID = "/etc/subuid"
TABLE = "holdfast_egress"
COUNTER = "denied-"
"""How the name of a service's counter begins."""
LOG_PREFIX = "holdfast egress"
"""How the kernel's log begins where it tells of a refusal; the service's name follows."""


@dataclass
class Loaded:
    """What was loaded last: the text, how nft lists it, and how much of it was told of.

    ``told`` maps a service to refused packets. It is below zero for what a table counted that was
    replaced before anybody looked.
    """

    text: str = ""
    listing: str = ""
    told: dict[str, int] = field(default_factory=dict)


def _nft(*arguments: str, text: str = "") -> str:
    done = subprocess.run(
        ["/usr/sbin/nft", *arguments], input=text, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise OSError(" ".join(done.stderr.split()))
    return done.stdout


def ids(user: str, lent: str) -> list[str]:
    """The user ids that are a user's, as nftables writes them; ``lent`` is /etc/subuid's text.

    Raises:
        KeyError: there is no such user.
    """
    own = str(pwd.getpwnam(user).pw_uid)
    found = [own]
    for line in lent.splitlines():
        name, _, borrowed = line.partition(":")
        first, _, count = borrowed.partition(":")
        if name in (user, own) and int(count):
            found.append(f"{first}-{int(first) + int(count) - 1}")
    return found


def wanted() -> str:
    """The whole table as it is to be now, for nft."""
    text = Path(RULES).read_text(encoding="utf-8")
    lent = Path(SUBUID).read_text(encoding="utf-8") if Path(SUBUID).exists() else ""
    for user, service in json.loads(Path(USERS).read_text(encoding="utf-8")).items():
        try:
            own = ", ".join(ids(user, lent))
        except KeyError:
            continue  # Nothing can run as a user who is not there.
        text += f"add rule inet {TABLE} output meta skuid {{ {own} }} goto from-{service}\n"
    return text


def _listing() -> str:
    """The table in the kernel without its counts; empty where there is none."""
    try:
        return _nft("--stateless", "list", "table", "inet", TABLE)
    except OSError:
        return ""


def _counts() -> dict[str, int]:
    """Packets refused since the table was loaded, by service; empty where there is none."""
    try:
        said = json.loads(_nft("--json", "list", "counters", "table", "inet", TABLE))
    except OSError:
        return {}
    counters = [item["counter"] for item in said["nftables"] if "counter" in item]
    return {each["name"].removeprefix(COUNTER): each["packets"] for each in counters}


@contextmanager
def _record() -> Iterator[Loaded]:
    """What was loaded last, for one process at a time; what has become of it is kept."""
    path = Path(RECORD)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        kept = file.read()
        loaded = Loaded(**json.loads(kept)) if kept else Loaded()
        try:
            yield loaded
        finally:
            file.truncate(0)
            json.dump(asdict(loaded), file)


def _load(loaded: Loaded) -> None:
    text, counts = wanted(), _counts()
    _nft("--file", "-", text=text)
    loaded.told = {name: loaded.told.get(name, 0) - count for name, count in counts.items()}
    loaded.text, loaded.listing = text, _listing()


def _problems(loaded: Loaded) -> Iterator[str]:
    listing = _listing()
    for service, count in _counts().items():
        told = loaded.told.get(service, 0)
        if count > told:
            yield (
                f"{service} was kept from leaving {count - told} times since the last look; see:"
                f" journalctl --dmesg --grep '{LOG_PREFIX} {service}:'"
            )
        loaded.told[service] = count
    if listing != loaded.listing:
        what = "was changed by hand" if listing else "was gone"
        yield f"the table {TABLE} {what}: it is loaded again"
    if listing != loaded.listing or wanted() != loaded.text:
        _load(loaded)


def _say(level: int, line: str) -> None:
    prefix = f"<{level}>" if "JOURNAL_STREAM" in os.environ else ""
    print(f"{prefix}{line}", file=sys.stderr)  # noqa: T201


def main(verb: str = "") -> int:
    """Do what the first argument says; 1 where there is something to tell."""
    if verb not in ("load", "watch"):
        _say(3, "usage: holdfast-egress load | watch")
        return 2
    with _record() as loaded:
        if verb == "load":
            _load(loaded)
            return 0
        problems = list(_problems(loaded))
    for problem in problems:
        _say(3, problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
