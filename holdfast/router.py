"""Routers: their units and the configuration of these, from settings alone.

A router is the distribution's HAProxy with a ladder of upstreams on this host, each a literal
address. It reads of a request its method, its path and the caller's key, and never its body: no
text in there can choose who answers. What does read bodies is another process and user: the queue,
which has no network, and what asks clouds (`holdfast.clouds`), which has little more.
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
"""The folder of the configuration of each process."""
MODELS_PATH = "/v1/models"
BUFFER_BYTES = 256 * 1024
"""A request no larger than this can be sent again, to the next, when an engine breaks off."""
CALLERS = "callers"
"""Whose key it is that callers send; an engine's own stands under ``engine:NAME``."""


@dataclass(frozen=True)
class Upstream:
    """One rung of a router's ladder: a model server at a port of this host's loopback."""

    name: str
    """What the answer's header calls it."""
    port: int
    key: str
    """What its key is called in the router's credential."""
    secret: str
    """The secret that this key is."""


@dataclass(frozen=True)
class RouterNames:
    """What belongs to one router of a host, by name."""

    router: Router

    @property
    def stem(self) -> str:
        """The beginning of its units' names."""
        return f"holdfast-router-{self.router.name}"

    @property
    def tier(self) -> Tier:
        """How far its chain may lead."""
        return TIER_OF_PROFILE[self.router.profile]

    @property
    def url(self) -> str:
        """Where this host's own programs call it, without a path."""
        return f"http://{LOOPBACK_OF[self.tier]}:{self.router.port}"

    @property
    def doors(self) -> list[Door]:
        """Where callers reach it, and where they could; each door is a process."""
        return doors(self.stem, self.router.port, self.router.scope, self.tier)

    @property
    def key_file(self) -> str:
        """Every key that it compares or sends, for root alone; systemd hands it over."""
        return f"{CREDENTIALS}/{self.stem}-keys"

    @property
    def queue_stem(self) -> str:
        """The beginning of the queue's units' names."""
        return f"holdfast-queue-{self.router.name}"

    @property
    def queue_socket(self) -> str:
        """Where the queue listens; only the router's user may connect."""
        return f"{RUN}/{self.queue_stem}.sock"

    @property
    def drain_stem(self) -> str:
        """The beginning of the names of the way back: by it the queue asks what it has kept."""
        return f"{self.stem}-drain"

    @property
    def drain_socket(self) -> str:
        """Where that way begins; only the queue's user may connect."""
        return f"{RUN}/{self.drain_stem}.sock"

    def configuration(self, door: str) -> str:
        """The path of the configuration of the process behind this door; no secret is in it."""
        return f"{CONFIGURATIONS}/{self.router.name}-{door}.cfg"


def ladder(settings: HostSettings, router: Router) -> list[Upstream]:
    """Who is asked, in order.

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
    """Where callers may post; the ladder's engines all take the same."""
    if router.profile == "cloud":
        return (clouds.PATH,)
    return paths(_engines(settings, router)[0]) if router.engines else GENERATE_PATHS


def configuration(
    settings: HostSettings, router: Router, bind: str, run: str, *, drains: bool = False
) -> str:
    """The configuration of one of a router's processes.

    ``bind`` is where it listens and ``run`` its folder for the ladder's sockets. One that
    ``drains`` is the queue's own way back: the right to connect is the key, and nothing is queued.
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
    """What a key is called in a router's credential, to the name of the secret that it is.

    Of callers who each have a key of their own it holds digests: those are not among them.
    """
    callers = {CALLERS: router.api_key} if router.api_key else {}
    return callers | {rung.key: rung.secret for rung in ladder(settings, router)}


def digest(key: Secret) -> str:
    """How a router knows a caller's key: as HAProxy writes the checksum of the header."""
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
    """The process behind one of a router's doors, or ``drain``, the queue's way back."""
    names, path = RouterNames(router), RouterNames(router).configuration(door)
    stem = f"{names.stem}-{door}"
    # It calls what is on loopback, from wherever it is itself called and in every tier.
    confined = router_service(router).model_copy(
        update={
            "unit": f"{stem}.service",
            "listens": [Listen(port=router.port)],
            "tier": "T1",
            "peers": [],
        }
    )
    text = configuration(settings, router, "fd@3", f"{RUN}/{stem}", drains=door == "drain")
    # No variable of this host, a proxy's for one, means anything to it.
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
    """A process for each door of a router, after what it needs: its queue, or what asks clouds."""
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
    """Its way back to the engines, the queue, and the job that raises an alert of its age."""
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
            description=f"{description}: has anyone waited too long",
            kind="oneshot",
            source=queue_program,
            command=(QUEUE_PROGRAM, "age", database, "--max-age-minutes", minutes),
            state=state,
            start_seconds=120,
            isolated=True,
            timer=Timer("every five minutes", (Directive("OnCalendar", "*:0/5"),)),
        ),
    ]
