"""Every server of ours that engines run on, and the engines that a host declares for each."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from holdfast import servers
from holdfast import settings as keys
from holdfast.engines.server import Server
from holdfast.python_environment import PythonEnvironment
from holdfast.service.capability import Declared
from holdfast.settings import DataPath, Engine, HostSettings, Listen, Service

SERVERS: tuple[Server, ...] = tuple(
    import_module(f"{servers.__name__}.{name}").SERVER for name in keys.SERVERS
)


def served(settings: HostSettings) -> list[tuple[str, Server, Engine]]:
    """The declared engines of a host, each with the inventory's key of it and its server."""
    return [
        (f"{server.name}.engines[{index}]", server, engine)
        for server in SERVERS
        if server.name in settings.servers
        for index, engine in enumerate(settings.servers[server.name].engines)
    ]


def server_of(settings: HostSettings, engine: Engine) -> Server:
    """The server of a declared engine."""
    return next(server for _, server, each in served(settings) if each.name == engine.name)


def environment(settings: HostSettings, server: Server) -> PythonEnvironment:
    """The Python environment that holds a declared server.

    Raises:
        OSError: its lock cannot be read.
        ValueError: the inventory names no lock, and none comes with Holdfast.
    """
    declared = settings.servers[server.name]
    lock = Path(declared.lock).expanduser() if declared.lock else server.lock
    if lock is None:
        raise ValueError(f"{settings.hostname}: {server.name}.lock is missing")
    text = lock.read_text("utf-8", "replace")
    return PythonEnvironment(server.name, text, settings.distribution, declared.packages)


def declared_engines(settings: HostSettings) -> list[Engine]:
    """The declared engines of a host; none where it has none."""
    return [engine for _, _, engine in served(settings)]


def engine_service(program: str, engine: Engine) -> Service:
    """An engine as a service; ``program`` is the name of its server."""
    name = f"{program}-{engine.name}"
    return Service(
        name=name,
        unit=f"holdfast-{name}.service",
        user=name,
        # It has no network: nothing that it receives leaves the host.
        tier="T1",
        listens=[Listen(port=engine.port, scope=engine.scope, callers=engine.callers)],
        memory_max_mib=engine.memory_max_mib,
        data=[DataPath(path=f"/var/cache/holdfast-{name}", backup="derived")],
    )


def services(settings: HostSettings) -> list[Declared]:
    """Every declared engine."""
    return [(key, engine_service(server.name, engine)) for key, server, engine in served(settings)]
