"""An engine's units and the files they read, from settings alone.

The engine has no network but a loopback of its own and answers on a Unix socket. What comes in at a
door passes a proxy that knows a few paths and answers 404 for every other: a server may answer some
of its paths without a key.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain

import yaml

from facts.places import CONFIGURATION, CREDENTIALS, STATE, SYSTEM
from holdfast import completion, undoing
from holdfast.doors import Door, doors
from holdfast.engines.fit import cards_of
from holdfast.engines.server import Server, paths, questions
from holdfast.engines.servers import engine_service, environment, served
from holdfast.gpu import limits
from holdfast.gpu.cards import declared_cards
from holdfast.gpu.targets import targets_of
from holdfast.host_programs import engine_watch, gpu_memory
from holdfast.host_programs import replace as replace_program
from holdfast.host_programs.replace import Job
from holdfast.sandbox import AS_ROOT, LOOPBACK, RUN, Directive
from holdfast.service import Credential, File, Program, Proxied, Timer
from holdfast.settings import Engine, HostSettings, Service
from holdfast.shipping import path_of
from holdfast.storage import checkpoint_of, checkpoint_path

STARTS = 5
"""An engine that fails so often in a row is left alone, and an alert is raised."""
MEMORY_PROGRAM = path_of(gpu_memory)
MEMORY_SECONDS = 60
"""How long a start waits for cards to be given back; an engine that was killed takes seconds."""
REPLACE_PROGRAM = path_of(replace_program)
UNDO = replace_program.UNDO_UNIT.format("")
"""Brings back what an engine served, where a replacement was killed; its instance is the engine."""
RECOVERY = "holdfast-engines-recover.service"
"""At boot, before any engine: undoes replacements that a power cut interrupted."""
RECORDS = (CONFIGURATION, STATE)
"""Where an engine's configuration and the steps of its replacement are."""
DEVICES = "holdfast-gpu-devices.service"
"""Makes CUDA's device files at boot: an engine may not, and its sandbox lists what there is."""

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
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
        return f"{replace_program.JOBS}/{self.engine.name}.json"

    @property
    def proxies(self) -> str:
        """The beginning of the paths of its proxies' configuration."""
        return f"{CONFIGURATION}/{self.server.name}/{self.engine.name}-"


def every(settings: HostSettings) -> list[EngineNames]:
    """The names of what belongs to each declared engine of a host."""
    return [EngineNames(server, engine) for _, server, engine in served(settings)]


def cards_of_engine(settings: HostSettings, engine: Engine) -> list[str]:
    """The UUIDs of an engine's cards, in the order in which they are named."""
    known = declared_cards(settings)
    return [uuid for name in engine.cards if name in known and (uuid := known[name].uuid)]


def devices() -> Program:
    """What makes CUDA's device files."""
    module = "modprobe@nvidia_uvm.service"
    own = "the driver may want its files to be another's"
    return Program(
        service=Service(name="gpu-devices", unit=DEVICES, user="root", tier="T1"),
        description="Holdfast: CUDA's device files",
        kind="oneshot",
        # A machine without this program makes them by udev.
        command=("-/usr/bin/nvidia-modprobe", "-u", "-c=0"),
        # Engines wait for it, and a sick driver hangs.
        start_seconds=300,
        order=(
            Directive("Wants", module, "systemd loads the module: this unit need not be able to"),
            Directive("After", module),
            Directive("After", "systemd-modules-load.service nvidia-persistenced.service"),
        ),
        tuned=(Directive("RemainAfterExit", "yes"),),
        isolated=True,
        relaxed=(
            Directive("PrivateDevices", "no", "its files lie in /dev"),
            Directive("DeviceAllow", "char-* m", "it makes files of devices and opens none"),
            Directive(
                "PrivateUsers", "no", "the kernel lets the machine's own root alone make them"
            ),
            Directive("CapabilityBoundingSet", "CAP_MKNOD CAP_CHOWN CAP_FOWNER", own),
            Directive("ProcSubset", "all", "the driver describes itself in /proc"),
            Directive("SystemCallFilter", "@system-service", own),
            Directive("SystemCallFilter", "~@privileged @resources @keyring", own),
            Directive("SystemCallFilter", "@chown", own),
        ),
    )


def _neighbours(settings: HostSettings, names: EngineNames) -> list[str]:
    """Units of engines that are declared before this one and share a card with it."""
    others = every(settings)
    earlier = others[: others.index(names)] if names in others else []
    return [other.unit for other in earlier if set(other.engine.cards) & set(names.engine.cards)]


