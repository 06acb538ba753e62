"""The kinds of text in an inventory: checked scalars, shared by all settings models.

A failed check raises ``ValueError("error; correction")``; `holdfast.wording` adds host, key and
value. Each word has a description, for messages and for docs/settings.md.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import ipaddress
import locale
import re
import zoneinfo
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from typing import Annotated, Any
from urllib.parse import urlsplit

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema


class Model(BaseModel):
    """Base of all settings: strict types, no unknown keys, immutable."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )


@dataclass(frozen=True)
class Word:
    """A checked kind of text in printable ASCII, safe for a unit, a rule or a script.

    ``what`` and ``example`` complete "this is not ...; write one such as ...". The whole value
    must match ``pattern``; ``check`` then raises ValueError for errors that a pattern cannot find.
    ``secret`` marks names of secrets: their values are never shown, because they may be the secret
    itself. ``machine`` marks text that contains a domain: names, addresses, URLs and users.
    """

    what: str
    example: str
    pattern: str
    check: Callable[[str], None] | None = None
    secret: bool = False
    machine: bool = False

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Hook the check into pydantic's own."""
        return core_schema.no_info_after_validator_function(self._validate, handler(source))

    def _validate(self, value: str) -> str:
        if not (value.isascii() and value.isprintable()):
            raise ValueError(
                "this contains a character that is not printable ASCII; write"
                f" {self.what}, such as {self.example}"
            )
        if not re.fullmatch(self.pattern, value, re.ASCII):
            raise ValueError(f"this is not {self.what}; write one such as {self.example}")
        if self.check:
            self.check(value)
        return value


_LONGEST_PATH = 200
"""The longest path that still fits into a unit's name or a socket's address."""


def _check_path(value: str) -> None:
    if ".." in value.split("/") or "." in value.split("/"):
        raise ValueError("this path contains . or ..; write the path in full")
    if "//" in value or (value != "/" and value.endswith("/")):
        raise ValueError("this path has an empty part; write it without // or a trailing slash")
    if len(value) > _LONGEST_PATH:
        raise ValueError(
            f"this path has {len(value)} characters; write one of at most {_LONGEST_PATH}"
        )


_LOCALES = (
    {name.partition(".")[0].partition("@")[0] for name in locale.locale_alias.values()}
    # Locales that Python lacks, and its locales from X11 and of former countries.
    | {"dsb_DE", "mnw_MM", "rif_MA", "sah_RU"}
) - {
    *("ar_AA", "ee_EE", "en_BE", "en_DL", "en_EN", "en_ZS", "eo_EO", "eo_US", "eo_XX", "iw_IL"),
    *("no_NO", "ny_NO", "pap_AN", "pd_DE", "pd_US", "ph_PH", "pp_AN", "sd_PK", "sh_HR", "sl_CS"),
    "sr_CS",
}
"""Languages and countries of glibc's locales (its file SUPPORTED, 2.36)."""


def _check_locale(value: str) -> None:
    name = value.partition(".")[0]
    if name not in _LOCALES:
        close = difflib.get_close_matches(name, sorted(_LOCALES), n=1)
        raise ValueError(f"there is no such locale; write one such as {(close or ['C'])[0]}.UTF-8")


def _check_cidr(value: str) -> None:
    try:
        parsed = ipaddress.ip_network(value)
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
    _check_mapped(parsed.network_address)
    found = str(parsed)
    if value not in (found, found.removesuffix("/32"), found.removesuffix("/128")):
        # The host prints it in this form, and the two are compared.
        raise ValueError(f"this is not the usual form of this network; write {found}")


