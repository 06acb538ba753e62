"""The ledger of what was spent on clouds: PostgreSQL from the distribution, without a TCP port."""

from __future__ import annotations

from pyinfra.api.deploy import deploy

from holdfast import ledger
from holdfast.registry import LEDGER_DUMPS, ledger_service
from holdfast.settings import HostSettings
from operations import host_files, packages, program
from operations.host_files import HostDirectory, HostFile


@deploy("Ledger")
def apply(settings: HostSettings) -> None:
    """Have the ledger of this host's clouds; `deploys/removal.py` removes one that no router needs.

    What it holds stays on disk.
    """
    service = ledger_service(settings)
    if service is None:
        return
    host_files.place(
        name="Have PostgreSQL start no server of its own",
        files=[HostFile(ledger.NO_CLUSTER, "create_main_cluster = false\n")],
    )
    packages.present(name="Install PostgreSQL", packages=[ledger.package(settings)])
    dumps = HostDirectory(LEDGER_DUMPS, mode="700", user=service.user, group=service.user)
    program.have(what="the ledger", programs=ledger.programs(settings), directories=[dumps])
