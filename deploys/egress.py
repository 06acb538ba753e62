"""Egress: the kernel lets a service's user reach only what is declared."""

from __future__ import annotations

from pyinfra import host, logger
from pyinfra.api.deploy import deploy

from facts.egress import TierDropIns
from facts.places import SYSTEM
from holdfast import alerts, egress
from holdfast.host_programs import egress as egress_program
from holdfast.render import render
from holdfast.settings import HostSettings
from operations import host_files, packages, units
from operations.host_files import HostDirectory, HostFile
from operations.units import Unit


@deploy("Egress")
def apply(settings: HostSettings) -> None:
    """Load the rules for each user, now and at every boot before the network, and watch them.

    Expects the services' users (`deploys/base.py`), and a masked nftables.service
    (`deploys/firewall.py`), which would flush every table when it starts.
    """
    if sentence := egress.not_held(settings):
        host.log_styled(sentence, fg="yellow", log_func=logger.warning)
    packages.present(
        name="Install what loads the egress rules", packages=["nftables", packages.PYTHON]
    )
    drop_ins = {egress.drop_in_path(unit): text for unit, text in egress.drop_ins(settings).items()}
    found = host.get_fact(TierDropIns)
    unit_files = egress.unit_files()
    resolves = any(wall.clouds for wall in egress.every_wall(settings))
    host_files.place(
        name="Write what each service may reach",
        directories=[host_files.CONFIGURATION, HostDirectory("/etc/request-key.d")],
        files=[
            HostFile(egress.REQUEST_KEYS, render("egress/request-key.conf.j2")),
            host_files.program(egress_program),
            HostFile(egress.RULES, egress.rules(settings), validate="nft --check --file {}"),
            HostFile(egress.USERS, egress.users(settings)),
            HostFile(egress.CLOUDS, egress.clouds(settings)),
            HostFile(egress.NETWORKS, egress.sovereign_networks(settings)),
            HostFile(alerts.UNIT_PATH, alerts.notify_unit()),
            *(HostFile(path, text) for path, text in {**unit_files, **drop_ins}.items()),
        ],
        absent=[path for path in found if path not in drop_ins],
    )
    read_at_start = [egress.PROGRAM, egress.RULES, egress.USERS, egress.CLOUDS]
    units.settle(
        name="Have no service reach more than is declared",
        units=[
            Unit(egress.SERVICE, restart_after=read_at_start, reload=True),
            Unit(egress.TIMER, restart_after=[f"{SYSTEM}/{egress.TIMER}"]),
            # It looks up new names at once.
            Unit(
                egress.RESOLVE_TIMER,
                enabled=resolves,
                running=resolves,
                restart_after=[f"{SYSTEM}/{egress.RESOLVE_TIMER}", egress.CLOUDS],
            ),
        ],
    )
    if held := sorted({*drop_ins, *found}, reverse=True):
        # The inventory only names these units, so a running one is restarted. Sockets come first,
        # while their services are stopped: systemd starts no socket whose service runs.
        units.settle(
            name="Have the services of others in their walls, or out of them",
            units=[
                Unit(
                    path.split("/")[-2].removesuffix(".d"),
                    enabled=None,
                    running=None,
                    restart_after=[path],
                )
                for path in held
            ],
            together=True,
        )
