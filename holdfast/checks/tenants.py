"""Tenants: what runs a service, and what a container needs of the host."""

from __future__ import annotations

from holdfast import tenants as tenants_of
from holdfast.checks.finding import Finding, Findings, no_file
from holdfast.checks.paths import is_below
from holdfast.gpu.containers import wants_containers
from holdfast.python_environment import is_unhashed
from holdfast.refusal import MISSING
from holdfast.settings import Container, HostSettings, PythonProgram, Service

KINDS = ("container", "python", "unit")
"""Keys that say what runs a service."""
_LONGEST_NAME = 24
"""Its user has a longer one, and the system's are of 31 characters."""


def kinds(settings: HostSettings) -> Findings:
    """Services that say in no way what runs, or in more than one."""
    for index, service in enumerate(settings.services):
        key = f"services[{index}]"
        written = [kind for kind in KINDS if kind in service.model_fields_set]
        if not written:
            yield Finding(
                f"{key}.unit",
                MISSING,
                "nothing says what runs the service",
                "write container or python, or unit and user of a service that is there already",
            )
        elif service.is_tenant:
            for extra in (*written[1:], "user"):
                if extra in service.model_fields_set:
                    value = getattr(service, extra)
                    yield Finding(
                        f"{key}.{extra}",
                        value if isinstance(value, str) else "a second program",
                        f"Holdfast runs this service by its {written[0]}",
                        f"remove it, or remove {written[0]}",
                    )
        elif not service.user:
            yield Finding(
                f"{key}.user",
                MISSING,
                "this key is required beside unit",
                "write the user that the unit runs as",
            )


def tenants(settings: HostSettings) -> Findings:
    """Tenants that cannot be installed or started as they are declared."""
    for index, service in enumerate(settings.services):
        key = f"services[{index}]"
        if service.is_tenant and len(service.name) > _LONGEST_NAME:
            yield Finding(
                f"{key}.name",
                service.name,
                "the name of its user would be too long",
                f"write one of at most {_LONGEST_NAME} characters",
            )
        if service.container:
            yield from _container(f"{key}.container", service, service.container, settings)
            yield from _cards(key, service, settings)
        if service.python:
            yield from _python(key, service, service.python)


def _container(
    key: str, service: Service, container: Container, settings: HostSettings
) -> Findings:
    if settings.docker is None:
        yield Finding(key, container.image, "this host has no Docker", "declare docker")
    ports = {listen.port for listen in service.listens}
    for port in container.ports.keys() - ports:
        yield Finding(
            f"{key}.ports.{port}",
            container.ports[port],
            f"the service does not listen on port {port}",
            "declare it under listens, or remove it",
        )
    data = {each.path for each in service.data}
    for path, inside in container.mounts.items():
        if path not in data:
            yield Finding(
                f"{key}.mounts.{path}",
                inside,
                f"{path} is no data of the service",
                "declare it under data, or remove it",
            )
        elif inside == "/" or is_below(inside, "/run/secrets"):
            yield Finding(
                f"{key}.mounts.{path}",
                inside,
                "the container has something else there",
                "write a folder of its own, such as /data",
            )
    places: dict[str, str] = {}
    for path, inside in container.mounts.items():
        if (first := places.setdefault(inside, path)) != path:
            yield Finding(
                f"{key}.mounts.{path}", inside, f"{first} is mounted there", "write another place"
            )


def _python(key: str, service: Service, python: PythonProgram) -> Findings:
    wrong = no_file(python.lock)
    if not wrong and is_unhashed(tenants_of.lock(python)):
        wrong = "one of its requirements has no hash"
    if wrong:
        mend = "write the output of 'uv pip compile --generate-hashes'"
        yield Finding(f"{key}.python.lock", python.lock, wrong, mend)
    program = python.command[0]
    if "/" in program or program.startswith("-"):
        yield Finding(
            f"{key}.python.command[0]",
            program,
            "this is not the name of a program in the environment",
            "write its name alone, such as uvicorn",
        )
    if service.cards or service.gpu_mib:
        yield Finding(
            f"{key}.{'cards' if service.cards else 'gpu_mib'}",
            service.cards or service.gpu_mib,
            "a Python program that Holdfast runs is given no card",
            "run it in a container, or declare its own unit",
        )
    for place, listen in enumerate(service.listens):
        at = f"{key}.listens[{place}]"
        if place:
            wrong = "a Python program has one socket, which is reached from one port"
            yield Finding(f"{at}.port", listen.port, wrong, "remove it")
        elif listen.container:
            wrong = "no container publishes the port of a Python program"
            yield Finding(f"{at}.container", True, wrong, "remove it")
        elif listen.scope not in ("loopback", "tailnet") or listen.protocol != "tcp":
            field = "protocol" if listen.protocol != "tcp" else "scope"
            yield Finding(
                f"{at}.{field}",
                getattr(listen, field),
                "a proxy leads to a Python program, from loopback and the tailnet",
                "write tcp, and scope 'loopback' or 'tailnet'",
            )
    socket = tenants_of.socket(service)
    said = [*python.command, *python.environment.values()]
    if service.listens and not any(socket in word for word in said):
        yield Finding(
            f"{key}.python.command",
            python.command,
            "it would not listen on its socket, which callers of its port are led to",
            f"have it listen on {socket}, such as with 'uvicorn --uds'",
        )


def _cards(key: str, service: Service, settings: HostSettings) -> Findings:
    docker = settings.docker
    if service.gpu_mib and not service.cards:
        yield Finding(
            f"{key}.cards",
            service.cards,
            "a container sees only the cards that it is given",
            "name the cards that it uses",
        )
    elif service.cards and not wants_containers(settings):
        yield Finding(
            f"{key}.cards",
            service.cards,
            "containers of this host are given no cards",
            "declare gpus, and leave gpus.containers True",
        )
    elif service.cards and docker and docker.source == "distribution" and _is_old(settings):
        yield Finding(
            "docker.source",
            docker.source,
            f"this distribution's Docker cannot give a card to the container {service.name}",
            "write 'vendor'",
        )


def _is_old(settings: HostSettings) -> bool:
    """Whether the distribution's engine is older than its CDI (Docker 25)."""
    return settings.distribution == "debian12"
