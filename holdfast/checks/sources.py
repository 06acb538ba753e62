"""Where programs come from: mirrors that cannot be trusted or used."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from holdfast.checks.finding import Finding, Findings, is_private_address
from holdfast.settings import Artefact, HostSettings


def artefacts(settings: HostSettings) -> Findings:
    """Downloads for another version than declared, or for another system."""
    restic = settings.backup.restic if settings.backup else None
    found = {"floor.release": settings.floor.release if settings.floor else None}
    found["backup.restic"] = restic if isinstance(restic, Artefact) else None
    for key, artefact in found.items():
        if artefact is None:
            continue
        # Versions in the same format as this one: b7500, 0.16.4.
        version = artefact.version.removeprefix("v")
        shape = re.sub(r"\d+", r"\\d+", re.escape(version))
        others = re.findall(rf"(?<![\d.]){shape}(?!\d)", urlsplit(artefact.url).path)
        if re.search(r"[a-z.]", version) and others and version not in others:
            wrong = f"the URL is for version {others[0]}"
            yield Finding(
                f"{key}.version", artefact.version, wrong, "write the same version in both"
            )
        if re.search(r"(?i)darwin|macos|windows|-win-|freebsd", artefact.url):
            wrong = "this build is for another operating system"
            yield Finding(f"{key}.url", artefact.url, wrong, "write the URL of the build for Linux")


def mirrors(settings: HostSettings) -> Findings:
    """APT repositories without packages, or with a signing key that can be forged."""
    gpus = settings.gpus
    mirrors = {
        "docker.repository": settings.docker.repository if settings.docker else None,
        "tailnet.repository": settings.tailnet.repository if settings.tailnet else None,
        "gpus.driver.repository": gpus.driver.repository if gpus else None,
        "gpus.container_toolkit_repository": gpus.container_toolkit_repository if gpus else None,
    }
    for key, mirror in mirrors.items():
        if mirror and not mirror.components and not mirror.suite.endswith("/"):
            yield Finding(f"{key}.components", [], "a suite needs a component", "write 'main'")
        pinned = mirror and (mirror.key_sha256 or mirror.key_fingerprint)
        if mirror is None or pinned or mirror.key_url.startswith("https://"):
            continue
        # A mirror in the private network is as trusted as that network.
        if not is_private_address(mirror.key_url):
            yield Finding(
                f"{key}.key_url",
                mirror.key_url,
                "a signing key fetched over plain http can be forged",
                "write its https URL, or give key_sha256 or key_fingerprint too",
            )
