"""The floor: its units and their files, from settings alone.

llama-server has no network. It listens on a Unix socket, and a proxy, also without a network,
forwards requests from each of its doors. llama-server occupies one of its few threads while a
request arrives, so the proxy receives a request before it forwards it.
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
"""A slice of its own, because the kernel first divides memory and CPU time among slices."""
SOCKET = f"/run/{RUNTIME_DIRECTORY}/http.sock"
"""The socket of llama-server; only its own user may connect."""
KEY_FILE = f"{CREDENTIALS}/floor-api-key"
PROBE_FILE = f"{CREDENTIALS}/floor-probe"
"""A curl configuration that requests one token; it holds the key, so that no command line does."""
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

    llama-server reads one key per line, and a line that starts with # is a comment. Such a key
    would leave the floor open to everyone who can reach it.
    """
    if key.get_secret_value().startswith("#"):
        return "must not start with #, which llama-server reads as a comment"
    return completion.key_problem(key)


def programs(settings: HostSettings) -> list[Program]:
    """The floor; empty if the host has none, or if its model is not declared."""
    floor, service, model = settings.floor, floor_service(settings), floor_model(settings)
    if floor is None or service is None or model is None:
        return []
    llama = Archive(PROGRAM, floor.release, strip_components=1)
    path = model_path(settings.storage, model)
    key, memory = floor.api_key, f"{floor.memory_max_mib}M"
    # Weights stay in memory. Releases name this setting differently, so both names are set.
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
        # Wait until the model is loaded, then request a completion. Stop if the engine has died.
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
            "Holdfast: memory and CPU time reserved for the floor",
            (
                Directive("MemoryMin", memory, "a unit is guaranteed no more than its slice"),
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
        # The proxy forwards every path; llama-server checks the key.
        proxied=Proxied(
            doors=tuple(doors("holdfast-floor", floor.port, floor.scope)),
            socket=SOCKET,
            configuration=f"{CONFIGURATION}/floor/",
        ),
    )
    return [declared]


def probe(key: Secret) -> str:
    """A curl configuration that requests one token from the floor; it prints only failures."""
    chat = {"messages": [{"role": "user", "content": "ready"}], "max_tokens": 1}
    questions = [
        (completion.CHAT_PATH, chat),
        (completion.COMPLETION_PATH, {"prompt": "ready", "max_tokens": 1}),
    ]
    return completion.probe(SOCKET, questions, key)
