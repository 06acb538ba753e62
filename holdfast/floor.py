"""The floor: its units and the files they read, from settings alone.

llama-server has no network. It answers on a Unix socket, and a proxy without a network of its own
carries requests from each of its doors. llama-server gives each caller one of its few threads for
as long as its request comes in; so the proxy meets it with requests that are there.
"""

from __future__ import annotations

from facts.places import CONFIGURATION, CREDENTIALS, STATE
from holdfast import completion
from holdfast.artefact import Archive
from holdfast.doors import doors
from holdfast.sandbox import Directive
from holdfast.secrets import Secret
from holdfast.service import Credential, Program, Proxied, Slice
from holdfast.service.capability import Declared
from holdfast.settings import DataPath, HealthCheck, HostSettings, Listen, ModelFile, Service
from holdfast.storage import model_path

PROGRAM = "llama.cpp"
FLOOR_USER = "holdfast-floor"


FLOOR_STATE = f"{STATE}/floor"
UNIT = "holdfast-floor.service"
RUNTIME_DIRECTORY = "holdfast/holdfast-floor"
SLICE = "floor.slice"
"""A slice of its own, for memory and CPU time are shared out between slices first."""
SOCKET = f"/run/{RUNTIME_DIRECTORY}/http.sock"
"""Where llama-server listens; only its own user may connect."""
KEY_FILE = f"{CREDENTIALS}/floor-api-key"
PROBE_FILE = f"{CREDENTIALS}/floor-probe"
"""A curl configuration that asks for one token; it holds the key, so that no argv has to."""
_HEALTH = f"curl --fail --silent --output /dev/null --unix-socket {SOCKET} http://floor/health"


def floor_model(settings: HostSettings) -> ModelFile | None:
    """The model the floor serves, or None where there is no floor or the model is not declared."""
    wanted = settings.floor.model if settings.floor else None
    return next((model for model in settings.storage.models if model.name == wanted), None)


def floor_service(settings: HostSettings) -> Service | None:
    """The floor as a service, or None where the host has none."""
    floor = settings.floor
    if floor is None:
        return None
    model = floor_model(settings)
    data = [DataPath(path=FLOOR_STATE, backup="state")]
    if model is not None:
        data.append(DataPath(path=model_path(settings.storage, model), backup="derived"))
    return Service(
        name="floor",
        unit="holdfast-floor.service",
        user=FLOOR_USER,
        tier="T1",
        listens=[Listen(port=floor.port, scope=floor.scope, callers=floor.callers)],
        memory_max_mib=floor.memory_max_mib,
        data=data,
        health=HealthCheck(url=f"http://127.0.0.1:{floor.port}/health", contains="ok"),
    )


def services(settings: HostSettings) -> list[Declared]:
    """The floor, where the host has one."""
    service = floor_service(settings)
    return [("floor", service)] if service else []


def key_problem(key: Secret) -> str | None:
    """Why ``key`` would not protect the floor, or None.

    llama-server reads one key a line and takes a line that starts with # for a comment: such a key
    would leave the floor open to everyone who can reach it.
    """
    if key.get_secret_value().startswith("#"):
        return "must not start with #, which llama-server reads as a comment"
    return completion.key_problem(key)


def programs(settings: HostSettings) -> list[Program]:
    """The floor; none where the host has none, or its model is not declared."""
    floor, service, model = settings.floor, floor_service(settings), floor_model(settings)
    if floor is None or service is None or model is None:
        return []
    llama = Archive(PROGRAM, floor.release, strip_components=1)
    path = model_path(settings.storage, model)
    key, memory = floor.api_key, f"{floor.memory_max_mib}M"
    # Weights stay in memory. The name of this setting differs between releases; each reads its own.
    locked = {"LLAMA_ARG_MLOCK": "1", "LLAMA_ARG_LOAD_MODE": "mmap+mlock"}
    alive = f"until {_HEALTH}; do kill -0 $MAINPID && sleep 1 || exit 1; done"
    declared = Program(
        service=service,
        archive=llama,
        description=f"Holdfast floor: {floor.model} on the CPU",
        documentation="https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md",
        command=(
            f"{llama.folder}/llama-server",
            *("--host", SOCKET),
            *("--api-key-file", "%d/floor-api-key"),
            *("--model", path),
            *("--alias", floor.model),
            *("--ctx-size", str(floor.context_tokens)),
            *("--threads", str(floor.threads)),
            *("--cache-ram", "0"),
            *("--offline", "--no-webui", "--no-slots", "--metrics"),
        ),
        # First that the model is loaded, then a completion. An engine that has died is not waited
        # for.
        ready=(("/bin/sh", "-c", alive), ("/usr/bin/curl", "--config", "%d/floor-probe")),
        environment=locked,
        credentials=(
            Credential("floor-api-key", KEY_FILE, lambda read: f"{read(key).get_secret_value()}\n"),
            Credential("floor-probe", PROBE_FILE, lambda read: probe(read(key))),
        ),
        reads=(path,),
        runtime=RUNTIME_DIRECTORY,
        state="holdfast/floor",
        start_seconds=900,
        stop_seconds=30,
        restart="always",
        restart_seconds=5,
        starts=(10, 600),
        at_boot=True,
        slice=Slice(
            SLICE,
            "Holdfast: what the floor has before everything else on this machine",
            (
                Directive("MemoryMin", memory, "a unit is promised no more than its slice"),
                Directive("CPUWeight", "400"),
            ),
        ),
        order=(Directive("RequiresMountsFor", path),),
        tuned=(
            Directive("LimitMEMLOCK", "infinity", "its weights stay in memory"),
            Directive("KillMode", "mixed"),
            Directive("MemoryMin", memory, "it answers when nothing else does"),
            Directive("OOMScoreAdjust", "-500", "it is killed last"),
            Directive("MemorySwapMax", "0"),
        ),
        isolated=True,
        # It lets every path in: llama-server checks the key.
        proxied=Proxied(
            doors=tuple(doors("holdfast-floor", floor.port, floor.scope)),
            socket=SOCKET,
            configuration=f"{CONFIGURATION}/floor/",
        ),
    )
    return [declared]


def probe(key: Secret) -> str:
    """A curl configuration that asks the floor for one token and says nothing unless it fails."""
    chat = {"messages": [{"role": "user", "content": "ready"}], "max_tokens": 1}
    questions = [
        (completion.CHAT_PATH, chat),
        (completion.COMPLETION_PATH, {"prompt": "ready", "max_tokens": 1}),
    ]
    return completion.probe(SOCKET, questions, key)