def _check_mapped(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    if address.version == 6 and address.ipv4_mapped:
        raise ValueError(
            "this is an IPv4 address in IPv6 form, which no packet carries; write"
            f" {address.ipv4_mapped}"
        )


def _check_address(value: str) -> None:
    try:
        parsed = ipaddress.ip_address(value)
    except ValueError:
        raise ValueError(
            "this is not an IP address; write one such as 192.168.1.20 or fd00:1::20"
        ) from None
    _check_mapped(parsed)
    if parsed.is_unspecified or parsed.is_multicast or value == "255.255.255.255":
        raise ValueError("no machine has this address; write one such as 192.168.1.20")
    if value != str(parsed):
        raise ValueError(f"this is not the usual form of this address; write {parsed}")


_NO_NAME = re.compile(r"\d+|0x[0-9a-f]*")
"""A last label that resolvers read as part of an address."""
_LOCALHOST = {"localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"}


def _check_name(value: str) -> None:
    if len(value) > 253:
        raise ValueError("this name is longer than DNS allows; write one of at most 253 characters")
    if _NO_NAME.fullmatch(value.rpartition(".")[2]):
        raise ValueError("this reads like an address; write a name such as nas.home.arpa")
    if value in _LOCALHOST:
        raise ValueError("every machine resolves this name to itself; write another name")


def _check_host(value: str) -> None:
    if re.fullmatch(r"[0-9.]+", value) or ":" in value:
        _check_address(value)
    elif value != value.lower() or value.endswith("."):
        raise ValueError(
            "names are compared as text; write it in lower case, without a dot at its end"
        )
    elif not re.fullmatch(_DNS, value):
        raise ValueError("this is not a host name; write one such as nas.home.arpa")
    elif value not in _LOCALHOST:
        _check_name(value)


def _check_login(value: str) -> None:
    address, zone, interface = value.partition("%")
    if zone:
        _check_address(address)
        if not ipaddress.ip_address(address).is_link_local or not interface:
            raise ValueError("only a link-local address has an interface; write it without %")
    elif re.fullmatch(r"[0-9.]+", value) or ":" in value:
        _check_address(value)
    elif ".." in value or value.startswith((".", "-")):
        raise ValueError("this is not a host name; write one such as nas.home.arpa")


_OWN_INTERFACES = re.compile(r"lo|tailscale\d+|docker\d+|br-.*|veth.*")
_NO_INTERFACES = re.compile(r"all|any|default|none|\d+")
"""Words with another meaning for the kernel, ufw or systemd."""


def _check_interface(value: str) -> None:
    if _OWN_INTERFACES.fullmatch(value):
        raise ValueError("this is not a physical interface; write one such as enp5s0")
    if _NO_INTERFACES.fullmatch(value):
        raise ValueError("this word is reserved; write an interface such as enp5s0")


def _check_url(value: str) -> None:
    try:
        parts = urlsplit(value)
        host = parts.hostname or ""
        _check_address(host) if ":" in host else _check_host(host)
        port_is_valid = parts.port is None or 1 <= parts.port <= 65535
    except ValueError:
        port_is_valid = False
    if not port_is_valid or parts.netloc.endswith(":"):
        raise ValueError("this URL has no valid host and port; write https://host[:port]/path")
    if re.search(r"%(?![0-9A-Fa-f]{2})", value):
        raise ValueError(
            "a % in this URL is not followed by two hex digits; write %25 for the sign itself"
        )
    if re.search(r"(?i)(token|key|passw\w*|secret|sig\w*)=", parts.query):
        raise ValueError("this URL contains a secret; write one that needs none")
    if {".", ".."} & {*parts.path.split("/")}:
        raise ValueError("this URL contains . or ..; write its path in full")


def _check_local_url(value: str) -> None:
    _check_url(value)
    if urlsplit(value).port is None:
        raise ValueError("this URL has no port; write one such as http://127.0.0.1:8080/health")


def _check_cloud_url(value: str) -> None:
    _check_url(value)
    host = urlsplit(value).hostname or ""
    if re.fullmatch(r"[0-9.]+", host) or not re.fullmatch(rf"{_LABEL}(\.{_LABEL})+", host):
        raise ValueError("this URL does not name its server by a DNS name; write it with one")
    if host in _LOCALHOST:
        raise ValueError("this URL points to the host itself; write the cloud's own name")
    if value.endswith("/"):
        raise ValueError("this URL ends with a slash; write it without")
    if ending := re.search(r"/(chat/completions|completions|messages|responses|models)$", value):
        raise ValueError(f"each request adds its own path; write the URL without {ending[0]}")


_CPU = r"(0|[1-9]\d{0,3})"


def _check_cpus(value: str) -> None:
    for first, last in re.findall(r"(\d+)-(\d+)", value):
        if int(first) > int(last):
            raise ValueError(f"this range is reversed; write {int(last)}-{int(first)}")
    if max(map(int, re.findall(r"\d+", value))) > 8191:
        raise ValueError("no machine has so many CPUs; write what `lscpu` shows")


_FLOATING = {"latest", "main", "master", "head", "nightly", "edge", "stable", "trunk", "develop"}


def _check_pinned_version(value: str) -> None:
    if value.lower() in _FLOATING:
        raise ValueError(
            "this version changes over time; write the one release that you have tested"
        )


def _check_pinned_url(value: str) -> None:
    _check_url(value)
    if "0123456789abcdef" in value:
        raise ValueError(
            "this commit is a placeholder; write that of the release that you have tested"
        )
    if re.match(r"https?://(huggingface\.co|github\.com)/[^/]+/[^/]+/(blob|tree)/", value):
        raise ValueError("this is a page that shows the file; write the URL that downloads it")
    floating = _FLOATING.intersection(re.split(r"[/?=&@:]", value.partition("://")[2].lower()))
    if floating:
        raise ValueError(
            f"the file at '{floating.pop()}' changes over time; write the URL of one release,"
            " tag or commit"
        )


def _check_source(value: str) -> None:
    if value.startswith("/"):
        _check_path(value)
    else:
        _check_pinned_url(value)


# Other zones are in a separate package since Debian 13, or count leap seconds.
_AREAS = "Africa|America|Antarctica|Arctic|Asia|Atlantic|Australia|Etc|Europe|Indian|Pacific"


def _check_timezone(value: str) -> None:
    try:
        if not re.match(rf"UTC$|({_AREAS})/", value):
            raise ValueError
        zoneinfo.ZoneInfo(value)
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        raise ValueError("no such time zone; write one such as Europe/Berlin or Etc/UTC") from None


NOTHING = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
"""The checksum of an empty file."""


def _check_sha256(value: str) -> None:
    if value == NOTHING:
        raise ValueError(
            "this is the checksum of an empty file; write what sha256sum prints for the file"
            " that you downloaded and tested"
        )
    if value in (2 * value)[1:-1]:
        # A repeated pattern: zeros, deadbeef.
        raise ValueError(
            "this is a placeholder and no checksum; write what sha256sum prints for the file"
        )


_UNSAID = re.compile(r"(?i)\b(todo|fixme|tbd|lorem|asdf\w*)\b")


def _check_sentence(value: str) -> None:
    words = re.findall(r"[A-Za-z]{2,}", value)
    if _UNSAID.search(value) or len(words) < 2 or len(set(value.lower()) - {" "}) < 5:
        raise ValueError("this is not a reason; write why, in a few words")


def _check_reason(value: str) -> None:
    if (
        _UNSAID.search(value)
        or len(re.findall(r"[A-Za-z]", value)) < 3
        or len(set(value.lower())) < 3
    ):
        raise ValueError("this is not a reason; write who needs it and for what")


_FOREIGN_VARIABLES = re.compile(
    r"(LC|LD|PYTHON|XDG|SSH|SUDO|GIT|UV|HOLDFAST|PYINFRA)_.*"
    r"|PATH|HOME|USER|LOGNAME|SHELL|PWD|OLDPWD|TERM|LANG|MAIL|HOSTNAME|DISPLAY|EDITOR|VISUAL"
    r"|PAGER|VIRTUAL_ENV|TMPDIR|INVENTORY|MAKEFLAGS"
)
"""Secrets are read from the environment first, which contains these for other purposes."""


def _check_secret_name(value: str) -> None:
    if _FOREIGN_VARIABLES.fullmatch(value):
        raise ValueError(
            "other programs use an environment variable of this name; choose another, such as"
            " FLOOR_API_KEY"
        )


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
    # A truncated key would lock its owner out, because the other keys are removed.
    try:
        load_ssh_public_key(f"{kind} {encoded}".encode())
        is_whole = base64.b64encode(blob).decode() == encoded
    except (ValueError, UnsupportedAlgorithm):
        is_whole = False
    if not is_whole:
        raise ValueError("this key is truncated or damaged; paste the whole line of the .pub file")


# The part of systemd.time(7) that every version reads in the same way, without years and zones.
_ITEM = r"\d{1,2}(\.\.\d{1,2})?(/\d{1,2})?"
_ITEMS = rf"(\*|{_ITEM}(,{_ITEM})*)"
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_DAY = rf"({'|'.join(_DAYS)})"
_CALENDAR = (
    r"(minutely|hourly|daily|weekly|monthly|quarterly|semiannually|yearly|annually)"
    rf"|((?P<weekdays>{_DAY}(\.\.{_DAY})?(,{_DAY}(\.\.{_DAY})?)*) )?"
    rf"((\*-)?(?P<months>{_ITEMS})-(?P<days>{_ITEMS}) )?"
    rf"(?P<hours>{_ITEMS}):(?P<minutes>{_ITEMS})(:(?P<seconds>\d{{1,2}}))?"
)
_MONTH_DAYS = dict(enumerate((31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31), start=1))


def _numbers(text: str, least: int, most: int) -> set[int] | None:
    """The numbers of a calendar's items; None if systemd would refuse one of them."""
    found: set[int] = set()
    for item in text.split(","):
        if item == "*":
            found.update(range(least, most + 1))
            continue
        span, _, step = item.partition("/")
        first, _, last = span.partition("..")
        start, end, pace = int(first), int(last or (most if step else first)), int(step or 1)
        if start < least or end > most or end < start or pace < 1:
            return None
        if step and start + pace > end:
            return None
        found.update(range(start, end + 1, pace))
    return found


_LIMITS = {
    "hours": (0, 23),
    "minutes": (0, 59),
    "seconds": (0, 59),
    "months": (1, 12),
    "days": (1, 31),
}


def _check_calendar(value: str) -> None:
    match = re.fullmatch(_CALENDAR, value, re.ASCII)
    parts = match.groupdict() if match else {}
    meant: dict[str, set[int]] = {}
    for part, (least, most) in _LIMITS.items():
        if text := parts.get(part):
            numbers = _numbers(text, least, most)
            if numbers is None:
                raise ValueError(
                    f"the {part} are out of range; write a time of day such as 03:30:00"
                )
            meant[part] = numbers
    for first, last in re.findall(r"(\w+)\.\.(\w+)", parts.get("weekdays") or ""):
        if _DAYS.index(first) >= _DAYS.index(last):
            raise ValueError(f"a week begins on Monday; write the days from {first} one by one")
    if meant.get("days") and not any(
        day <= _MONTH_DAYS[month] for month in meant["months"] for day in meant["days"]
    ):
        raise ValueError("this date does not exist; write a day that its month has")


_SHORT = {
    "minutely": "*:*",
    "hourly": "*:00",
    "daily": "00:00",
    "weekly": "Mon 00:00",
    "monthly": "*-01 00:00",
    "quarterly": "01,04,07,10-01 00:00",
    "semiannually": "01,07-01 00:00",
    "yearly": "01-01 00:00",
    "annually": "01-01 00:00",
}


_CYCLE_DAYS = 28 * 365 + 7
"""After this time the dates fall on the same weekdays again."""


def longest_pause_hours(calendar: str) -> float:
    """The longest time between two moments of a `Calendar`, hours."""
    match = re.fullmatch(_CALENDAR, _SHORT.get(calendar, calendar), re.ASCII)
    parts = match.groupdict() if match else {}
    weekdays: set[int] = set()
    for span in (parts["weekdays"] or "Mon..Sun").split(","):
        first, _, last = span.partition("..")
        weekdays |= set(range(_DAYS.index(first), _DAYS.index(last or first) + 1))
    meant = {part: _numbers(parts[part] or "*", *limit) or set() for part, limit in _LIMITS.items()}
    minutes = sorted(60 * hour + minute for hour in meant["hours"] for minute in meant["minutes"])
    start = date(2000, 1, 1).toordinal()
    days = [
        ordinal
        for ordinal in range(start, start + _CYCLE_DAYS)
        if (day := date.fromordinal(ordinal)).weekday() in weekdays
        and day.month in meant["months"]
        and day.day in meant["days"]
    ]
    apart = max((b - a for a, b in pairwise(days)), default=_CYCLE_DAYS)
    at_night = 24 * 60 * apart - (minutes[-1] - minutes[0])
    return max(at_night, *(b - a for a, b in pairwise(minutes)), 0) / 60


def _check_image(value: str) -> None:
    name, _, digest = value.partition("@")
    registry, _, rest = name.partition("/")
    if "." not in registry and ":" not in registry and registry != "localhost":
        raise ValueError(
            f"this does not name its registry; write it in full, such as docker.io/{name}"
        )
    if not digest:
        raise ValueError(
            "a tag may name another image tomorrow; write the digest that you have tested, as"
            " NAME@sha256:..., which `docker image inspect --format '{{.RepoDigests}}'` shows"
        )
    _check_sha256(digest.removeprefix("sha256:"))
    if ":" in rest:
        raise ValueError("the digest alone decides; write it without the tag")


_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_DNS = rf"{_LABEL}(\.{_LABEL})*"

Text = Annotated[str, Word("one line of text", "a few words", r"[!-~]([ -~]*[!-~])?")]
Sentence = Annotated[
    str,
    Word(
        "a reason in words",
        "the card drives no display",
        r"[!-~]([ -~]*[!-~])?",
        _check_sentence,
    ),
]
ControllerPath = Annotated[
    str, Word("a path on this controller", "~/.ssh/id_ed25519", r"[!-~]([ -~]*[!-~])?")
]
Name = Annotated[
    str,
    Word(
        "a name of at most 41 lower-case letters, digits and -",
        "nas",
        r"[a-z]([a-z0-9-]{0,39}[a-z0-9])?",
    ),
]
UserName = Annotated[str, Word("a system user name", "holdfast-floor", r"[a-z_][a-z0-9_-]{0,30}")]
HostLabel = Annotated[str, Word("one lower-case label without dots", "rack", _LABEL, _check_name)]
DnsName = Annotated[
    str, Word("a lower-case DNS name", "nas.home.arpa", _DNS, _check_name, machine=True)
]
HostOrAddress = Annotated[
    str,
    Word(
        "a DNS name or an IP address",
        "nas.home.arpa",
        r"[A-Za-z0-9._:-]+",
        _check_host,
        machine=True,
    ),
]
LoginHost = Annotated[
    str,
    Word(
        "a DNS name, an ssh_config alias or an IP address",
        "rack.home.arpa",
        r"[A-Za-z0-9._:-]+(%[A-Za-z0-9._-]+)?",
        _check_login,
        machine=True,
    ),
]
Interface = Annotated[
    str,
    Word(
        "a network interface name", "enp5s0", r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}", _check_interface
    ),
]
_TAG, _GROUP = r"tag:[a-z][a-z0-9-]*", r"group:[a-z][a-z0-9-]*"
_TAILNET_USER = rf"[a-z0-9][a-z0-9._+-]*@({_DNS})?"
Tag = Annotated[str, Word("a tailnet tag", "tag:rack", _TAG)]
TailnetUser = Annotated[
    str, Word("a lower-case tailnet user", "alice@example.org", _TAILNET_USER, machine=True)
]
TailnetGroup = Annotated[str, Word("a tailnet group", "group:family", _GROUP)]
Caller = Annotated[
    str,
    Word(
        "a tailnet tag, group or user",
        "tag:office",
        f"{_TAG}|{_GROUP}|{_TAILNET_USER}",
        machine=True,
    ),
]
SecretName = Annotated[
    str,
    Word(
        "the name of a secret (its value belongs in .env)",
        "FLOOR_API_KEY",
        r"[A-Z][A-Z0-9_]{2,60}",
        _check_secret_name,
        secret=True,
    ),
]
Sha256 = Annotated[
    str,
    Word(
        "the 64 hex digits that sha256sum prints",
        "9f86d081884c7d65...",
        r"[0-9a-f]{64}",
        _check_sha256,
    ),
]
Fingerprint = Annotated[
    str,
    Word(
        "the 40 hex digits, in capitals and without spaces, that gpg --show-keys prints",
        "02182E60104FCDC26EAE1B8597A5D4CB8793F200",
        r"[0-9A-F]{40}",
    ),
]
_URL = r"https?://([A-Za-z0-9.-]+|\[[0-9a-f:.]+\])(:\d{0,5})?(/[A-Za-z0-9._~/@+%=&?:,-]*)?"
Url = Annotated[
    str,
    Word(
        "an http(s) URL without user or password",
        "https://nas.home.arpa:8000",
        _URL,
        _check_url,
        machine=True,
    ),
]
CloudUrl = Annotated[
    str,
    Word(
        "an https URL without user or password",
        "https://api.example.org/v1",
        r"https://[A-Za-z0-9.:-]+(/[A-Za-z0-9._~/-]*)?",
        _check_cloud_url,
        machine=True,
    ),
]
PinnedUrl = Annotated[
    str,
    Word(
        "an http(s) URL without user or password",
        "https://example.org/v1.2.3/tool.tar.gz",
        _URL,
        _check_pinned_url,
        machine=True,
    ),
]
Source = Annotated[
    str,
    Word(
        "an http(s) URL without user or password, or an absolute path",
        "/mnt/nas/models/a.gguf",
        rf"{_URL}|/[A-Za-z0-9._/@+-]*",
        _check_source,
        machine=True,
    ),
]
Version = Annotated[
    str, Word("a version", "1.2.3", r"[A-Za-z0-9][A-Za-z0-9._+-]{0,40}", _check_pinned_version)
]
Calendar = Annotated[str, Word("a systemd calendar", "*-*-* 03:30:00", _CALENDAR, _check_calendar)]
Timezone = Annotated[
    str,
    Word(
        "a time zone of a continent or ocean and a city",
        "Europe/Berlin",
        r"[A-Za-z0-9_+/-]+",
        _check_timezone,
    ),
]
Locale = Annotated[
    str,
    Word("a UTF-8 locale", "C.UTF-8", r"(C|[a-z]{2,3}_[A-Z]{2})\.UTF-8(@[a-z]+)?", _check_locale),
]
Suite = Annotated[
    str,
    Word(
        "an APT suite, or the folder of a flat repository, which ends in /",
        "bookworm",
        r"/|[a-z0-9][a-z0-9.-]{0,60}(/[a-z0-9][a-z0-9.-]{0,60}){0,4}/?",
    ),
]
PackagePrefix = Annotated[
    str, Word("the first part of a package name", "nvidia-", r"[a-z0-9][a-z0-9.+-]{1,60}")
]
FileName = Annotated[
    str, Word("a file name without folders", "model-q4.gguf", r"[A-Za-z0-9][A-Za-z0-9._+-]{0,120}")
]
CpuList = Annotated[
    str,
    Word(
        "numbers of CPUs as `lscpu` writes them",
        "4-31",
        # systemd reads a number that begins with 0 as an octal one.
        rf"{_CPU}(-{_CPU})?(,{_CPU}(-{_CPU})?)*",
        _check_cpus,
    ),
]
FlagName = Annotated[
    str, Word("a flag without its dashes", "max-num-batched-tokens", r"[a-z][a-z0-9-]{1,60}")
]
VariableName = Annotated[
    str, Word("the name of a variable", "LOG_LEVEL", r"[A-Za-z_][A-Za-z0-9_]{0,80}")
]
ImageDigest = Annotated[
    str,
    Word(
        "a container image with its registry and digest",
        "ghcr.io/example/pictures@sha256:9f86d081884c7d65...",
        r"[a-z0-9][a-z0-9.-]*(:[0-9]{1,5})?(/[a-z0-9][a-z0-9._-]*)+"
        r"(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(@sha256:[0-9a-f]{64})?",
        _check_image,
        machine=True,
    ),
]
ContainerUser = Annotated[
    str,
    Word(
        "the numbers of a user and a group, not root",
        "1000:1000",
        r"[1-9][0-9]{0,4}:[1-9][0-9]{0,4}",
    ),
]
UnitName = Annotated[
    str,
    Word(
        "a systemd unit name",
        "photos.service",
        # A name that ends in a dash applies to every unit with that prefix (systemd.unit(5)).
        r"[a-z]([a-z0-9_.-]{0,80}[a-z0-9_])?(@([a-z0-9_]([a-z0-9_.-]{0,80}[a-z0-9_])?)?)?"
        r"\.(service|socket|timer)",
    ),
]
Reason = Annotated[
    str,
    Word(
        "3 to 60 letters, digits, spaces and . , ( ) / -",
        "printer discovery",
        r"[A-Za-z0-9(][A-Za-z0-9 .,()/-]{1,58}[A-Za-z0-9.)]",
        _check_reason,
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
        r"GPU-(?!0{8}(-0{4}){3}-0{12})[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    ),
]
DriverBranch = Annotated[str, Word("an NVIDIA driver branch", "580", r"[3-9][0-9]{2}")]
LocalUrl = Annotated[
    str,
    Word(
        "a URL on 127.0.0.1 (of T2, T3, T4: .2, .3, .4) with a port",
        "http://127.0.0.1:8080/health",
        r"http://127\.0\.0\.[1-4]:\d{1,5}/[A-Za-z0-9._~/%=&?-]*",
        _check_local_url,
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
Cidr = Annotated[
    str,
    Word("a network", "192.168.1.0/24 or fd00:1::/64", r"[0-9A-Fa-f.:]+(/\d{1,3})?", _check_cidr),
]
Address = Annotated[
    str, Word("an IP address", "192.168.1.20 or fd00:1::20", r"[0-9A-Fa-f.:]+", _check_address)
]
Port = Annotated[int, Field(ge=1, le=65535)]
Figure = Annotated[float, Field(allow_inf_nan=False)]
Watts = Annotated[int, Field(ge=50, le=1500)]
"""A card's power limit, within the range of all cards, W."""
PublicKey = Annotated[
    str,
    Word(
        "one line of an OpenSSH public key file",
        "ssh-ed25519 AAAA... you@laptop",
        r"[a-z0-9@.-]+ [A-Za-z0-9+/=]+( [ -~]*)?",
        _check_public_key,
    ),
]
