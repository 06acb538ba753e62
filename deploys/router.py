"""Routers: addresses for work, each of which reaches what its profile says and nothing else."""

from __future__ import annotations

from pyinfra.api.deploy import deploy

from holdfast import alerts, clouds, ledger, service
from holdfast.router import (
    SYSTEM,
    RouterNames,
    behind,
    files,
    keys,
    secrets_needed,
)
from holdfast.secrets import require
from holdfast.settings import Clouds, HostSettings, Router
from operations import host_files, packages, program, python_environment, router, units
from operations.host_files import HostFile
from operations.units import Unit


def _units(settings: HostSettings, declared: Router) -> list[Unit]:
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
    # What a router needs is there before the router.
    needed = program.settled(behind(settings, declared))
    if declared.queue is None:
        return [*needed, *wanted]
    drain = f"{names.drain_stem}.service"
    read = [f"{SYSTEM}/{drain}", names.configuration("drain"), names.key_file]
    return [
        Unit(f"{names.drain_stem}.socket", restart_after=[f"{SYSTEM}/{names.drain_stem}.socket"]),
        Unit(drain, restart_after=read),
        *needed,
        *wanted,
    ]


def _install_litellm(settings: HostSettings, wanted: Clouds) -> None:
    packages.present(name="Install what LiteLLM needs", packages=python_environment.PACKAGES)
    python_environment.installed(
        name="Install LiteLLM",
        program=clouds.LITELLM,
        lock=clouds.LOCK.read_text(),
        distribution=settings.distribution,
        index=wanted.packages,
    )


@deploy("Routers")
def apply(settings: HostSettings) -> None:
    """Have every declared router at its port, and no other."""
    declared = settings.routers
    needed = [each for one in declared for each in behind(settings, one)]
    texts: dict[str, str] = {}
    private: dict[str, str] = {}
    for each in declared:
        texts |= files(settings, each)
        read = {name: require(name) for name in secrets_needed(settings, each)}
        private[RouterNames(each).key_file] = keys(settings, each, read)
    # First, for its port may be wanted by another.
    router.only(
        name="Have no other router",
        declared=[*texts, *private, *service.paths([*needed, *ledger.programs(settings)])],
    )
    if not declared:
        return
    asked = settings.clouds if any(each.clouds for each in declared) else None
    if asked:
        _install_litellm(settings, asked)
    packages.present(name="Install the routers' proxy", packages=["haproxy", packages.PYTHON])
    host_files.place(
        name="Write the routers' units, configuration and keys",
        directories=[
            host_files.CONFIGURATION,
            host_files.CREDENTIALS,
        ],
        files=[
            HostFile(alerts.UNIT_PATH, alerts.notify_unit()),
            *dict.fromkeys(
                [*(HostFile(path, text) for path, text in texts.items()), *program.placed(needed)]
            ),
            *(HostFile(path, text, mode="600") for path, text in private.items()),
        ],
    )
    units.settle(
        name="Have the routers at their ports",
        units=[
            units.NO_OTHER_PROXY,
            *(unit for each in declared for unit in _units(settings, each)),
        ],
        # A port may pass from one to another.
        together=True,
    )
    if asked:
        python_environment.pruned(
            name="Keep the environment before this one and none older",
            program=clouds.LITELLM,
            lock=clouds.LOCK.read_text(),
            distribution=settings.distribution,
        )
