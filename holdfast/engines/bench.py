"""How fast an engine is.

The server's own benchmark asks it through its door, on its host, for requests of random tokens.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime

from pyinfra.api import StringCommand

from facts.framed import answer, framed
from holdfast import inventory_file, live
from holdfast.engines.server import Load
from holdfast.engines.servers import declared_engines, server_of
from holdfast.engines.throughput import Row, bench_of, row_of, script
from holdfast.engines.units import cards_of_engine
from holdfast.settings import Engine, HostSettings
from holdfast.storage import checkpoint_folder, checkpoint_of


def _told(host: str, settings: HostSettings, engine: Engine, load: Load) -> dict[str, str]:
    checkpoint = checkpoint_of(settings, engine)
    said = engine.model_dump(mode="json", exclude={"name", "api_key", "port", "scope", "callers"})
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "host": host,
        "cards": " ".join(cards_of_engine(settings, engine)) or "CPU",
        "driver": settings.gpus.driver.branch if settings.gpus else "",
        "engine": engine.name,
        "model": checkpoint_folder(checkpoint) if checkpoint else "",
        "version": server_of(settings, engine).version,
        "flags": json.dumps(said, sort_keys=True),
        "load": json.dumps(asdict(load)),
    }


def _run(path: str, name: str, engine_name: str, command: str) -> list[str]:
    """Run ``command`` on one host of the inventory; the lines it printed.

    Raises:
        PyinfraError: the host did not answer, or not the whole.
        ValueError: the command failed; with its last words.
    """
    inventory = inventory_file.read(path)
    with live.session(inventory):
        host = inventory.get_host(name)
        host.connect(show_errors=False, raise_exceptions=True)
        ok, output = host.run_shell_command(
            StringCommand(framed(command)),
            _sudo=bool(host.data.get("_sudo")),
            _shell_executable="sh",
        )
        host.disconnect()
    if not ok:
        raise ValueError(f"{name}: engine {engine_name}: " + " ".join(output.stderr_lines[-3:]))
    return answer(output.stdout_lines)


def measure(path: str, hosts: dict[str, HostSettings], engine_name: str, load: Load) -> Row:
    """Bench one engine of the inventory file ``path``, whose hosts' settings are ``hosts``.

    Raises:
        PyinfraError: the host did not answer, or not the whole.
        ValueError: there is no such engine, it makes no tokens, its server has no benchmark, or
            that failed.
    """
    found = [
        (name, settings, engine)
        for name, settings in hosts.items()
        for engine in declared_engines(settings)
        if engine.name == engine_name
    ]
    if len(found) != 1:
        raise ValueError(f"{path} declares {len(found)} engines {engine_name!r}")
    ((name, settings, engine),) = found
    if engine.task == "embed":
        raise ValueError(f"{name}: engine {engine.name} makes no tokens; bench one that does")
    output = _run(path, name, engine.name, script(settings, engine, load))
    bench = bench_of(server_of(settings, engine))
    return row_of(bench, output, _told(name, settings, engine, load), len(engine.cards))
