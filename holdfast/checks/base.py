"""The base: private authorities and time servers."""

from __future__ import annotations

from pathlib import Path

from holdfast.checks.finding import Finding, Findings, no_file
from holdfast.checks.machines import Hosts, machine_of
from holdfast.settings import HostSettings


def authorities(settings: HostSettings) -> Findings:
    """Files that contain no certificate of an authority."""
    for name, path in settings.base.trusted_cas.items():
        wrong = no_file(path)
        text = "" if wrong else Path(path).expanduser().read_text("utf-8", "replace")
        if not wrong and "PRIVATE KEY-----" in text:
            wrong = "this file contains a private key, which every user of the host could read"
        elif not wrong and "-----BEGIN CERTIFICATE-----" not in text:
            wrong = "this file contains no PEM certificate"
        if wrong is None:
            continue
        yield Finding(
            f"base.trusted_cas.{name}", path, wrong, "write the path of the authority's .pem"
        )


def time(host: str, hosts: Hosts) -> Findings:
    """A host that is its own time server."""
    for index, server in enumerate(hosts[host].base.ntp_servers):
        if machine_of(server, host, hosts) == host:
            yield Finding(
                f"base.ntp_servers[{index}]",
                server,
                "this is the host itself",
                "write a server of the LAN, or none for the distribution's pool",
            )
