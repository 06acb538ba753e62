"""What a check finds: a refusal that does not know its host yet."""

from __future__ import annotations

import difflib
import ipaddress
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import urlsplit


class Finding(NamedTuple):
    """One thing wrong at ``key``; the fields are those of `holdfast.refusal.Refusal`."""

    key: str
    value: object
    wrong: str
    mend: str


Findings = Iterator[Finding]

NEW_SECRET = "replace it, for instance by what 'openssl rand -hex 24' prints"  # noqa: S105
"""The mend for a secret that will not do."""


def nearest(name: str, known: set[str]) -> str:
    """The mend for a name that is not among ``known``."""
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f"write '{close[0]}'" if close else "write one that is declared"


def is_loopback(url: str) -> bool:
    """Whether a URL leads to the host itself."""
    name = urlsplit(url).hostname or ""
    return name in ("localhost", "::1") or name.startswith("127.")


def is_private_address(url: str) -> bool:
    """Whether a URL names its server by an address of a private network."""
    try:
        return ipaddress.ip_address(urlsplit(url).hostname or "").is_private
    except ValueError:
        return False
