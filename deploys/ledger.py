"""The ledger of what was spent on clouds: PostgreSQL from the distribution, without a TCP port."""

from __future__ import annotations

from pyinfra.api.deploy import deploy

from holdfast import alerts, ledger
from holdfast.registry import LEDGER_DUMPS, ledger_service
from holdfast.settings import HostSettings
from operations import host_files, packages, units
from operations.host_files import HostDirectory, HostFile
from operations.units import Unit


@deploy("Ledger")
def apply(settings: HostSettings) -> None:
    """Have the ledger of this host's clouds; `deploys/router.py` removes one that no router needs.

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
    texts = ledger.files(settings)
    host_files.place(
        name="Write the ledger's units and configuration",
        directories=[
            host_files.CONFIGURATION,
            HostDirectory(LEDGER_DUMPS, mode="700", user=service.user, group=service.user),
        ],
        files=[
            HostFile(alerts.UNIT_PATH, alerts.notify_unit()),
            *(HostFile(path, text) for path, text in texts.items()),
        ],
    )
    read = [path for path in texts if not path.endswith(ledger.DUMP)]
    units.settle(
        name="Have the ledger answer",
        units=[
            Unit(service.unit, restart_after=read),
            # It runs before each backup; now and then systemd must read it again.
            Unit(ledger.DUMP, enabled=None, running=None),
        ],
    )
