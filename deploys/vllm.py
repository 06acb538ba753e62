"""vLLM: one pinned environment, and an engine for each declared model."""

from __future__ import annotations

from pyinfra.api.deploy import deploy

from holdfast import alerts
from holdfast.engines.units import (
    DEVICES,
    RECOVERY,
    SYSTEM,
    UNDO,
    EngineNames,
    configuration,
    devices_unit,
    files,
    recovery_unit,
    secret_files,
    undo_unit,
)
from holdfast.engines.vllm import VLLM, lock_of
from holdfast.gpu import modes
from holdfast.host_programs import engine_watch, gpu_memory, replace
from holdfast.python_environment import directory
from holdfast.secrets import require
from holdfast.settings import HostSettings, Vllm
from operations import host_files, packages, python_environment, units, vllm
from operations.host_files import HostFile
from operations.units import Unit


def _engines(settings: HostSettings) -> list[EngineNames]:
    declared = settings.vllm.engines if settings.vllm else []
    return [EngineNames(VLLM, engine) for engine in declared]


def _unit(settings: HostSettings, engine: EngineNames) -> Unit:
    return Unit(
        engine.unit,
        # Not the configuration: another one is a replacement, which restarts it.
        restart_after=[f"{SYSTEM}/{engine.unit}", engine.key, engine.probe],
        along_with=modes.targets_of(settings, engine.engine.name),
    )


def _beside(engine: EngineNames) -> list[Unit]:
    """What watches an engine, and its doors."""
    watch = f"{engine.watch}.timer"
    doors = [unit for door in engine.doors for unit in units.of_door(door, engine.paths_of(door))]
    return [Unit(watch, restart_after=[f"{SYSTEM}/{watch}"]), *doors]


def _install(settings: HostSettings, wanted: Vllm, lock: str) -> None:
    packages.present(
        name="Install what vLLM needs",
        packages=["curl", "haproxy", *python_environment.PACKAGES, *VLLM.packages],
    )
    python_environment.installed(
        name="Install vLLM",
        program=VLLM.name,
        lock=lock,
        distribution=settings.distribution,
        index=wanted.packages,
    )


@deploy("vLLM")
def apply(settings: HostSettings) -> None:
    """Install vLLM and start every declared engine, and no other.

    Loading a model takes minutes: `settle` waits for it, after all else that a deploy does.
    """
    wanted = settings.vllm
    if wanted is None:
        vllm.only(name="Have no other engine", declared=[])
        return
    lock = lock_of(wanted).read_text()
    _install(settings, wanted, lock)
    environment = directory(VLLM.name, lock, settings.distribution)
    engines = _engines(settings)
    configurations = [(names, configuration(settings, names)) for names in engines]
    texts: dict[str, str] = {}
    private: dict[str, str] = {}
    for names in engines:
        texts |= files(settings, names, environment)
        private |= secret_files(names, require(names.engine.api_key))
    # First, for its cards and its port may be wanted by another.
    told = [names.configuration for names in engines]
    vllm.only(name="Have no other engine", declared=[*told, *texts, *private])
    host_files.place(
        name="Write the engines' units, configuration and keys",
        directories=[
            host_files.CONFIGURATION,
            host_files.CREDENTIALS,
        ],
        files=[
            HostFile(alerts.UNIT_PATH, alerts.notify_unit()),
            HostFile(f"{SYSTEM}/{DEVICES}", devices_unit()),
            HostFile(f"{SYSTEM}/{RECOVERY}", recovery_unit()),
            HostFile(f"{SYSTEM}/{UNDO}", undo_unit()),
            *map(host_files.program, (gpu_memory, replace, engine_watch)),
            *(HostFile(path, text) for path, text in texts.items()),
            *(HostFile(path, text, mode="600") for path, text in private.items()),
        ],
    )
    vllm.configured(name="Tell each engine what to serve", engines=configurations)
    units.settle(
        name="Start the engines",
        units=[
            Unit(RECOVERY),
            units.NO_OTHER_PROXY,
            *(_unit(settings, names) for names in engines),
        ],
        # A card or a share of it may pass from one to another.
        together=True,
        wait=False,
    )


@deploy("vLLM, its engines")
def settle(settings: HostSettings) -> None:
    """Have every declared engine answer a request, and its doors be open."""
    wanted = settings.vllm
    if wanted is None:
        return
    engines = _engines(settings)
    units.settle(
        name="Have the engines answer",
        units=[unit for names in engines for unit in (_unit(settings, names), *_beside(names))],
        # A port may pass from one to another.
        together=True,
    )
    python_environment.pruned(
        name="Keep the environment before this one and none older",
        program=VLLM.name,
        lock=lock_of(wanted).read_text(),
        distribution=settings.distribution,
    )
