"""The ground: private authorities."""

from __future__ import annotations

from pathlib import Path

from holdfast.checks.finding import Finding, Findings
from holdfast.settings import HostSettings


def authorities(settings: HostSettings) -> Findings:
    """Authorities that prove nothing."""
    for name, path in settings.base.trusted_cas.items():
        file = Path(path).expanduser()
        if not file.is_file():
            wrong = "there is no such file here"
        elif "-----BEGIN CERTIFICATE-----" not in file.read_text("utf-8", "replace"):
            wrong = "this file holds no PEM certificate"
        else:
            continue
        yield Finding(
            f"base.trusted_cas.{name}", path, wrong, "write the path of the authority's .pem"
        )
