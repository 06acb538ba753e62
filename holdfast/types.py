"""The words an inventory may be written in: checked scalars, shared by every settings model.

A check that fails raises ``ValueError("what is wrong; the mend")``; `holdfast.wording` adds host,
key and value. Each word also says what it is, for the messages and for docs/settings.md.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
import zoneinfo
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema


class Model(BaseModel):
    """Base of all settings: strict types, no unknown keys, nothing changes after parsing."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )


@dataclass(frozen=True)
class Word:
    """A checked kind of text.

    ``what`` and ``example`` complete "this is not ...; write one such as ...". The whole value
    must match ``pattern``; ``check`` then raises ValueError for what a pattern cannot tell.
    ``secret`` marks names of secrets: what is written there by mistake is never shown.
    """

    what: str
    example: str
    pattern: str = r"[^\n]+"
    check: Callable[[str], None] | None = None
    secret: bool = False

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Hook the check into pydantic's own."""
        return core_schema.no_info_after_validator_function(self._validate, handler(source))

    def _validate(self, value: str) -> str:
        if not re.fullmatch(self.pattern, value):
            raise ValueError(f"this is not {self.what}; write one such as {self.example}")
        if self.check:
            self.check(value)
        return value


def _check_path(value: str) -> None:
    if ".." in value.split("/") or "." in value.split("/"):
        raise ValueError("this path climbs with . or ..; write the path in full")
    if "//" in value or (value != "/" and value.endswith("/")):
        raise ValueError("this path has an empty part; write it without // or a trailing slash")


def _check_cidr(value: str) -> None:
    try:
        found = str(ipaddress.ip_network(value))
    except ValueError:
        try:
            meant = ipaddress.ip_network(value, strict=False)
        except ValueError:
            raise ValueError(
                "this is not a network; write one such as 192.168.1.0/24 or fd00:1::/64"
            ) from None
        raise ValueError(
            f"this names a host inside a network; write {meant} for the whole of it"
        ) from None
    if value not in (found, found.removesuffix("/32"), found.removesuffix("/128")):
        # Who reads it back from a host must find it the same.
        raise ValueError(f"this network is written otherwise; write {found}")


def _check_address(value: str) -> None:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        raise ValueError(
            "this is not an IP address; write one such as 192.168.1.20 or fd00:1::20"
        ) from None


def _check_host(value: str) -> None:
    if re.fullmatch(r"[0-9.]+", value) or ":" in value:
        _check_address(value.partition("%")[0])
    elif ".." in value or value.startswith((".", "-")):
        raise ValueError("this is not a host name; write one such as nas.home.arpa")


_OWN_INTERFACES = re.compile(r"lo|tailscale\d+|docker\d+|br-.*|veth.*")


def _check_interface(value: str) -> None:
    if _OWN_INTERFACES.fullmatch(value):
        raise ValueError(
            "this interface is not one a cable or radio is behind; write a physical one such as"
            " enp5s0"
        )


def _check_url(value: str) -> None:
    parts = urlsplit(value)
    try:
        _check_host((parts.hostname or "").strip("[]"))
        port_is_valid = parts.port is None or 1 <= parts.port <= 65535
    except ValueError:
        port_is_valid = False
    if not port_is_valid:
        raise ValueError("this URL has no valid host and port; write https://host[:port]/path")


def _check_cloud_url(value: str) -> None:
    _check_url(value)
    host = urlsplit(value).hostname or ""
    if re.fullmatch(r"[0-9.]+", host) or not re.fullmatch(rf"{_LABEL}(\.{_LABEL})+", host):
        raise ValueError("this URL names its server by no DNS name; write it with one")
    if value.endswith("/"):
        raise ValueError("this URL ends with a slash; write it without")


_FLOATING = {"latest", "main", "master", "head", "nightly", "edge", "stable", "trunk", "develop"}


def _check_pinned_version(value: str) -> None:
    if value.lower() in _FLOATING:
        raise ValueError("this version moves under you; write the one release you have tested")


def _check_pinned_url(value: str) -> None:
    _check_url(value)
    floating = _FLOATING.intersection(re.split(r"[/?=&@:]", value.partition("://")[2].lower()))
    if floating:
        raise ValueError(
            f"what lies at '{floating.pop()}' moves under you; write the URL of one release,"
            " tag or commit"
        )


def _check_source(value: str) -> None:
    if value.startswith("/"):
        _check_path(value)
    else:
        _check_pinned_url(value)


