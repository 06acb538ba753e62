"""Routers: addresses for private work, which reach this host's engines and nothing else."""

from __future__ import annotations

from pyinfra.api.deploy import deploy

from holdfast import alerts
from holdfast.registry import queue_service
from holdfast.router import (
    CREDENTIALS,
    QUEUE_PROGRAM,
    SYSTEM,
    RouterNames,
    files,
    keys,
    queue_program_text,
    secret_names,
)
from holdfast.secrets import require
from holdfast.settings import HostSettings, Router
from operations import host_files, packages, router, units
from operations.host_files import HostDirectory, HostFile
from operations.units import Unit


def _units(declared: Router) -> list[Unit]:
    names = RouterNames(declared)
    wanted = [
        Unit(
            unit,
            enabled=door.is_open,
            running=door.is_open,
            restart_after=[
                f"{SYSTEM}/{unit}",
                *([names.configuration(door.name), names.key_file] if unit == door.service else []),
            ],
        )
        for door in names.doors
        for unit in (door.socket, door.service)
    ]
    queue = queue_service(declared)
    if queue is None:
        return wanted
    drain, socket = f"{names.drain_stem}.service", f"{names.queue_stem}.socket"
    read = [f"{SYSTEM}/{drain}", names.configuration("drain"), names.key_file]
    return [
        # What a router needs is there before the router.
        Unit(f"{names.drain_stem}.socket", restart_after=[f"{SYSTEM}/{names.drain_stem}.socket"]),
        Unit(drain, restart_after=read),
        Unit(socket, restart_after=[f"{SYSTEM}/{socket}"]),
        Unit(queue.unit, restart_after=[f"{SYSTEM}/{queue.unit}", QUEUE_PROGRAM]),
        Unit(f"{names.queue_stem}-age.timer"),
        *wanted,
    ]


@deploy("Routers")
def apply(settings: HostSettings) -> None:
    """Have every declared router at its port, and no other."""
    declared = settings.routers
    texts: dict[str, str] = {}
    private: dict[str, str] = {}
    for each in declared:
        texts |= files(settings, each)
        read = {name: require(name) for name in secret_names(settings, each).values()}
        private[RouterNames(each).key_file] = keys(settings, each, read)
    # First, for its port may be wanted by another.
    router.only(name="Have no other router", declared=[*texts, *private])
    if not declared:
        return
    packages.present(name="Install the routers' proxy", packages=["haproxy", "python3"])
    host_files.place(
        name="Write the routers' units, configuration and keys",
        directories=[
            HostDirectory("/etc/holdfast"),
            HostDirectory(CREDENTIALS, mode="700"),
        ],
        files=[
            HostFile(alerts.UNIT_PATH, alerts.notify_unit()),
            HostFile(QUEUE_PROGRAM, queue_program_text(), mode="755"),
            *(HostFile(path, text) for path, text in texts.items()),
            *(HostFile(path, text, mode="600") for path, text in private.items()),
        ],
    )
    units.settle(
        name="Have the routers at their ports",
        units=[
            # Ours are the only proxies: the package's own would run with nothing to do.
            Unit("haproxy.service", masked=True),
            *(unit for each in declared for unit in _units(each)),
        ],
        # A port may pass from one to another.
        together=True,
    )
