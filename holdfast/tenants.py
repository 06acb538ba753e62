"""Tenants: services of an inventory that Holdfast installs, starts, updates and removes.

A container is the main process of its unit: systemd starts it, hands it its secrets as files, asks
its health question and starts it again when it ends. Docker keeps nothing of it. A Python program
has a user and a locked environment of its own; proxies lead from its port to its Unix socket.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from facts.gpu_containers import SERVICE as CDI
from facts.places import CONFIGURATION, CREDENTIALS
from holdfast import docker_networks
from holdfast.doors import doors
from holdfast.gpu import modes
from holdfast.gpu.cards import declared_cards
from holdfast.python_environment import PythonEnvironment
from holdfast.sandbox import AS_ROOT, RUN, Directive
from holdfast.secrets import Secret
from holdfast.service import Credential, Program, Proxied, Words
from holdfast.settings import (
    LOOPBACK_OF,
    Container,
    HealthCheck,
    HostSettings,
    Listen,
    PythonProgram,
    Service,
)

DOCKER = "/usr/bin/docker"
CONFIGURATIONS = f"{CONFIGURATION}/tenants"
"""The folder of the configuration of each proxy."""
PROCESSES = 4096
"""So many processes and threads may a container have."""
SECONDS_BESIDES = 60
"""For a start beside the time that the health check may take."""
_ROOT = tuple(AS_ROOT.split())
_ENDED = Directive(
    "SuccessExitStatus", "137 143", "the status of a container that was stopped by a signal"
)


def stem(service: Service) -> str:
    """The beginning of its unit's name, and the name of its container."""
    return service.unit.removesuffix(".service")


def programs(settings: HostSettings) -> list[Program]:
    """The tenants of a host."""
    found = []
    for service in settings.services:
        if service.container:
            found.append(_container(settings, service, service.container))
        elif service.python:
            found.append(_python(settings, service, service.python))
    return found


def literal(words: Words) -> Words:
    """Words that mean to systemd what they mean to the inventory: it reads ``%`` and ``$``."""
    return tuple(word.replace("%", "%%").replace("$", "$$") for word in words)


def _text(secret: str) -> Callable[[Callable[[str], Secret]], str]:
    return lambda read: read(secret).get_secret_value()


def _answers(health: HealthCheck, *where: str) -> Words:
    """What succeeds as soon as a health question is answered, and fails when the program ends.

    ``where`` are options of curl.
    """
    ask = shlex.join(
        # A redirect is not an answer.
        ["curl", "--silent", "--fail", "--location", "--max-redirs", "0", "--noproxy", "*"]
        + ["--max-time", "10", *where, health.url]
    )
    found = f"{ask} | head --bytes=1M | grep --quiet --fixed-strings -e"
    (script,) = literal((f"until {found} {shlex.quote(health.contains)}; do ",))
    return ("/bin/sh", "-c", f"{script}kill -0 $MAINPID && sleep 1 || exit 1; done")


def addresses(settings: HostSettings, service: Service, listen: Listen) -> Iterator[str]:
    """Where Docker publishes a port; the firewall lets in who was declared, and no one else."""
    if listen.scope == "loopback":
        yield LOOPBACK_OF[service.tier]
        return
    yield "0.0.0.0"  # noqa: S104
    network = next(
        (each for each in docker_networks.networks(settings) if each.name == service.network), None
    )
    if network and any(":" in subnet for subnet in network.subnets):
        yield "[::]"


def _run(settings: HostSettings, service: Service, container: Container) -> Iterator[str]:
    yield from (DOCKER, "run", "--rm", f"--name={stem(service)}", "--pull=never")
    # What it prints goes to its unit's journal, once.
    yield "--log-driver=none"
    yield from ("--cap-drop=ALL", "--security-opt=no-new-privileges", f"--pids-limit={PROCESSES}")
    for capability in sorted(container.relaxed.keys() - {"root", "writable"}):
        yield f"--cap-add={capability}"
    yield f"--user={owner(container)}"
    if "writable" not in container.relaxed:
        yield from ("--read-only", "--tmpfs=/tmp")
    if service.memory_max_mib:
        yield f"--memory={service.memory_max_mib}m"
        # Both together: it uses no swap.
        yield f"--memory-swap={service.memory_max_mib}m"
    if service.network:
        yield f"--network={service.network}"
    for listen in service.listens:
        inside = container.ports.get(listen.port, listen.port)
        for address in addresses(settings, service, listen):
            yield f"--publish={address}:{listen.port}:{inside}/{listen.protocol}"
    for path, inside_path in container.mounts.items():
        # Unlike --volume it fails where there is no such path.
        yield f"--mount=type=bind,source={path},target={inside_path}"
    if container.secrets:
        yield f"--mount=type=bind,source={_secrets(service)},target=/run/secrets,readonly"
    cards = declared_cards(settings)
    for name in service.cards:
        yield f"--device=nvidia.com/gpu={cards[name].uuid}"
    for name, value in container.environment.items():
        yield f"--env={name}={value}"
    yield from (container.image, *container.command)


def owner(container: Container) -> str:
    """User and group of its processes, of its secrets and of its new data, in numbers."""
    return "0:0" if "root" in container.relaxed else container.user


def _secrets(service: Service) -> str:
    """Where the container finds its secrets: in memory, for as long as its unit runs."""
    return f"{RUN}/{stem(service)}/secrets"