def _check_timezone(value: str) -> None:
    try:
        zoneinfo.ZoneInfo(value)
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        raise ValueError("no such time zone; write one such as Europe/Berlin or Etc/UTC") from None


_KEY_TYPES = {
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
}


def _check_public_key(value: str) -> None:
    kind, encoded = value.split(" ")[:2]
    if kind not in _KEY_TYPES:
        raise ValueError("this kind of key is not accepted; write an ssh-ed25519 key")
    try:
        blob = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        blob = b""
    # RFC 4253, 6.6: the blob begins with its own type, length first. A key cut short in pasting
    # would lock its owner out.
    if not blob.startswith(len(kind).to_bytes(4, "big") + kind.encode()) or len(blob) < 51:
        raise ValueError("this key is cut short or damaged; paste the whole line of the .pub file")


# systemd.time(7): an optional weekday, an optional date, a time, an optional zone.
_ITEM = r"(\*|\d+(\.\.\d+)?)(/\d+)?"
_ITEMS = rf"{_ITEM}(,{_ITEM})*"
_DAY = r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_CALENDAR = (
    r"(minutely|hourly|daily|weekly|monthly|quarterly|semiannually|yearly|annually)"
    rf"|({_DAY}(\.\.{_DAY})?(,{_DAY}(\.\.{_DAY})?)* )?({_ITEMS}-)?({_ITEMS}[-~]{_ITEMS} )?"
    rf"(?P<hours>{_ITEMS}):(?P<minutes>{_ITEMS})(:(?P<seconds>{_ITEMS}))?"
    r"( [A-Z][A-Za-z_]+(/[A-Za-z_]+)*)?"
)


def _check_calendar(value: str) -> None:
    match = re.fullmatch(_CALENDAR, value)
    for part, end in (("hours", 24), ("minutes", 60), ("seconds", 60)):
        text = (match.group(part) if match else None) or ""
        starts = re.sub(r"/\d+", "", text)
        if any(int(number) >= end for number in re.findall(r"\d+", starts)):
            raise ValueError(f"there are no such {part}; write a time of day such as 03:30:00")


_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"

