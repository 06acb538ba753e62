"""The ledger: a PostgreSQL that records spending on clouds, and listens on a Unix socket only.

Each router with clouds has a database of its own. The database has the name of the user that writes
to it, and that user may open no other. PostgreSQL asks the kernel which user connects, so there is
no password.
"""

from __future__ import annotations

from facts.places import CONFIGURATION, STATE
from holdfast.render import render
from holdfast.routing import LEDGER_DUMPS, clouds_service, ledger_service
from holdfast.sandbox import RUN, Directive
from holdfast.service import File, Program, Words
from holdfast.service.capability import Declared
from holdfast.settings import Distribution, HostSettings, Service

DUMP = "holdfast-ledger-dump.service"
FOLDER = f"{CONFIGURATION}/ledger"
"""The folder of its configuration."""
SOCKET_FOLDER = f"{RUN}/holdfast-ledger"
MAJOR: dict[Distribution, int] = {
    "debian12": 15,
    "debian13": 17,
    "ubuntu2404": 16,
    "ubuntu2604": 18,
}
"""PostgreSQL's major version in each distribution. Ubuntu 26.04's was looked up, not installed."""
NO_CLUSTER = "/etc/postgresql-common/createcluster.d/holdfast.conf"
"""Prevents the package from starting a server of its own, on a TCP port."""


def databases(settings: HostSettings) -> list[str]:
    """The users that write to the ledger; each has a database of the same name."""
    services = [clouds_service(settings, router) for router in settings.routers]
    return [service.user for service in services if service]


def programs(settings: HostSettings) -> list[Program]:
    """The ledger, and the job that dumps it for a backup; none if no router asks clouds."""
    service = ledger_service(settings)
    if service is None:
        return []
    major = MAJOR[settings.distribution]
    binaries = f"/usr/lib/postgresql/{major}/bin"
    configuration = {
        f"{FOLDER}/{name}": render(
            f"ledger/{name}.j2",
            user=service.user,
            folder=FOLDER,
            run=SOCKET_FOLDER,
            timezone=settings.base.timezone,
        )
        for name in ("postgresql.conf", "pg_hba.conf")
    }
    peers = Directive("PrivateUsers", "no", "it asks the kernel which user connects")
    names = databases(settings)
    return [
        Program(
            service=service,
            packages=(f"postgresql-{major}",),
            packages_read=(File(NO_CLUSTER, "create_main_cluster = false\n"),),
            description=f"Holdfast ledger: PostgreSQL {major}, spending on clouds",
            kind="notify",
            before=(_sh(_OTHER_MAJOR.format(major=major)), _sh(_made(binaries, service, major))),
            command=(
                f"{binaries}/postgres",
                *("-D", f"{STATE}/ledger/{major}"),
                *("-c", f"config_file={FOLDER}/postgresql.conf"),
            ),
            ready=tuple(_sh(_with_database(binaries, name)) for name in names),
            files=tuple(File(path, text) for path, text in configuration.items()),
            runtime=SOCKET_FOLDER.removeprefix("/run/"),
            runtime_mode="0755",
            state="holdfast/ledger",
            folders=(LEDGER_DUMPS,),
            working_directory=f"{STATE}/ledger",
            start_seconds=300,
            stop_seconds=120,
            restart="on-failure",
            restart_seconds=2,
            at_boot=True,
            tuned=(
                Directive("KillSignal", "SIGINT", "fast: clients are disconnected, data is saved"),
                Directive("KillMode", "mixed"),
            ),
            isolated=True,
            relaxed=(peers,),
        ),
        Program(
            service=service.model_copy(update={"unit": DUMP}),
            description="Holdfast ledger: dump for the backup",
            kind="oneshot",
            command=_sh("; ".join(_dumped(binaries, name) for name in names)),
            # The backup waits for it.
            start_seconds=3600,
            order=(Directive("Requires", service.unit), Directive("After", service.unit)),
            isolated=True,
            relaxed=(peers,),
        ),
    ]


def _sh(script: str) -> Words:
    return ("/bin/sh", "-euc", script)


_OTHER_MAJOR = (
    "test -e {major} && exit; for other in [1-9]*; do test ! -e $other"
    ' || {{ echo "<3>the ledger was written by PostgreSQL $other, but this is {major}:'
    ' docs/routing.md says how to migrate it" >&2; exit 1; }}; done'
)
"""Refuses to start after an upgrade of the distribution: an empty ledger would reset budgets."""


def _made(binaries: str, service: Service, major: int) -> str:
    # Create it under another name first, so that no half-done one is used after a power cut.
    return (
        f"test -e {major} || {{ rm -rf new; {binaries}/initdb --pgdata=new"
        f" --username={service.user} --auth=peer --encoding=UTF8 --locale=C --data-checksums >&2;"
        f" sync -f new; mv new {major}; }}"
    )


def _with_database(binaries: str, name: str) -> str:
    asked = f"{binaries}/psql --host={SOCKET_FOLDER} --dbname=postgres --tuples-only --no-align"
    # The name is a user's in the grammar of inventories, so it contains no quote.
    return (
        f'ask="{asked} --command";'  # noqa: S608
        f' test -n "$($ask "SELECT 1 FROM pg_roles WHERE rolname = \'{name}\'")"'
        f" || {binaries}/createuser --host={SOCKET_FOLDER} {name};"
        f' test -n "$($ask "SELECT 1 FROM pg_database WHERE datname = \'{name}\'")"'
        f" || {binaries}/createdb --host={SOCKET_FOLDER} --owner={name} {name}"
    )


def _dumped(binaries: str, name: str) -> str:
    new = f"{LEDGER_DUMPS}/new"
    return (
        f"{binaries}/pg_dump --host={SOCKET_FOLDER} --clean --if-exists --no-owner --file={new}"
        f" {name}; sync {new}; mv {new} {LEDGER_DUMPS}/{name}.sql"
    )


def services(settings: HostSettings) -> list[Declared]:
    """The ledger, where a router asks clouds."""
    service = ledger_service(settings)
    return [("clouds", service)] if service else []
