"""The floor: its model, its memory, its key."""

from __future__ import annotations

from holdfast import secrets
from holdfast.checks.finding import NEW_SECRET, Finding, Findings, nearest
from holdfast.checks.tailnet import tailnet_scope
from holdfast.floor import floor_model, key_problem
from holdfast.settings import HostSettings


def floor(settings: HostSettings) -> Findings:
    """A floor without its model, its memory or its network."""
    floor = settings.floor
    if floor is None:
        return
    model = floor_model(settings)
    if model is None:
        names = {model.name for model in settings.storage.models}
        yield Finding(
            "floor.model",
            floor.model,
            "storage.models declares no such model",
            nearest(floor.model, names),
        )
    elif model.size_mib >= floor.memory_max_mib:
        yield Finding(
            "floor.memory_max_mib",
            floor.memory_max_mib,
            f"the model {model.name} alone needs {model.size_mib:g} MiB",
            "choose a smaller model, or allow more",
        )
    elif not model.filename.endswith(".gguf"):
        yield Finding(
            "floor.model",
            floor.model,
            f"llama.cpp reads GGUF files only, and {model.filename} is none",
            "choose a .gguf model",
        )
    if not floor.release.url.endswith((".tar.gz", ".tgz")):
        yield Finding(
            "floor.release.url",
            floor.release.url,
            "only .tar.gz archives can be unpacked",
            "write the URL of the release's .tar.gz",
        )
    yield from tailnet_scope("floor.scope", floor.scope, settings)


def floor_key(settings: HostSettings) -> Findings:
    """A key that llama-server would not accept; expects that the secret can be read."""
    key = secrets.read(settings.floor.api_key) if settings.floor else None
    if settings.floor and key and (wrong := key_problem(key)):
        yield Finding("floor.api_key", settings.floor.api_key, f"this secret {wrong}", NEW_SECRET)
