"""Egress: the kernel lets a service's user reach only what is declared."""

from __future__ import annotations

from pyinfra import host, logger
from pyinfra.api.deploy import deploy

from facts.egress import TierDropIns
from holdfast import egress
from holdfast.settings import HostSettings
from operations import packages, program, units
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
    programs = egress.programs(settings)
    program.place(
        what="the rules for what each service may reach",
        programs=programs,
        directories=[HostDirectory("/etc/request-key.d")],
        files=[HostFile(path, text) for path, text in drop_ins.items()],
        absent=[path for path in found if path not in drop_ins],
    )
    program.settle("Have no service reach more than is declared", programs)
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
