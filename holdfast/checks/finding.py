"""The result of a check: a refusal without its host."""

from __future__ import annotations

import difflib
import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit


class Finding(NamedTuple):
    """One thing wrong at ``key``; the fields are those of `holdfast.refusal.Refusal`."""

    key: str
    value: object
    wrong: str
    mend: str


Findings = Iterator[Finding]

NEW_SECRET = "replace it, for example with the output of 'openssl rand -hex 24'"  # noqa: S105
"""The correction for an unusable secret."""

NO_USER = "this machine has no user of the name after ~"
"""The error for a path of the controller that begins with such a name."""


def nearest(name: str, known: set[str]) -> str:
    """The correction for a name that is not in ``known``."""
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f"write '{close[0]}'" if close else "write one that is declared"


def no_file(path: str) -> str | None:
    """Why a path on this controller is not a readable file; None if it is."""
    try:
        file = Path(path).expanduser()
        if not file.is_file():
            return "there is no such file here"
        file.open("rb").close()
    except RuntimeError:
        return NO_USER
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    return None


def canonical(name: str) -> str:
    """A host's name or address in canonical form, for comparisons."""
    spelt = name.strip("[]").lower().rstrip(".")
    try:
        return str(ipaddress.ip_address(spelt.partition("%")[0]))
    except ValueError:
        return spelt


def is_loopback_name(name: str) -> bool:
    """Whether a name or address is the host itself."""
    try:
        return ipaddress.ip_address(canonical(name)).is_loopback
    except ValueError:
        return canonical(name) == "localhost"


def is_loopback(url: str) -> bool:
    """Whether a URL points to the host itself."""
    return is_loopback_name(urlsplit(url).hostname or "")


def is_private_address(url: str) -> bool:
    """Whether a URL names its server by an address of a private network."""
    try:
        return ipaddress.ip_address(urlsplit(url).hostname or "").is_private
    except ValueError:
        return False