Text = Annotated[str, Word("one line of text", "a few words")]
ControllerPath = Annotated[str, Word("a path on this controller", "~/.ssh/id_ed25519")]
Name = Annotated[
    str,
    Word("a name of at most 41 lower-case letters, digits and -", "nas", r"[a-z][a-z0-9-]{0,40}"),
]
UserName = Annotated[str, Word("a system user name", "holdfast-floor", r"[a-z_][a-z0-9_-]{0,30}")]
HostLabel = Annotated[str, Word("one lower-case label without dots", "rack", _LABEL)]
DnsName = Annotated[str, Word("a lower-case DNS name", "nas.home.arpa", rf"{_LABEL}(\.{_LABEL})*")]
HostOrAddress = Annotated[
    str,
    Word(
        "a DNS name, an ssh_config alias or an IP address",
        "nas.home.arpa",
        r"[A-Za-z0-9._:%-]+",
        _check_host,
    ),
]
Interface = Annotated[
    str,
    Word(
        "a network interface name", "enp5s0", r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}", _check_interface
    ),
]
_TAG, _GROUP = r"tag:[a-z][a-z0-9-]*", r"group:[a-z][a-z0-9-]*"
_TAILNET_USER = r"[A-Za-z0-9][A-Za-z0-9._+-]*@[A-Za-z0-9.-]*"
Tag = Annotated[str, Word("a tailnet tag", "tag:rack", _TAG)]
TailnetUser = Annotated[str, Word("a tailnet user", "alice@example.org", _TAILNET_USER)]
TailnetGroup = Annotated[str, Word("a tailnet group", "group:family", _GROUP)]
Caller = Annotated[
    str,
    Word(
        "a tailnet tag, group or user",
        "tag:office",
        f"{_TAG}|{_GROUP}|{_TAILNET_USER}",
    ),
]
SecretName = Annotated[
    str,
    Word(
        "the name of a secret (its value belongs in .env)",
        "FLOOR_API_KEY",
        r"[A-Z][A-Z0-9_]{2,60}",
        secret=True,
    ),
]
Sha256 = Annotated[
    str, Word("the 64 hex digits that sha256sum prints", "9f86d081884c7d65...", r"[0-9a-f]{64}")
]
_URL = r"https?://[A-Za-z0-9.\[\]:-]+(/[A-Za-z0-9._~/@+%=&?:,-]*)?"
Url = Annotated[
    str,
    Word("an http(s) URL without user or password", "https://nas.home.arpa:8000", _URL, _check_url),
]
CloudUrl = Annotated[
    str,
    Word(
        "an https URL without user or password",
        "https://api.example.org/v1",
        r"https://[A-Za-z0-9.:-]+(/[A-Za-z0-9._~/-]*)?",
        _check_cloud_url,
    ),
]
PinnedUrl = Annotated[
    str,
    Word(
        "an http(s) URL without user or password",
        "https://example.org/v1.2.3/tool.tar.gz",
        _URL,
        _check_pinned_url,
    ),
]
Source = Annotated[
    str,
    Word(
        "an http(s) URL without user or password, or an absolute path",
        "/mnt/nas/models/a.gguf",
        rf"{_URL}|/[A-Za-z0-9._/@+-]*",
        _check_source,
    ),
]
Version = Annotated[
    str, Word("a version", "1.2.3", r"[A-Za-z0-9][A-Za-z0-9._+-]{0,40}", _check_pinned_version)
]
Calendar = Annotated[str, Word("a systemd calendar", "*-*-* 03:30:00", _CALENDAR, _check_calendar)]
Timezone = Annotated[
    str, Word("a time zone", "Europe/Berlin", r"[A-Za-z0-9_+/-]+", _check_timezone)
]
Locale = Annotated[
    str, Word("a UTF-8 locale", "C.UTF-8", r"(C|[a-z]{2,3}_[A-Z]{2})\.UTF-8(@[a-z]+)?")
]
Suite = Annotated[
    str, Word("an APT suite, / for a flat one", "bookworm", r"/|[a-z0-9][a-z0-9./-]*")
]
PackagePrefix = Annotated[
    str, Word("the beginning of a package name", "nvidia-", r"[a-z0-9][a-z0-9.+-]+")
]
FileName = Annotated[
    str, Word("a file name without folders", "model-q4.gguf", r"[A-Za-z0-9][A-Za-z0-9._+-]{0,120}")
]
CpuList = Annotated[
    str,
    Word(
        "numbers of CPUs as `lscpu` writes them",
        "4-31",
        r"\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*",
    ),
]
FlagName = Annotated[
    str, Word("a flag without its dashes", "max-num-batched-tokens", r"[a-z][a-z0-9-]{1,60}")
]
UnitName = Annotated[
    str,
    Word("a systemd unit name", "photos.service", r"[a-z][a-z0-9@_.-]*\.(service|socket|timer)"),
]
Reason = Annotated[
    str,
    Word(
        "3 to 60 letters, digits, spaces and . , ( ) / -",
        "printer discovery",
        r"[A-Za-z0-9 .,()/-]{3,60}",
    ),
]
PciAddress = Annotated[
    str,
    Word(
        "a PCI address as `lspci -D` writes it",
        "0000:01:00.0",
        r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]",
    ),
]
PciDevice = Annotated[
    str, Word("a PCI device id of four hex digits (`lspci -nn`)", "2204", r"[0-9a-f]{4}")
]
GpuUuid = Annotated[
    str,
    Word(
        "a GPU's UUID as `nvidia-smi -L` prints it",
        "GPU-8f1c3a52-...",
        r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    ),
]
DriverBranch = Annotated[str, Word("an NVIDIA driver branch", "580", r"[3-9][0-9]{2}")]
LocalUrl = Annotated[
    str,
    Word(
        "a URL on 127.0.0.1 (of T2, T3, T4: .2, .3, .4) with a port",
        "http://127.0.0.1:8080/health",
        r"http://127\.0\.0\.[1-4]:\d{1,5}/[A-Za-z0-9._~/%=&?-]*",
    ),
]
AbsolutePath = Annotated[
    str,
    Word(
        "an absolute path of letters, digits and . _ @ + -",
        "/srv/photos",
        r"/[A-Za-z0-9._/@+-]*",
        _check_path,
    ),
]
Cidr = Annotated[str, Word("a network", "192.168.1.0/24", check=_check_cidr)]
Address = Annotated[str, Word("an IP address", "192.168.1.20", check=_check_address)]
Port = Annotated[int, Field(ge=1, le=65535)]
Watts = Annotated[int, Field(ge=50, le=1500)]
"""A card's power limit: from the lowest any takes to more than any draws, W."""
PublicKey = Annotated[
    str,
    Word(
        "one line of an OpenSSH public key file",
        "ssh-ed25519 AAAA... you@laptop",
        r"[a-z0-9@.-]+ [A-Za-z0-9+/=]+( [^\n]*)?",
        _check_public_key,
    ),
]
