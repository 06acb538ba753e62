"""An engine's units and the files they read, from settings alone.

The engine has no network but a loopback of its own and answers on a Unix socket. What comes in at a
door passes a proxy that knows a few paths and answers 404 for every other: vLLM asks for its key
below /v1 only.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import yaml

from facts.places import CONFIGURATION, CREDENTIALS, STATE, SYSTEM
from holdfast import alerts, completion
from holdfast.doors import PATIENCE, Door, doors, proxy_units
from holdfast.engines.fit import cards_of, settings_of
from holdfast.engines.server import Server, paths, questions
from holdfast.gpu import limits
from holdfast.host_programs import engine_watch, gpu_memory
from holdfast.host_programs import replace as replace_program
from holdfast.host_programs.replace import Job
from holdfast.registry import cards, checkpoint_of, engine_service, engines
from holdfast.render import render
from holdfast.sandbox import AS_ROOT, LOOPBACK, RUN, Directive, sandbox, undoing
from holdfast.secrets import Secret
from holdfast.settings import Engine, HostSettings, Service
from holdfast.shipping import path_of
from holdfast.storage import checkpoint_path

STARTS = 5
"""An engine that fails so often in a row is left alone, and an alert is raised."""
STOP_SECONDS = 60
"""vLLM's own drain (`holdfast.engines.vllm.DRAIN_SECONDS`) and as much again to let go of cards."""

MEMORY_PROGRAM = path_of(gpu_memory)
MEMORY_SECONDS = 60
"""How long a start waits for cards to be given back; an engine that was killed takes seconds."""
REPLACE_PROGRAM = path_of(replace_program)
WATCH_PROGRAM = path_of(engine_watch)
UNDO = replace_program.UNDO_UNIT.format("")
"""Brings back what an engine served, where a replacement was killed; its instance is the engine."""
RECOVERY = "holdfast-engines-recover.service"
"""At boot, before any engine: undoes replacements that a power cut interrupted."""
RECORDS = (CONFIGURATION, STATE)
"""Where an engine's configuration and the steps of its replacement are."""
DEVICES = "holdfast-gpu-devices.service"
"""Makes CUDA's device files at boot: an engine may not, and its sandbox lists what there is."""

_RELAXED = (
    Directive("MemoryDenyWriteExecute", "no", "PyTorch and Triton write the kernels they run"),
    Directive("ProcSubset", "all", "reads /proc/cpuinfo and /proc/meminfo"),
    Directive(
        "RestrictAddressFamilies",
        "AF_UNIX AF_INET AF_NETLINK",
        "its processes meet on the loopback of this unit alone",
    ),
    *(Directive("IPAddressAllow", network, "the same") for network in LOOPBACK),
    Directive("SystemCallFilter", "@system-service @resources", "binds threads and memory to CPUs"),
    Directive("SystemCallFilter", "~@privileged @keyring", "binds threads and memory to CPUs"),
)
_ON_CARDS = (
    Directive("PrivateDevices", "no", "its cards are devices"),
    *(
        Directive("DeviceAllow", f"{name} rw", "a card, by each name the driver has had")
        for name in (*limits.DEVICES, "char-nvidia-uvm")
    ),
)


