"""The configuration of the container engine, and the source of its packages. Pure decisions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from facts.places import SYSTEM
from holdfast.refusal import Refusal
from holdfast.service.capability import Declared
from holdfast.settings import AptRepository, Distribution, Docker, HostSettings, Service

DAEMON_JSON = "/etc/docker/daemon.json"
DROP_IN = f"{SYSTEM}/docker.service.d/holdfast.conf"

LINKS_SCRIPT = "/usr/local/lib/holdfast/docker-links"
"""Lets the machine's own links keep the IPv6 routes that routers advertise."""

VENDOR_KEY_SHA256 = "1500c1f56fa9e26b9b8f42452a553675796ade0807cdce11975eb98170b3a570"
"""Checksum of https://download.docker.com/linux/debian/gpg, the same file for Ubuntu; its
fingerprint is 9DC8 5822 9FC7 DD38 854A  E2D8 8D81 803C 0EBF CD88."""

_SUITES: dict[Distribution, tuple[str, str]] = {
    "debian12": ("debian", "bookworm"),
    "debian13": ("debian", "trixie"),
    "ubuntu2404": ("ubuntu", "noble"),
    "ubuntu2604": ("ubuntu", "resolute"),
}


def vendor_repository(distribution: Distribution) -> AptRepository:
    """Docker's own repository for ``distribution``."""
    family, codename = _SUITES[distribution]
    return AptRepository(
        url=f"https://download.docker.com/linux/{family}",
        key_url=f"https://download.docker.com/linux/{family}/gpg",
        key_sha256=VENDOR_KEY_SHA256,
        suite=codename,
        components=["stable"],
    )


def packages(settings: Docker, distribution: Distribution) -> list[str]:
    """The packages of the engine."""
    if settings.source == "vendor":
        return [
            "docker-ce",
            "docker-ce-cli",
            "containerd.io",
            "docker-buildx-plugin",
            "docker-compose-plugin",
        ]
    # Debian 13 moved the command line to a package of its own.
    return ["docker.io", "docker-cli"] if distribution == "debian13" else ["docker.io"]


def enforced(settings: Docker, major: int) -> dict[str, Any]:
    """The keys of daemon.json that Holdfast sets, for the engine's ``major`` version.

    It leaves ``icc`` alone, because compose files rely on it, and ``runtimes``, which is NVIDIA's.
    A key that would undo the firewall is refused and not overridden (`merged`), because its author
    had a reason for it.
    """
    keys: dict[str, Any] = {
        # A port published without an address is for this host, not for the LAN.
        "ip": "127.0.0.1",
        # Containers must survive an upgrade or a new configuration of the engine.
        "live-restore": True,
        "no-new-privileges": True,
        # Every log shipper can read this format, and the driver rotates.
        "log-driver": "json-file",
        "log-opts": {
            "max-size": f"{settings.log_max_mib}m",
            "max-file": str(settings.log_max_files),
        },
    }
    if settings.dns:
        # Otherwise the engine asks resolvers on loopback, and since 26 IPv6 resolvers for
        # containers without IPv6. It does so as root, from the host's own network, where no rule
        # can attribute a query to a container.
        keys["dns"] = settings.dns
    if major >= 24:
        # "ip" covers the default bridge only. Since Docker 24 this key covers compose's networks.
        keys["default-network-opts"] = {
            "bridge": {"com.docker.network.bridge.host_binding_ipv4": "127.0.0.1"}
        }
    return keys


def _merge(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    merged = dict(theirs)
    for key, value in ours.items():
        present = merged.get(key)
        nested = isinstance(present, dict) and isinstance(value, dict)
        merged[key] = _merge(present, value) if nested else value  # type: ignore[arg-type]
    return merged


_ROUTES = "which lets neighbours bypass the rules for published ports"
_PREMISES: dict[str, tuple[object, str]] = {
    "firewall-backend": (
        "iptables",
        "which has no DOCKER-USER and leaves published ports open",
    ),
    "iptables": (True, "which leaves published ports and networks without a rule"),
    "ip6tables": (True, "which leaves published ports and networks without a rule over IPv6"),
    "ip-masq": (True, "which sends packets of containers from addresses that no rule covers"),
    "ip-forward": (True, "which stops the engine from setting its own forwarding rules"),
    "ip-forward-no-drop": (False, "which forwards packets between the host's networks"),
    "allow-direct-routing": (False, _ROUTES),
    "userland-proxy": (True, "which shows the host's loopback to containers and neighbours"),
    "bridge": ("docker0", "whose containers no rule covers"),
    "group": ("docker", "whose members are root"),
}
"""Key of daemon.json to the only value that the firewall permits, and the effect of others."""

_OPTIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "com.docker.network.bridge.gateway_mode_ipv4": (("nat", "isolated"), _ROUTES),
    "com.docker.network.bridge.gateway_mode_ipv6": (("nat", "isolated"), _ROUTES),
    "com.docker.network.bridge.enable_ip_masquerade": (("true",), _PREMISES["ip-masq"][1]),
    "com.docker.network.bridge.trusted_host_interfaces": ((), _ROUTES),
}
"""The same for the options of bridges in ``default-network-opts``."""


