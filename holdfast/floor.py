"""The floor: its units and the files they read, from settings alone.

llama-server has no network. It answers on a Unix socket, and a proxy without a network of its own
carries requests from each of its doors. llama-server gives each caller one of its few threads for
as long as its request comes in; so the proxy meets it with requests that are there.
"""

from __future__ import annotations

from facts.places import CONFIGURATION, CREDENTIALS, SYSTEM
from holdfast import alerts, completion
from holdfast.doors import PATIENCE, Door, proxy_units
from holdfast.doors import doors as of_program
from holdfast.registry import floor_model, floor_service
from holdfast.render import render
from holdfast.sandbox import sandbox
from holdfast.secrets import Secret
from holdfast.settings import Floor, HostSettings
from holdfast.storage import model_path

PROGRAM = "llama.cpp"
UNIT = "holdfast-floor.service"
RUNTIME_DIRECTORY = "holdfast/holdfast-floor"
SLICE = "floor.slice"
"""A slice of its own, for memory and CPU time are shared out between slices first."""
SOCKET = f"/run/{RUNTIME_DIRECTORY}/http.sock"
"""Where llama-server listens; only its own user may connect."""
KEY_FILE = f"{CREDENTIALS}/floor-api-key"
PROBE_FILE = f"{CREDENTIALS}/floor-probe"
"""A curl configuration that asks for one token; it holds the key, so that no argv has to."""


def doors(floor: Floor) -> list[Door]:
    """Where the floor can be reached, and where it could be."""
    return of_program("holdfast-floor", floor.port, floor.scope)


def configuration(door: Door) -> str:
    """The file that tells a door's proxy what to do."""
    return f"{CONFIGURATION}/floor/{door.name}.cfg"


def key_problem(key: Secret) -> str | None:
    """Why ``key`` would not protect the floor, or None.

    llama-server reads one key a line and takes a line that starts with # for a comment: such a key
    would leave the floor open to everyone who can reach it.
    """
    if key.get_secret_value().startswith("#"):
        return "must not start with #, which llama-server reads as a comment"
    return completion.key_problem(key)


def unit_files(settings: HostSettings, release_directory: str) -> dict[str, str]:
    """Path to text of every unit that the floor needs, and of the configuration of its doors.

    ``release_directory`` holds ``llama-server``.

    Raises:
        ValueError: the host has no floor, or its model is not declared.
    """
    floor, service, model = settings.floor, floor_service(settings), floor_model(settings)
    if floor is None or service is None or model is None:
        raise ValueError(f"{settings.hostname} declares no floor with a declared model")
    found = {
        f"{SYSTEM}/{UNIT}": render(
            "floor/holdfast-floor.service.j2",
            floor=floor,
            model=model_path(settings.storage, model),
            release_directory=release_directory,
            runtime_directory=RUNTIME_DIRECTORY,
            socket=SOCKET,
            key_file=KEY_FILE,
            probe_file=PROBE_FILE,
            on_failure=alerts.ON_FAILURE,
            slice=SLICE,
            sandbox=sandbox(service, isolated=True),
        ),
        f"{SYSTEM}/{SLICE}": render("floor/floor.slice.j2", floor=floor),
    }
    for door in doors(floor):
        found |= proxy_units(door, service, configuration(door))
        found[configuration(door)] = told()
    return found


def told() -> str:
    """Configuration of each door's proxy. It lets every path in: llama-server checks the key."""
    return render("service/door.cfg.j2", posted=[], socket=SOCKET, admin="", patience=PATIENCE)


def probe(key: Secret) -> str:
    """A curl configuration that asks the floor for one token and says nothing unless it fails."""
    chat = {"messages": [{"role": "user", "content": "ready"}], "max_tokens": 1}
    questions = [
        (completion.CHAT_PATH, chat),
        (completion.COMPLETION_PATH, {"prompt": "ready", "max_tokens": 1}),
    ]
    return completion.probe(SOCKET, questions, key)
