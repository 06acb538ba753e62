"""Routers: their units and configuration, from settings alone.

A router is the distribution's HAProxy with a ladder of upstreams on this host, each a literal
address. It reads a request's method, path and key, and never its body, so no text in a body can
choose the upstream. Two other programs do read bodies, each as a user of its own: the queue, which
has no network, and the program that asks clouds (`holdfast.clouds`), which may call only these.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from facts.places import CONFIGURATION, CREDENTIALS
from holdfast import clouds
from holdfast.doors import PATIENCE, Door, doors
from holdfast.engines.server import GENERATE_PATHS, paths
from holdfast.engines.servers import declared_engines
from holdfast.host_programs import queue as queue_program
from holdfast.render import render
from holdfast.routing import TIER_OF_PROFILE, queue_service, router_service
from holdfast.sandbox import RUN, Directive
from holdfast.secrets import Secret
from holdfast.service import (
    PROXY,
    PROXY_FILES,
    Credential,
    File,
    Program,
    Timer,
    UnixSocket,
)
from holdfast.settings import LOOPBACK_OF, Engine, HostSettings, Listen, Router, Tier
from holdfast.shipping import path_of

QUEUE_PROGRAM = path_of(queue_program)
CONFIGURATIONS = f"{CONFIGURATION}/router"
"""The folder with the configuration of each process."""
MODELS_PATH = "/v1/models"
BUFFER_BYTES = 256 * 1024
"""A request up to this size can be sent again, to the next rung, if an engine disconnects."""
CALLERS = "callers"
"""The name of the callers' key in the credential; an engine's key is called ``engine:NAME``."""


@dataclass(frozen=True)
class Upstream:
    """One rung of a router's ladder: a model server at a port of this host's loopback."""

    name: str
    """Its name in the header of an answer."""
    port: int
    key: str
    """The name of its key in the router's credential."""
    secret: str
    """The name of the secret with this key."""


@dataclass(frozen=True)
class RouterNames:
    """The names of the units, files and sockets of one router."""

    router: Router

    @property
    def stem(self) -> str:
        """The beginning of its units' names."""
        return f"holdfast-router-{self.router.name}"

    @property
    def tier(self) -> Tier:
        """The tier of its profile, which limits its upstreams."""
        return TIER_OF_PROFILE[self.router.profile]

    @property
    def url(self) -> str:
        """The URL, without a path, for this host's own programs."""
        return f"http://{LOOPBACK_OF[self.tier]}:{self.router.port}"

    @property
    def doors(self) -> list[Door]:
        """Its doors, open and closed; each is a process."""
        return doors(self.stem, self.router.port, self.router.scope, self.tier)

    @property
    def key_file(self) -> str:
        """The file with every key that it compares or sends; only root may read it."""
        return f"{CREDENTIALS}/{self.stem}-keys"

    @property
    def queue_stem(self) -> str:
        """The beginning of the queue's units' names."""
        return f"holdfast-queue-{self.router.name}"

    @property
    def queue_socket(self) -> str:
        """The socket of the queue; only the router's user may connect."""
        return f"{RUN}/{self.queue_stem}.sock"

    @property
    def drain_stem(self) -> str:
        """The beginning of the units' names of the way back, on which the queue calls engines."""
        return f"{self.stem}-drain"

    @property
    def drain_socket(self) -> str:
        """The socket of the way back; only the queue's user may connect."""
        return f"{RUN}/{self.drain_stem}.sock"

    def configuration(self, door: str) -> str:
        """The path of the configuration of the process behind a door; it contains no secret."""
        return f"{CONFIGURATIONS}/{self.router.name}-{door}.cfg"


def ladder(settings: HostSettings, router: Router) -> list[Upstream]:
    """The upstreams of a router, in the order in which it asks them.

    Raises:
        KeyError: an engine is not declared.
    """
    rungs = [
        Upstream(engine.name, engine.port, f"engine:{engine.name}", engine.api_key)
        for engine in _engines(settings, router)
    ]
    if router.floor and settings.floor:
        rungs.append(Upstream("floor", settings.floor.port, "floor", settings.floor.api_key))
    return rungs


def _engines(settings: HostSettings, router: Router) -> list[Engine]:
    declared = {engine.name: engine for engine in declared_engines(settings)}
    return [declared[name] for name in router.engines]


def posted_paths(settings: HostSettings, router: Router) -> tuple[str, ...]:
    """The paths to which callers may post; they are the same for all engines of a ladder."""
    if router.profile == "cloud":
        return (clouds.PATH,)
    return paths(_engines(settings, router)[0]) if router.engines else GENERATE_PATHS