def _undoing(theirs: dict[str, Any]) -> Iterator[tuple[str, object, str]]:
    """Each of the user's keys that would undo the firewall, its value, and its effect."""
    for key, (safe, wrong) in _PREMISES.items():
        # For the engine an empty text is the default.
        if key in theirs and theirs[key] not in (safe, ""):
            yield key, theirs[key], wrong
    hosts = theirs.get("hosts", [])
    local = ("unix://", "fd://")
    if not isinstance(hosts, list) or not all(str(host).startswith(local) for host in hosts):
        yield "hosts", hosts, "which gives root to each user who can connect"
    options = theirs.get("default-network-opts", {})
    bridge = options.get("bridge", {}) if isinstance(options, dict) else {}
    for key, (safe_words, wrong) in _OPTIONS.items():
        if isinstance(bridge, dict) and key in bridge and bridge[key] not in safe_words:
            yield f"default-network-opts.bridge.{key}", bridge[key], wrong


_SHORT = {"H": "hosts", "b": "bridge", "G": "group"}
_LONG = {"host": "hosts"} | {key: key for key in _PREMISES}


def options(started_with: str) -> dict[str, Any]:
    """The options of a command line that `merged` would refuse, as keys of daemon.json.

    ``started_with`` is `DockerState.started_with`: a unit's command and assignments of variables.
    """
    # An option may follow a quote or the name of a variable.
    words = re.sub(r"\w+=(?=\s*-)|[\"';]", " ", started_with).split()
    found: dict[str, Any] = {}
    for word, following in pairwise([*words, ""]):
        match = re.fullmatch(r"-(?:([HbG])|-([a-z0-9-]+))(?:(?:=|(?<=[HbG]))(.*))?", word)
        key = _SHORT.get(match[1]) or _LONG.get(match[2]) if match else None
        if match is None or key is None:
            continue
        value = match[3]
        if isinstance(_PREMISES.get(key, ("", ""))[0], bool):
            found[key] = value is None or value.lower() in ("true", "t", "1")
        elif key == "hosts":
            found[key] = [*found.get(key, []), value or following]
        else:
            found[key] = value or following
    return found


def refusals(host: str, state_text: str | None, started_with: str = "") -> list[Refusal]:
    """Why our configuration cannot be merged; empty if it can.

    ``state_text`` is the text of the host's daemon.json, None without one; ``started_with`` is
    `DockerState.started_with`.
    """
    try:
        merged(state_text, {})
    except ValueError as error:
        wrong, _, mend = str(error).rpartition(": ")
        return [Refusal(host, "docker", DAEMON_JSON, wrong, mend)]
    return [
        Refusal(
            host,
            "docker",
            "docker.service",
            f"the engine is started with {key} as {value!r}, {wrong}",
            "remove that option from the unit's drop-ins or /etc/default/docker",
        )
        for key, value, wrong in _undoing(options(started_with))
    ]


def merged(content: str | None, keys: dict[str, Any]) -> str | None:
    """daemon.json with our ``keys`` and all others unchanged; None if it has them already.

    Raises:
        ValueError: the content cannot be merged; the message says why and what to do.
    """
    try:
        theirs = json.loads(content) if content and content.strip() else {}
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{DAEMON_JSON} is not valid JSON ({error}): correct or remove it"
        ) from None
    if not isinstance(theirs, dict):
        raise ValueError(f"{DAEMON_JSON} is not a JSON object: correct or remove it")
    for key, value, wrong in _undoing(theirs):
        raise ValueError(f"{DAEMON_JSON} sets {key} to {value!r}, {wrong}: remove that key")
    wanted = _merge(theirs, keys)
    return None if wanted == theirs else json.dumps(wanted, indent=2) + "\n"


def major_version(package_version: str | None) -> int | None:
    """The engine's major version, such as 29 for the package ``5:29.1.3-1~debian.13``."""
    if package_version is None:
        return None
    return int(package_version.rpartition(":")[2].partition(".")[0])


def services(settings: HostSettings) -> list[Declared]:
    """The container engine, where the host has one."""
    if settings.docker is None:
        return []
    return [("docker", Service(name="docker", unit="docker.service", user="root", tier="T4"))]