@dataclass(frozen=True)
class EngineNames:
    """What belongs to one engine of one server on a host, by name."""

    server: Server
    engine: Engine

    @property
    def stem(self) -> str:
        """The beginning of every name."""
        return f"holdfast-{self.server.name}-{self.engine.name}"

    @property
    def unit(self) -> str:
        """Its service."""
        return f"{self.stem}.service"

    @property
    def socket(self) -> str:
        """Where it listens; only its own user may connect."""
        return f"{RUN}/{self.stem}/http.sock"

    @property
    def configuration(self) -> str:
        """The path of the server's configuration; no secret is in it."""
        return f"{CONFIGURATION}/{self.server.name}/{self.engine.name}.yaml"

    @property
    def key(self) -> str:
        """Its API key, for root alone; systemd hands it over."""
        return f"{CREDENTIALS}/{self.stem}-key"

    @property
    def probe(self) -> str:
        """A curl configuration that asks for one answer; the key is in it."""
        return f"{CREDENTIALS}/{self.stem}-probe"

    @property
    def doors(self) -> list[Door]:
        """Where it can be reached, and where it could be."""
        return doors(self.stem, self.engine.port, self.engine.scope)

    @property
    def watch(self) -> str:
        """The beginning of the names of the units that see that it gets on."""
        return f"{self.stem}-watch"

    @property
    def job(self) -> str:
        """What a replacement of its model needs to know."""
        return f"{CONFIGURATION}/{self.server.name}/{self.engine.name}.json"

    def admin_of(self, door: Door) -> str:
        """Where a door's proxy takes orders; only its user, and root, may give them."""
        return f"{RUN}/{door.stem}/admin.sock"

    def paths_of(self, door: Door) -> str:
        """The file that tells a door's proxy what it lets through."""
        return f"{CONFIGURATION}/{self.server.name}/{self.engine.name}-{door.name}.cfg"


def cards_of_engine(settings: HostSettings, engine: Engine) -> list[str]:
    """The UUIDs of an engine's cards, in the order in which they are named."""
    known = cards(settings)
    return [uuid for name in engine.cards if name in known and (uuid := known[name].uuid)]


def devices_unit() -> str:
    """The text of the unit that makes CUDA's device files."""
    service = Service(name="gpu-devices", unit=DEVICES, user="root", tier="T1")
    own = "the driver may want its files to be another's"
    relaxed = [
        Directive("PrivateDevices", "no", "its files lie in /dev"),
        Directive("DeviceAllow", "char-* m", "it makes files of devices and opens none"),
        Directive("PrivateUsers", "no", "the kernel lets the machine's own root alone make them"),
        Directive("CapabilityBoundingSet", "CAP_MKNOD CAP_CHOWN CAP_FOWNER", own),
        Directive("ProcSubset", "all", "the driver describes itself in /proc"),
        Directive("SystemCallFilter", "@system-service", own),
        Directive("SystemCallFilter", "~@privileged @resources @keyring", own),
        Directive("SystemCallFilter", "@chown", own),
    ]
    return render(
        "vllm/holdfast-gpu-devices.service.j2",
        module="modprobe@nvidia_uvm.service",
        on_failure=alerts.ON_FAILURE,
        sandbox=sandbox(service, isolated=True, relaxed=relaxed),
    )


def _neighbours(settings: HostSettings, names: EngineNames) -> list[str]:
    """Units of engines that are declared before this one and share a card with it."""
    others = engines(settings)
    earlier = others[: others.index(names.engine)] if names.engine in others else []
    return [
        EngineNames(names.server, other).unit
        for other in earlier
        if set(other.cards) & set(names.engine.cards)
    ]


def files(settings: HostSettings, names: EngineNames, environment: str) -> dict[str, str]:
    """Path to text of what an engine needs, its configuration and its secrets aside.

    ``environment`` is the folder of the Python environment that holds the server.
    """
    server, engine = names.server, names.engine
    service = engine_service(server.name, engine)
    variables = dict(server.environment(engine))
    if uuids := cards_of_engine(settings, engine):
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(uuids)
    found = {
        names.job: json.dumps(asdict(_job(settings, names)), indent=1) + "\n",
        f"{SYSTEM}/{names.unit}": render(
            "vllm/engine.service.j2",
            names=names,
            server=server,
            engine=engine,
            models_path=settings.storage.models_path,
            recovery=RECOVERY,
            environment=environment,
            variables=variables,
            devices=DEVICES,
            as_root=AS_ROOT,
            waits=_waits(settings, engine),
            neighbours=_neighbours(settings, names),
            starts=STARTS,
            # Every start of the row must lie in it, however long each of them takes to fail.
            interval_seconds=STARTS * (engine.start_seconds + STOP_SECONDS + 60),
            stop_seconds=STOP_SECONDS,
            backs_off=settings.distribution != "debian12",
            on_failure=alerts.ON_FAILURE,
            sandbox=sandbox(
                service,
                isolated=True,
                relaxed=(*_RELAXED, *(_ON_CARDS if engine.cards else ())),
            ),
        ),
    }
    watch = Service(name=names.watch, unit=names.unit, user=service.user, tier=service.tier)
    found |= {
        f"{SYSTEM}/{names.watch}.timer": render("vllm/watch.timer.j2", names=names),
        f"{SYSTEM}/{names.watch}.service": render(
            "vllm/watch.service.j2",
            names=names,
            run=RUN,
            program=WATCH_PROGRAM,
            busy=(server.running_metric, server.waiting_metric),
            progress=server.progress_metrics,
            on_failure=alerts.ON_FAILURE,
            sandbox=sandbox(watch, isolated=True),
        ),
    }
    for door in names.doors:
        found |= proxy_units(door, service, names.paths_of(door))
        found[names.paths_of(door)] = render(
            "service/door.cfg.j2",
            posted=paths(engine),
            # Who may only ask has no business with what others ask.
            read=["/health", "/v1/models", *(["/metrics"] if door.name == "loopback" else [])],
            socket=names.socket,
            admin=names.admin_of(door),
            patience=PATIENCE,
        )
    return found


