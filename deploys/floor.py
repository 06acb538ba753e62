"""The floor: a small model on the CPU that answers when nothing else does."""

from __future__ import annotations

from pyinfra.api.deploy import deploy

from facts.places import SYSTEM
from holdfast import alerts, floor
from holdfast.registry import floor_model
from holdfast.secrets import require
from holdfast.settings import HostSettings
from holdfast.storage import model_path
from operations import artefact, host_files, packages, units
from operations.host_files import HostFile
from operations.units import Unit


@deploy("Floor")
def apply(settings: HostSettings) -> None:
    """Install llama.cpp's server, give it the model and the key, and have it answering."""
    model = floor_model(settings)
    if settings.floor is None or model is None:
        return
    key = require(settings.floor.api_key)
    release = settings.floor.release
    release_directory = artefact.directory(floor.PROGRAM, release)
    unit_files = floor.unit_files(settings, release_directory)

    artefact.installed(
        name="Install llama.cpp",
        program=floor.PROGRAM,
        artefact=release,
        unpack="tar.gz",
        strip_components=1,
    )
    packages.present(name="Install the floor's proxy", packages=["haproxy"])
    host_files.place(
        name="Write the floor's units and key",
        directories=[
            host_files.CONFIGURATION,
            host_files.CREDENTIALS,
        ],
        files=[
            HostFile(floor.KEY_FILE, f"{key.get_secret_value()}\n", mode="600"),
            HostFile(floor.PROBE_FILE, floor.probe(key), mode="600"),
            HostFile(alerts.UNIT_PATH, alerts.notify_unit()),
            *(HostFile(path, text) for path, text in unit_files.items()),
        ],
    )
    read_at_start = [
        f"{SYSTEM}/{floor.UNIT}",
        f"{SYSTEM}/{floor.SLICE}",
        floor.KEY_FILE,
        floor.PROBE_FILE,
        model_path(settings.storage, model),
    ]
    units.settle(
        name="Have the floor answer",
        units=[
            units.NO_OTHER_PROXY,
            Unit(floor.UNIT, restart_after=read_at_start),
            *(
                unit
                for door in floor.doors(settings.floor)
                for unit in units.of_door(door, floor.configuration(door))
            ),
        ],
    )
