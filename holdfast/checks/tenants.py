"""Tenants: what runs a service, and what a container needs of the host."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from holdfast import tenants as tenants_of
from holdfast.checks.finding import Finding, Findings, no_file
from holdfast.checks.paths import SYSTEM_TREES, is_below, is_below_any
from holdfast.gpu.containers import wants_containers
from holdfast.python_environment import is_unhashed
from holdfast.refusal import MISSING
from holdfast.settings import LOOPBACK_OF, Container, HostSettings, PythonProgram, Service

KINDS = ("container", "python", "unit")
"""Keys that say what runs a service."""
_LONGEST_NAME = 24
"""Its user has a longer one, and the system's are of 31 characters."""
_PROGRAM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,120}")
_DOORS = ("-loopback", "-tailnet")
"""How the names of a Python tenant's proxies end."""
_KERNELS = ("/dev", "/proc", "/run/secrets", "/sys")
"""Nothing can be mounted below these in a container."""
_IMAGES = ("/", "/bin", "/etc", "/lib", "/lib64", "/run", "/sbin", "/usr")
"""Folders of an image without which no program starts."""


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
        if service.is_tenant and service.name.endswith(_DOORS):
            yield Finding(
                f"{key}.name",
                service.name,
                "the proxy of another tenant could have this name",
                "write a name with another end",
            )
        if service.is_tenant:
            yield from _data(key, service)
        if service.container:
            yield from _ports(key, service)
            yield from _health(key, service)
            yield from _container(f"{key}.container", service, service.container, settings)
            yield from _cards(key, service, settings)
        if service.python:
            yield from _python(key, service, service.python)


def _data(key: str, service: Service) -> Findings:
    """Root makes the folders of a tenant, and a container's are mounted into it, writable."""
    for place, data in enumerate(service.data):
        outer = [
            each.path
            for each in service.data
            if each is not data and is_below(data.path, each.path)
        ]
        if is_below_any(data.path, SYSTEM_TREES) or ".ssh" in data.path.split("/"):
            wrong, mend = "this folder is not for a tenant's data", "write one such as /srv/NAME"
        elif outer:
            wrong = f"it is in {outer[0]}, where the tenant could put a link in its place"
            mend = f"remove it: {outer[0]} holds it already"
        else:
            continue
        yield Finding(f"{key}.data[{place}].path", data.path, wrong, mend)


def _ports(key: str, service: Service) -> Findings:
    taken: set[tuple[int, str]] = set()
    for place, listen in enumerate(service.listens):
        if (listen.port, listen.protocol) in taken:
            wrong = "the container publishes this port already"
            yield Finding(f"{key}.listens[{place}].port", listen.port, wrong, "remove one")
        taken.add((listen.port, listen.protocol))


def _health(key: str, service: Service) -> Findings:
    published = {
        listen.port: LOOPBACK_OF[service.tier] if listen.scope == "loopback" else "127.0.0.1"
        for listen in service.listens
    }
    for name, check in (("health", service.health), ("idle", service.idle)):
        if check is None:
            continue
        url = urlsplit(check.url)
        address = published.get(url.port or 0, url.hostname)
        if url.hostname != address:
            yield Finding(
                f"{key}.{name}.url",
                check.url,
                f"the container's port {url.port} is published at {address}",
                f"write http://{address}:{url.port}",
            )


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
        elif inside in _IMAGES or is_below_any(inside, _taken_in(container)):
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

    capabilities = container.relaxed.keys() - {"root", "writable"}
    for name in sorted(capabilities) if "root" not in container.relaxed else ():
        yield Finding(
            f"{key}.relaxed.{name}",
            container.relaxed[name],
            "a capability has no effect for a user who is not root",
            "remove it, or add root with its reason",
        )


def _taken_in(container: Container) -> tuple[str, ...]:
    return _KERNELS if "writable" in container.relaxed else (*_KERNELS, "/tmp")  # noqa: S108


def _python(key: str, service: Service, python: PythonProgram) -> Findings:
    wrong = no_file(python.lock)
    try:
        if not wrong and is_unhashed(tenants_of.lock(python)):
            wrong = "one of its requirements has no hash"
    except UnicodeDecodeError:
        wrong = "this is no text"
    if wrong:
        mend = "write the output of 'uv pip compile --generate-hashes'"
        yield Finding(f"{key}.python.lock", python.lock, wrong, mend)
    program = python.command[0]
    if not _PROGRAM.fullmatch(program):
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