def configuration(
    settings: HostSettings, router: Router, bind: str, run: str, *, drains: bool = False
) -> str:
    """The configuration of one of a router's processes.

    ``bind`` is its listening address and ``run`` its folder for the ladder's sockets. With
    ``drains`` the process is the queue's way back: the socket's permissions replace the key, and no
    request is queued.
    """
    names = RouterNames(router)
    return render(
        "router/router.cfg.j2",
        router=router,
        bind=bind,
        run=run,
        drains=drains,
        rungs=ladder(settings, router),
        posted=posted_paths(settings, router),
        models=MODELS_PATH,
        queue=names.queue_socket if router.queue and not drains else None,
        clouds=clouds.socket(router) if router.clouds else None,
        cloud_path=clouds.PATH,
        spenders=[key.name for key in router.keys if key.clouds],
        patience=PATIENCE,
        buffer_bytes=BUFFER_BYTES,
        callers=CALLERS,
    )


def secret_names(settings: HostSettings, router: Router) -> dict[str, str]:
    """The name of each key in a router's credential, to the name of its secret.

    Keys of callers that have one each are not included: the credential has only their digests.
    """
    callers = {CALLERS: router.api_key} if router.api_key else {}
    return callers | {rung.key: rung.secret for rung in ladder(settings, router)}


def digest(key: Secret) -> str:
    """The digest by which a router recognises a caller's key, as HAProxy computes it."""
    return hashlib.sha256(f"Bearer {key.get_secret_value()}".encode()).hexdigest().upper()


def keys(settings: HostSettings, router: Router, read: Callable[[str], Secret]) -> str:
    """The text of a router's credential; ``read`` returns a secret by its name."""
    held = [
        f"{key} Bearer {read(name).get_secret_value()}\n"
        for key, name in secret_names(settings, router).items()
    ]
    return "".join([*held, *(f"{digest(read(key.api_key))} {key.name}\n" for key in router.keys)])


def _process(
    settings: HostSettings,
    router: Router,
    door: str,
    description: str,
    socket: Door | UnixSocket,
) -> Program:
    """The process behind one of a router's doors, or behind ``drain``, the queue's way back."""
    names, path = RouterNames(router), RouterNames(router).configuration(door)
    stem = f"{names.stem}-{door}"
    # In every tier and scope it calls loopback only.
    confined = router_service(router).model_copy(
        update={
            "unit": f"{stem}.service",
            "listens": [Listen(port=router.port)],
            "tier": "T1",
            "peers": [],
        }
    )
    text = configuration(settings, router, "fd@3", f"{RUN}/{stem}", drains=door == "drain")
    # It ignores the host's environment, for example the variables of a proxy.
    start = ("/usr/bin/env", "--ignore-environment", "CREDENTIALS_DIRECTORY=%d")
    return Program(
        service=confined,
        description=description,
        command=(*start, PROXY, "-db", "-f", path),
        credentials=(
            Credential("keys", names.key_file, lambda read: keys(settings, router, read)),
        ),
        files=(File(path, text),),
        runtime=f"holdfast/{stem}",
        restart="on-failure",
        tuned=(PROXY_FILES,),
        socket=socket,
    )


def programs(settings: HostSettings) -> list[Program]:
    """The programs of every router."""
    return [each for router in settings.routers for each in programs_of(settings, router)]


def programs_of(settings: HostSettings, router: Router) -> list[Program]:
    """A process for each door of a router, after its queue and the program that asks clouds."""
    asks = clouds.program(settings, router)
    doors = [
        _process(
            settings,
            router,
            door.name,
            f"Holdfast router {router.name}: from {door.interface}, port {router.port}",
            door,
        )
        for door in RouterNames(router).doors
    ]
    return [*([asks] if asks else []), *_queue(settings, router), *doors]


def _queue(settings: HostSettings, router: Router) -> list[Program]:
    """The queue, its way back to the engines, and the job that raises an alert about its age."""
    names, queue, service = RouterNames(router), router.queue, queue_service(router)
    if queue is None or service is None:
        return []
    description = f"Holdfast: the queue of the router {router.name}"
    state = f"holdfast/queue/{router.name}"
    database = f"/var/lib/{state}/queue.db"
    entries, at_once, hours, minutes = map(
        str, (queue.entries, queue.concurrent_requests, queue.keep_hours, queue.max_age_minutes)
    )
    serve = (QUEUE_PROGRAM, "serve", database, "--ask", names.drain_socket, "--entries", entries)
    age = service.model_copy(update={"unit": f"{names.queue_stem}-age.service"})
    way_back = UnixSocket(names.drain_socket, service.user, "BindsTo")
    return [
        _process(
            settings, router, "drain", f"{description}, its way back to the engines", way_back
        ),
        Program(
            service=service,
            description=description,
            source=queue_program,
            command=(*serve, "--concurrent-requests", at_once, "--keep-hours", hours),
            state=state,
            restart="always",
            restart_seconds=1,
            isolated=True,
            socket=UnixSocket(names.queue_socket, router_service(router).user),
        ),
        Program(
            service=age,
            description=f"{description}: report requests that wait too long",
            kind="oneshot",
            source=queue_program,
            command=(QUEUE_PROGRAM, "age", database, "--max-age-minutes", minutes),
            state=state,
            start_seconds=120,
            isolated=True,
            timer=Timer("every five minutes", (Directive("OnCalendar", "*:0/5"),)),
        ),
    ]
