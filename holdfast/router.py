"""Routers: their units and the configuration of these, from settings alone.

A router is the distribution's HAProxy with a ladder of upstreams on this host, each a literal
address. It reads of a request its method, its path and the caller's key, and never its body: no
text in there can choose who answers. What does read bodies is another process and user: the queue,
which has no network, and what asks clouds (`holdfast.clouds`), which has little more.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from facts.places import CREDENTIALS, SYSTEM
from facts.router import CONFIGURATIONS
from holdfast import alerts, clouds
from holdfast.doors import PATIENCE, Door, doors, socket_unit, unix_socket_unit
from holdfast.engines.server import GENERATE_PATHS, paths
from holdfast.host_programs import queue as queue_program
from holdfast.registry import TIER_OF_PROFILE, engines, queue_service, router_service
from holdfast.render import render
from holdfast.sandbox import RUN, Directive, sandbox
from holdfast.secrets import Secret
from holdfast.service import Program, Timer, UnixSocket, texts
from holdfast.settings import LOOPBACK_OF, Engine, HostSettings, Listen, Router, Service, Tier
from holdfast.shipping import path_of

QUEUE_PROGRAM = path_of(queue_program)
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
    declared = {engine.name: engine for engine in engines(settings)}
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


def secrets_needed(settings: HostSettings, router: Router) -> list[str]:
    """The names of all secrets that a router's credentials are made of."""
    return [
        *secret_names(settings, router).values(),
        *(key.api_key for key in router.keys),
        *clouds.secret_names(settings, router).values(),
    ]


def digest(key: Secret) -> str:
    """How a router knows a caller's key: as HAProxy writes the checksum of the header."""
    return hashlib.sha256(f"Bearer {key.get_secret_value()}".encode()).hexdigest().upper()


def keys(settings: HostSettings, router: Router, read: dict[str, Secret]) -> str:
    """The text of a router's credential; ``read`` holds the secrets by their names."""
    held = [
        f"{key} Bearer {read[name].get_secret_value()}\n"
        for key, name in secret_names(settings, router).items()
    ]
    return "".join([*held, *(f"{digest(read[key.api_key])} {key.name}\n" for key in router.keys)])


def _process(names: RouterNames, service: Service, stem: str, door: str, summary: str) -> str:
    # It calls what is on loopback, from wherever it is itself called and in every tier.
    confined = service.model_copy(
        update={"listens": [Listen(port=names.router.port)], "tier": "T1", "peers": []}
    )
    return render(
        "router/router.service.j2",
        summary=summary,
        stem=stem,
        configuration=names.configuration(door),
        key_file=names.key_file,
        on_failure=alerts.ON_FAILURE,
        sandbox=sandbox(confined),
    )


def files(settings: HostSettings, router: Router) -> dict[str, str]:
    """Path to text of what a router needs, its keys aside."""
    names, service = RouterNames(router), router_service(router)
    found = {}
    for door in names.doors:
        where = f"from {door.interface}, port {router.port}"
        summary = f"Holdfast router {router.name}: {where}"
        found[f"{SYSTEM}/{door.socket}"] = socket_unit(door)
        found[f"{SYSTEM}/{door.service}"] = _process(names, service, door.stem, door.name, summary)
        found[names.configuration(door.name)] = configuration(
            settings, router, "fd@3", f"{RUN}/{door.stem}"
        )
    return found | _drain_files(settings, names, service) | texts(behind(settings, router))


def behind(settings: HostSettings, router: Router) -> list[Program]:
    """What answers for a router when no rung of its ladder does: a queue or clouds."""
    asks = clouds.program(settings, router)
    return [*([asks] if asks else []), *queue_programs(router)]


def _drain_files(settings: HostSettings, names: RouterNames, service: Service) -> dict[str, str]:
    queue = queue_service(names.router)
    if queue is None:
        return {}
    said = f"Holdfast: the queue of the router {names.router.name}"
    drain = _process(
        names, service, names.drain_stem, "drain", f"{said}, its way back to the engines"
    )
    return {
        f"{SYSTEM}/{names.drain_stem}.socket": unix_socket_unit(said, names.drain_stem, queue.user),
        f"{SYSTEM}/{names.drain_stem}.service": drain,
        names.configuration("drain"): configuration(
            settings, names.router, "fd@3", f"{RUN}/{names.drain_stem}", drains=True
        ),
    }


def queue_programs(router: Router) -> list[Program]:
    """The queue behind a router, and the job that raises an alert when a request waits too long.

    None where the router has no queue.
    """
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
    return [
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