def configuration(settings: HostSettings, names: EngineNames) -> str:
    """The text of an engine's configuration.

    Raises:
        ValueError: the engine's checkpoint is not declared.
    """
    checkpoint = checkpoint_of(settings, names.engine)
    if checkpoint is None:
        raise ValueError(f"{settings.hostname} declares no checkpoint {names.engine.checkpoint}")
    batch = settings_of(names.engine, cards_of(settings, names.engine)).max_num_batched_tokens
    folder = checkpoint_path(settings.storage, checkpoint)
    said = names.server.configuration(names.engine, folder, names.socket, batch)
    return yaml.safe_dump(said, sort_keys=True)


def _waits(settings: HostSettings, engine: Engine) -> list[str]:
    """The command that waits for an engine's cards; empty where it has none."""
    uuids = cards_of_engine(settings, engine)
    seconds, share = str(MEMORY_SECONDS), f"{engine.utilisation:g}"
    return [MEMORY_PROGRAM, seconds, share, *uuids] if uuids else []


def _job(settings: HostSettings, names: EngineNames) -> Job:
    return Job(
        name=names.engine.name,
        unit=names.unit,
        socket=names.socket,
        doors=[names.admin_of(door) for door in names.doors],
        configuration=names.configuration,
        cache=f"/var/cache/{names.stem}",
        questions=[[path, body] for path, body in questions(names.engine)],
        model=names.engine.name,
        key=names.key,
        running_metric=names.server.running_metric,
        waiting_metric=names.server.waiting_metric,
        memory=_waits(settings, names.engine),
    )


def recovery_unit() -> str:
    """The text of the unit that undoes interrupted replacements."""
    service = Service(name="engines-recover", unit=RECOVERY, user="root", tier="T1")
    relaxed = [Directive("ReadWritePaths", f"-{path}", "what it undoes") for path in RECORDS]
    return render(
        "vllm/holdfast-engines-recover.service.j2",
        program=REPLACE_PROGRAM,
        on_failure=alerts.ON_FAILURE,
        sandbox=sandbox(service, isolated=True, relaxed=relaxed),
    )


def undo_unit() -> str:
    """The text of the unit that takes over from a replacement that was killed."""
    service = Service(name="replace-undo", unit=UNDO, user="root", tier="T1")
    relaxed = undoing(RECORDS, "doors and keys are their services' own")
    return render(
        "service/undo@.service.j2",
        what="the replacement of the model of %i",
        command=f"{REPLACE_PROGRAM} --undo %i",
        on_failure=alerts.ON_FAILURE,
        sandbox=sandbox(service, isolated=True, relaxed=relaxed),
    )


def secret_files(names: EngineNames, key: Secret) -> dict[str, str]:
    """Path to text of what root alone may read."""
    return {
        names.key: f"{key.get_secret_value()}\n",
        names.probe: completion.probe(names.socket, questions(names.engine), key),
    }