def _made(path: str, own: Words) -> Words:
    """What makes a folder of data where there is nothing yet."""
    made = shlex.join(["install", "-d", "-m", "700", *own, path])
    return (*_ROOT, "sh", "-c", f"test -e {path} || {made}")


def _prepared(service: Service, container: Container) -> Iterator[Words]:
    """What is done before a start: data and secrets are there, and no container of before."""
    user, _, group = owner(container).partition(":")
    own = ("-o", user, "-g", group)
    yield from (_made(path, own) for path in container.mounts)
    if container.secrets:
        yield (*_ROOT, "install", "-d", "-m", "500", *own, _secrets(service))
    for name in container.secrets:
        target = f"{_secrets(service)}/{name}"
        yield (*_ROOT, "install", "-m", "400", *own, _credential(service, name), target)
    yield (f"-{DOCKER}", "rm", "--force", stem(service))


def _credential(service: Service, name: str) -> str:
    # No name of a service has a dot, so no other tenant's secret has this path.
    return f"{CREDENTIALS}/{stem(service)}.{name}"


def _credentials(service: Service, secrets: Mapping[str, str]) -> tuple[Credential, ...]:
    return tuple(
        Credential(name, _credential(service, name), _text(secret))
        for name, secret in secrets.items()
    )


def _container(settings: HostSettings, service: Service, container: Container) -> Program:
    # What it may use is Docker's to enforce: its unit has the client alone.
    client = service.model_copy(update={"memory_max_mib": None, "data": []})
    health, seconds = service.health, container.stop_seconds
    return Program(
        service=client,
        description=f"Holdfast tenant: {service.name}",
        packages=("curl",),
        image=container.image,
        command=literal(tuple(_run(settings, service, container))),
        before=tuple(_prepared(service, container)),
        ready=(_answers(health),) if health else (),
        stop=(DOCKER, "stop", f"--time={seconds}", stem(service)),
        after=((f"-{DOCKER}", "rm", "--force", stem(service)),),
        # Of root's own configuration it reads nothing.
        environment={"DOCKER_CONFIG": f"{RUN}/{stem(service)}"},
        credentials=_credentials(service, container.secrets),
        runtime=f"holdfast/{stem(service)}",
        start_seconds=(health.timeout_seconds if health else 0) + SECONDS_BESIDES,
        stop_seconds=seconds + SECONDS_BESIDES,
        restart="always",
        restart_seconds=5,
        starts=(10, 600),
        at_boot=True,
        wanted_by=("multi-user.target", "docker.service"),
        along_with=tuple(modes.targets_of(settings, service.name)),
        order=(
            Directive("Requires", "docker.service", "it ends and starts with the engine"),
            Directive("After", f"docker.service{f' {CDI}' if service.cards else ''}"),
            *(Directive("RequiresMountsFor", path) for path in container.mounts),
        ),
        tuned=(_ENDED,),
    )


def lock(python: PythonProgram) -> str:
    """The text of its requirements.

    Raises:
        OSError: the file cannot be read.
    """
    return Path(python.lock).expanduser().read_text(encoding="utf-8")


def socket(service: Service) -> str:
    """Where a Python program listens; only its own user may connect."""
    return f"{RUN}/{stem(service)}/http.sock"


def _python(settings: HostSettings, service: Service, python: PythonProgram) -> Program:
    environment = PythonEnvironment(
        stem(service), lock(python), settings.distribution, python.packages
    )
    # All of its data is its own to write, whether it is backed up or not.
    writable = [each.model_copy(update={"backup": "state"}) for each in service.data]
    confined = service.model_copy(update={"data": writable})
    health, paths = service.health, [each.path for each in service.data]
    first, *words = python.command
    own = ("-o", service.user, "-g", service.user)
    return Program(
        service=confined,
        description=f"Holdfast tenant: {service.name}",
        packages=("curl",),
        python=environment,
        command=literal((f"{environment.folder}/bin/{first}", *words)),
        before=tuple(_made(path, own) for path in paths),
        ready=(_answers(health, "--unix-socket", socket(service)),) if health else (),
        # An environment is no command: `$` stands for itself.
        environment={name: value.replace("%", "%%") for name, value in python.environment.items()},
        credentials=_credentials(service, python.secrets),
        runtime=f"holdfast/{stem(service)}",
        start_seconds=(health.timeout_seconds if health else 0) + SECONDS_BESIDES,
        restart="always",
        restart_seconds=5,
        starts=(10, 600),
        at_boot=True,
        along_with=tuple(modes.targets_of(settings, service.name)),
        order=tuple(Directive("RequiresMountsFor", path) for path in paths),
        isolated=not service.peers and not service.clouds,
        relaxed=(
            (Directive("MemoryDenyWriteExecute", "no", python.executable_memory),)
            if python.executable_memory
            else ()
        ),
        proxied=_proxied(service),
    )


def _proxied(service: Service) -> Proxied | None:
    found = [
        door
        for listen in service.listens
        if listen.scope in ("loopback", "tailnet")
        for door in doors(stem(service), listen.port, listen.scope, service.tier)
    ]
    if not found:
        return None
    return Proxied(
        doors=tuple(found),
        socket=socket(service),
        configuration=f"{CONFIGURATIONS}/{service.name}-",
    )