def programs(settings: HostSettings) -> list[Program]:
    """Every declared engine, each with the job that raises an alert when it does not get on."""
    return [each for names in every(settings) for each in programs_of(settings, names)]


def programs_of(settings: HostSettings, names: EngineNames) -> list[Program]:
    """An engine and its watch; they run while a mode that wants the engine does."""
    targets = tuple(targets_of(settings, names.engine.name))
    return [replace(each, along_with=targets) for each in (_engine(settings, names), _watch(names))]


def _engine(settings: HostSettings, names: EngineNames) -> Program:
    server, engine = names.server, names.engine
    python = environment(settings, server)
    cache = f"/var/cache/{names.stem}"
    uuids = cards_of_engine(settings, engine)
    on_cards = {"CUDA_VISIBLE_DEVICES": ",".join(uuids)} if uuids else {}
    waits = _waits(settings, engine)
    stop_seconds = 2 * server.drain_seconds
    # Before anything is loaded, and as root, who sees whose process holds a card.
    as_root = (*AS_ROOT.split(), "JOURNAL_STREAM=${JOURNAL_STREAM}", "/usr/bin/python3", "-I")
    # The key is in no argv: the shell reads the credential and becomes the engine.
    start = f"exec {python.folder}/bin/{server.command} --config {names.configuration}"
    health = f"curl --fail --silent --output /dev/null --unix-socket {names.socket}"
    alive = f"until {health} http://engine/health; do kill -0 $MAINPID && sleep 1 || exit 1; done"
    return Program(
        service=engine_service(server.name, engine),
        description=f"Holdfast engine {engine.name}, by {server.name}",
        packages=("curl", *server.packages),
        python=python,
        before=((*as_root, *waits),) if waits else (),
        command=("/bin/sh", "-c", f"{server.key_variable}=$$(cat %d/key) {start}"),
        # An engine that has died is not waited for.
        ready=(("/bin/sh", "-c", alive), ("/usr/bin/curl", "--config", "%d/probe")),
        environment={
            "PATH": f"{python.folder}/bin:{_PATH}",
            "HOME": cache,
            "XDG_CACHE_HOME": cache,
            **server.environment(engine, cache),
            **on_cards,
        },
        credentials=(
            Credential(
                "key", names.key, lambda read: f"{read(engine.api_key).get_secret_value()}\n"
            ),
            Credential(
                "probe",
                names.probe,
                lambda read: completion.probe(
                    names.socket, questions(engine), read(engine.api_key)
                ),
            ),
        ),
        # Its configuration is not among them: another one is a replacement, which restarts it.
        files=(
            File(
                names.job,
                json.dumps(asdict(_job(settings, names)), indent=1) + "\n",
                read_at_start=False,
            ),
        ),
        runtime=f"holdfast/{names.stem}",
        cache=names.stem,
        working_directory=cache,
        start_seconds=engine.start_seconds,
        stop_seconds=stop_seconds,
        # Always: an engine whose core was killed exits with 0.
        restart="always",
        restart_seconds=5,
        # Every start of the row must lie in it, however long each of them takes to fail.
        starts=(STARTS, STARTS * (engine.start_seconds + stop_seconds + 60)),
        at_boot=True,
        order=(*_order(settings, names, python.folder),),
        tuned=(*_tuned(settings, engine),),
        isolated=True,
        relaxed=(*_RELAXED, *(_ON_CARDS if engine.cards else ())),
        proxied=Proxied(
            doors=tuple(names.doors),
            socket=names.socket,
            configuration=names.proxies,
            posted=paths(engine),
            read=("/health", "/v1/models"),
            # Who may only ask has no business with what others ask.
            read_here=("/metrics",),
            # A replacement keeps callers out for as long as no engine would answer them.
            may_be_held=True,
        ),
    )


def _order(settings: HostSettings, names: EngineNames, folder: str) -> Iterator[Directive]:
    yield Directive("RequiresMountsFor", f"{settings.storage.models_path} {folder}")
    undone = "what was replaced when the power was cut is undone first"
    yield Directive("Wants", RECOVERY, undone)
    yield Directive("After", RECOVERY)
    if names.engine.cards:
        yield Directive("Wants", DEVICES)
        yield Directive(
            "After", f"{DEVICES} nvidia-persistenced.service holdfast-gpu-limits.service"
        )
    measured = "it measures a card that both share: what the other loads meanwhile would count"
    for neighbour in _neighbours(settings, names):
        yield Directive("After", neighbour, measured)


