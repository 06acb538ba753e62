"""Every server of ours that engines run on, and the engines that a host declares for each."""

from __future__ import annotations

from holdfast.engines.server import Server
from holdfast.engines.vllm import VLLM
from holdfast.python_environment import PythonEnvironment
from holdfast.service.capability import Declared
from holdfast.settings import DataPath, Engine, HostSettings, Listen, Service

SERVERS: tuple[Server, ...] = (VLLM,)


def served(settings: HostSettings) -> list[tuple[str, Server, Engine]]:
    """The declared engines of a host, each with the inventory's key of it and its server."""
    return [
        (f"{server.name}.engines[{index}]", server, engine)
        for server in SERVERS
        for index, engine in enumerate(server.engines(settings))
    ]


def environment(settings: HostSettings, server: Server) -> PythonEnvironment:
    """The Python environment that holds a server."""
    lock = server.lock(settings).read_text()
    return PythonEnvironment(server.name, lock, settings.distribution, server.index(settings))


def declared_engines(settings: HostSettings) -> list[Engine]:
    """The declared engines of a host; none where it has none."""
    return [engine for _, _, engine in served(settings)]


def engine_service(program: str, engine: Engine) -> Service:
    """An engine as a service; ``program`` is what serves, such as ``vllm``."""
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
