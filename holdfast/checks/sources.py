"""Where programs come from: mirrors that cannot be trusted or used."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from holdfast.checks.finding import Finding, Findings, is_private_address
from holdfast.settings import Artefact, HostSettings


def artefacts(settings: HostSettings) -> Findings:
    """Downloads of another version than they say, or for another system."""
    restic = settings.backup.restic if settings.backup else None
    found = {"floor.release": settings.floor.release if settings.floor else None}
    found["backup.restic"] = restic if isinstance(restic, Artefact) else None
    for key, artefact in found.items():
        if artefact is None:
            continue
        # Versions that are written as this one is: b7500, 0.16.4.
        version = artefact.version.removeprefix("v")
        shape = re.sub(r"\d+", r"\\d+", re.escape(version))
        others = re.findall(rf"(?<![\d.]){shape}(?!\d)", urlsplit(artefact.url).path)
        if re.search(r"[a-z.]", version) and others and version not in others:
            wrong = f"the URL is that of {others[0]}"
            yield Finding(f"{key}.version", artefact.version, wrong, "write the same in both")
        if re.search(r"(?i)darwin|macos|windows|-win-|freebsd", artefact.url):
            wrong = "this is built for another system"
            yield Finding(f"{key}.url", artefact.url, wrong, "write the URL of the build for Linux")


def mirrors(settings: HostSettings) -> Findings:
    """APT repositories that have no packages, or whose signing keys prove nothing."""
    gpus = settings.gpus
    mirrors = {
        "docker.repository": settings.docker.repository if settings.docker else None,
        "tailnet.repository": settings.tailnet.repository if settings.tailnet else None,
        "gpus.driver.repository": gpus.driver.repository if gpus else None,
        "gpus.container_toolkit_repository": gpus.container_toolkit_repository if gpus else None,
    }
    for key, mirror in mirrors.items():
        if mirror and not mirror.components and not mirror.suite.endswith("/"):
            yield Finding(
                f"{key}.components", [], "APT finds nothing in a suite without one", "write 'main'"
            )
        pinned = mirror and (mirror.key_sha256 or mirror.key_fingerprint)
        if mirror is None or pinned or mirror.key_url.startswith("https://"):
            continue
        # A mirror at an address of one's own network can be trusted as that network can.
        if not is_private_address(mirror.key_url):
            yield Finding(
                f"{key}.key_url",
                mirror.key_url,
                "a signing key fetched over plain http proves nothing",
                "write its https URL, or give key_sha256 or key_fingerprint too",
            )