def _tuned(settings: HostSettings, engine: Engine) -> Iterator[Directive]:
    yield Directive("LimitNOFILE", "65536")
    drains = "it drains when it is asked to end; what then is left, workers too, is killed"
    yield Directive("KillMode", "mixed", drains)
    if settings.distribution != "debian12":
        yield Directive("RestartSteps", "4")
        yield Directive("RestartMaxDelaySec", "60")
    yield Directive("CPUWeight", "50", "the floor is scheduled before any engine")
    if engine.cpus:
        yield Directive("AllowedCPUs", engine.cpus)
    yield Directive("OOMScoreAdjust", "300", "the floor is killed after any engine")
    yield Directive("MemorySwapMax", "0")


def _watch(names: EngineNames) -> Program:
    server, user = names.server, engine_service(names.server.name, names.engine).user
    busy = [("--busy", name) for name in (server.running_metric, server.waiting_metric)]
    progress = [("--progress", name) for name in server.progress_metrics]
    return Program(
        service=Service(name=names.watch, unit=f"{names.watch}.service", user=user, tier="T1"),
        description=f"Holdfast: does {names.unit} get on with what it has to do",
        kind="oneshot",
        source=engine_watch,
        command=(
            *("/usr/bin/python3", "-I", path_of(engine_watch), names.socket),
            *("--state", f"{RUN}/{names.watch}/seen.json"),
            *("--seconds", str(names.engine.stall_seconds)),
            *chain(*busy, *progress),
        ),
        runtime=f"holdfast/{names.watch}",
        start_seconds=120,
        order=(Directive("After", names.unit),),
        tuned=(Directive("RuntimeDirectoryPreserve", "yes", "what it saw last time"),),
        isolated=True,
        timer=Timer(
            "twice a minute",
            (
                Directive("OnActiveSec", "30"),
                Directive("OnUnitInactiveSec", "30"),
                Directive("AccuracySec", "5"),
            ),
        ),
    )


BESIDE = (RECOVERY, DEVICES, UNDO)
"""Units that all engines of a host share."""


def beside(settings: HostSettings) -> list[str]:
    """The paths that engines have on a host beside their programs' files."""
    engines = every(settings)
    shared = [f"{SYSTEM}/{name}" for name in BESIDE] if engines else []
    return [*shared, *(names.configuration for names in engines)]


def configuration(settings: HostSettings, names: EngineNames) -> str:
    """The text of an engine's configuration.

    Raises:
        ValueError: the engine's checkpoint is not declared.
    """
    checkpoint = checkpoint_of(settings, names.engine)
    if checkpoint is None:
        raise ValueError(f"{settings.hostname} declares no checkpoint {names.engine.checkpoint}")
    folder = checkpoint_path(settings.storage, checkpoint)
    cards = cards_of(settings, names.engine)
    said = names.server.configuration(names.engine, folder, names.socket, cards)
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
        doors=[door.admin for door in names.doors],
        configuration=names.configuration,
        model_key=names.server.model_key,
        cache=f"/var/cache/{names.stem}",
        questions=[[path, body] for path, body in questions(names.engine)],
        model=names.engine.name,
        key=names.key,
        running_metric=names.server.running_metric,
        waiting_metric=names.server.waiting_metric,
        memory=_waits(settings, names.engine),
    )


def recovery() -> Program:
    """What undoes interrupted replacements at boot."""
    return Program(
        service=Service(name="engines-recover", unit=RECOVERY, user="root", tier="T1"),
        description="Holdfast: undo replacements of models that a power cut interrupted",
        kind="oneshot",
        command=(REPLACE_PROGRAM, "--recover"),
        # Engines wait for it.
        start_seconds=300,
        at_boot=True,
        order=(Directive("RequiresMountsFor", STATE),),
        tuned=(Directive("RemainAfterExit", "yes"),),
        isolated=True,
        relaxed=tuple(
            Directive("ReadWritePaths", f"-{path}", "what it undoes") for path in RECORDS
        ),
    )


def undo() -> Program:
    """What takes over from a replacement that was killed."""
    return undoing.undo(
        UNDO,
        what="the replacement of the model of %i",
        command=(REPLACE_PROGRAM, "--undo", "%i"),
        writes=RECORDS,
        others="doors and keys are their services' own",
    )
