"""Every server of ours that engines run on, and the engines that a host declares for each."""

from __future__ import annotations

from holdfast.engines.server import Server
from holdfast.engines.vllm import VLLM
from holdfast.python_environment import directory
from holdfast.settings import Engine, HostSettings

SERVERS: tuple[Server, ...] = (VLLM,)


def served(settings: HostSettings) -> list[tuple[str, Server, Engine]]:
    """The declared engines of a host, each with the inventory's key of it and its server."""
    return [
        (f"{server.name}.engines[{index}]", server, engine)
        for server in SERVERS
        for index, engine in enumerate(server.engines(settings))
    ]


def environment(settings: HostSettings, server: Server) -> str:
    """The folder of the Python environment that holds a server, on a host."""
    return directory(server.name, server.lock(settings).read_text(), settings.distribution)
