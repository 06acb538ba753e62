"""The ledger: PostgreSQL as a record of what was spent on clouds, reached by a Unix socket alone.

Each router that leads to clouds has a database called as the user is that writes to it, and that
user gets into no other: PostgreSQL asks the kernel who connects, so there is no password.
"""

from __future__ import annotations

from facts.places import SYSTEM
from facts.router import LEDGER_FOLDER as FOLDER
from holdfast import alerts
from holdfast.registry import LEDGER_DUMPS, clouds_service, ledger_service
from holdfast.render import render
from holdfast.sandbox import RUN, Directive, sandbox
from holdfast.settings import Distribution, HostSettings

DUMP = "holdfast-ledger-dump.service"
SOCKET_FOLDER = f"{RUN}/holdfast-ledger"
MAJOR: dict[Distribution, int] = {
    "debian12": 15,
    "debian13": 17,
    "ubuntu2404": 16,
    "ubuntu2604": 18,
}
"""PostgreSQL as each distribution has it; Ubuntu 26.04's is read, not installed."""
NO_CLUSTER = "/etc/postgresql-common/createcluster.d/holdfast.conf"
"""Keeps the package from starting a server of its own, at a TCP port."""


def package(settings: HostSettings) -> str:
    """The distribution package of the server."""
    return f"postgresql-{MAJOR[settings.distribution]}"


def databases(settings: HostSettings) -> list[str]:
    """The users who write to it; each one's database is called as it is."""
    services = [clouds_service(settings, router) for router in settings.routers]
    return [service.user for service in services if service]


def files(settings: HostSettings) -> dict[str, str]:
    """Path to text of what the ledger needs; nothing where no router asks clouds."""
    service = ledger_service(settings)
    if service is None:
        return {}
    peers = Directive("PrivateUsers", "no", "it asks the kernel which user connects")
    values = {
        "major": MAJOR[settings.distribution],
        "programs": f"/usr/lib/postgresql/{MAJOR[settings.distribution]}/bin",
        "user": service.user,
        "folder": FOLDER,
        "run": SOCKET_FOLDER,
        "dumps": LEDGER_DUMPS,
        "databases": databases(settings),
        "timezone": settings.base.timezone,
        "on_failure": alerts.ON_FAILURE,
        "sandbox": sandbox(service, isolated=True, relaxed=[peers]),
    }
    units = (service.unit, DUMP)
    return {
        **{f"{SYSTEM}/{unit}": render(f"ledger/{unit}.j2", **values) for unit in units},
        **{
            f"{FOLDER}/{name}": render(f"ledger/{name}.j2", **values)
            for name in ("postgresql.conf", "pg_hba.conf")
        },
    }
