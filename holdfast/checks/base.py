"""The ground: private authorities."""

from __future__ import annotations

from pathlib import Path

from holdfast.checks.finding import Finding, Findings, no_file
from holdfast.settings import HostSettings


def authorities(settings: HostSettings) -> Findings:
    """Authorities that prove nothing."""
    for name, path in settings.base.trusted_cas.items():
        wrong = no_file(path)
        text = "" if wrong else Path(path).expanduser().read_text("utf-8", "replace")
        if not wrong and "PRIVATE KEY-----" in text:
            wrong = "this file holds a private key, which every user of the host could read"
        elif not wrong and "-----BEGIN CERTIFICATE-----" not in text:
            wrong = "this file holds no PEM certificate"
        if wrong is None:
            continue
        yield Finding(
            f"base.trusted_cas.{name}", path, wrong, "write the path of the authority's .pem"
        )
