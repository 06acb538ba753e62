"""Where programs come from: mirrors that cannot be trusted or used."""

from __future__ import annotations

from holdfast.checks.finding import Finding, Findings, is_private_address
from holdfast.settings import HostSettings


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
