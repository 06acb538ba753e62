"""Engines: their models, cards and flags, and whether they fit."""

from __future__ import annotations

import math
import re

from pydantic import ValidationError

from holdfast import completion, secrets
from holdfast.checks.finding import NEW_SECRET, Finding, Findings, nearest, no_file
from holdfast.checks.gpu import own_card
from holdfast.checks.storage import WHAT_FILES_DO, described
from holdfast.checks.tailnet import tailnet_scope
from holdfast.engines.fit import fit_of
from holdfast.engines.server import Memory, Server
from holdfast.engines.servers import SERVERS, environment, served
from holdfast.fit.architecture import NotUnderstood
from holdfast.fit.planner import Fit
from holdfast.python_environment import is_unhashed
from holdfast.refusal import MISSING, shown
from holdfast.settings import Engine, EngineServer, HostSettings
from holdfast.storage import checkpoint_of

USUAL_UTILISATION = 0.80
"""A higher share leaves no room for a second context, a graph or a display (the mission)."""


def engines(settings: HostSettings) -> Findings:
    """Engines that could not start, alone or together."""
    for server in SERVERS:
        if server.name in settings.servers:
            yield from _lock(settings, server, settings.servers[server.name])
    for key, server, engine in served(settings):
        wrong = [
            *_name(key, engine),
            *_other_server(key, server, engine, settings),
            *_checkpoint(key, engine, settings),
            *_cards(key, engine, settings),
            *_peers(key, engine),
            *_memory(key, engine),
            *tailnet_scope(f"{key}.scope", engine.scope, settings),
            *_flags(key, server, engine),
        ]
        yield from wrong
        # The memory plan needs valid settings.
        if not wrong and server.memory is not None:
            yield from _fit(key, server, server.memory, engine, settings)


def _lock(settings: HostSettings, server: Server, wanted: EngineServer) -> Findings:
    key = f"{server.name}.lock"
    mend = "write the output of 'uv pip compile --generate-hashes'"
    if wanted.lock is None and server.lock is None:
        yield Finding(key, MISSING, f"no lock of {server.title} comes with Holdfast", mend)
        return
    if wanted.lock is None:
        on_cpu = [engine.name for engine in wanted.engines if not engine.cards]
        if on_cpu:
            yield Finding(
                key,
                MISSING,
                f"{', '.join(on_cpu)} names no card, and the project's own lock is for the"
                " CUDA build",
                "name its cards, or write a lock for a CPU build",
            )
        return
    wrong = no_file(wanted.lock)
    text = "" if wrong else environment(settings, server).lock
    # A build for another device has the same flags and the same memory accounting.
    pinned = re.search(rf"^{server.name}==([^\s+]+)", text, re.MULTILINE)
    if wrong:
        pass
    elif pinned is None or pinned[1] != server.version:
        wrong = (
            f"it does not pin {server.name} {server.version}, the only version that Holdfast knows"
        )
    elif is_unhashed(text):
        wrong = "one of its requirements has no hash"
    else:
        return
    yield Finding(key, wanted.lock, wrong, mend)


def _name(key: str, engine: Engine) -> Findings:
    if engine.name.endswith(("-loopback", "-tailnet", "-watch")):
        yield Finding(
            f"{key}.name",
            engine.name,
            "this ending is reserved for sockets of engines",
            "rename it",
        )


def _other_server(key: str, server: Server, engine: Engine, settings: HostSettings) -> Findings:
    """Routers, modes and `holdfast replace` know an engine by its name alone."""
    for other, earlier, each in served(settings):
        if earlier == server:
            return
        if each.name == engine.name:
            yield Finding(f"{key}.name", engine.name, f"{other} has this name", "rename one")


def _checkpoint(key: str, engine: Engine, settings: HostSettings) -> Findings:
    if checkpoint_of(settings, engine) is None:
        names = {checkpoint.name for checkpoint in settings.storage.checkpoints}
        yield Finding(
            f"{key}.checkpoint",
            engine.checkpoint,
            "storage.checkpoints declares no such model",
            nearest(engine.checkpoint, names),
        )


def _cards(key: str, engine: Engine, settings: HostSettings) -> Findings:
    for place, name in enumerate(engine.cards):
        why = "an index may be another card after a reboot"
        yield from own_card(f"{key}.cards[{place}]", name, settings, why)


def _peers(key: str, engine: Engine) -> Findings:
    if engine.peer_access is not None and len(engine.cards) < 2:
        wrong = "it applies to engines with two or more cards"
        yield Finding(f"{key}.peer_access", engine.peer_access, wrong, "remove it")


def _memory(key: str, engine: Engine) -> Findings:
    if engine.utilisation > USUAL_UTILISATION and engine.utilisation_reason is None:
        yield Finding(
            f"{key}.utilisation",
            engine.utilisation,
            f"more than {USUAL_UTILISATION:.2f} of a card's memory needs a reason",
            "write it in utilisation_reason, or write less",
        )
    if not engine.cards and engine.cache_mib is None:
        yield Finding(
            f"{key}.cache_mib",
            MISSING,
            "an engine without cards keeps its cache in host memory",
            "write its MiB, or name cards",
        )
    if engine.cards and engine.cache_mib is not None:
        yield Finding(
            f"{key}.cache_mib",
            engine.cache_mib,
            "on cards the cache size follows from utilisation",
            "remove it",
        )


def _flags(key: str, server: Server, engine: Engine) -> Findings:
    known, held = server.flags(), server.held
    for name, written in engine.flags.items():
        at, value = f"{key}.flags.{name}", shown(written, name)
        plain = name.removeprefix("no-")
        if plain in held:
            yield Finding(at, value, "an inventory must not set this flag", held[plain])
        elif name != plain and plain in known:
            yield Finding(
                at,
                value,
                "a flag is switched off by its value, not by a no- prefix",
                f"write '{plain}' False",
            )
        elif name not in known:
            wrong = f"{server.title} {server.version} has no such flag"
            yield Finding(at, value, wrong, nearest(name, set(known) - set(held)))
        elif problem := known[name].problem(written):
            wrong = f"{server.title} {problem}"
            yield Finding(at, value, wrong, f"write a value that {server.title} accepts")


_KEYS = {
    "max_model_len": "context_tokens",
    "max_num_seqs": "concurrent_requests",
    "kv_cache_mib": "cache_mib",
}
"""The planner's names, and the keys of an inventory."""


def _in_keys(sentence: str, memory: Memory) -> str:
    keys = {name: f"flags {flag}" for flag, name in memory.flags.items()} | _KEYS
    found = re.sub(r"\w+", lambda word: keys.get(word[0], word[0]), sentence)
    found = re.sub(r"tensor_parallel (\d+)", r"\1 cards", found)
    return found.replace("tensor_parallel", "the number of cards")


def _fit(
    key: str, server: Server, memory: Memory, engine: Engine, settings: HostSettings
) -> Findings:
    checkpoint = checkpoint_of(settings, engine)
    if checkpoint is None or isinstance(described(checkpoint), str):
        # The checkpoint has its own finding.
        return
    try:
        fit = fit_of(settings, engine)
    except NotUnderstood as error:
        wrong, _, mend = _in_keys(str(error), memory).partition(": ")
        yield Finding(f"{key}.checkpoint", engine.checkpoint, wrong, mend or "choose another model")
        return
    except ValidationError as error:
        (said, *_) = error.errors()
        flag = next((flag for flag, name in memory.flags.items() if name == said["loc"][0]), "")
        wrong = f"the memory plan cannot be computed with it: {said['msg']}"
        mend = f"write a value that {server.title} accepts"
        yield Finding(f"{key}.flags.{flag}", said["input"], wrong, mend)
        return
    except WHAT_FILES_DO as error:
        yield Finding(
            f"{key}.checkpoint",
            engine.checkpoint,
            f"its config.json is invalid ({type(error).__name__}: {_in_keys(str(error), memory)})",
            "copy it again, or choose another model",
        )
        return
    if fit is None or memory.saving & set(engine.flags):
        return
    if not engine.cards:
        yield from _host_memory(key, server, memory, engine, fit)
    if not fit.fits:
        nearest_settings = fit.nearest or ("take more cards, or a smaller model",)
        yield Finding(
            f"{key}.context_tokens",
            engine.context_tokens,
            f"{engine.checkpoint} does not fit: {_in_keys(fit.binds, memory)}",
            f"would fit: {' or: '.join(_in_keys(each, memory) for each in nearest_settings[:3])}",
        )


def _host_memory(key: str, server: Server, memory: Memory, engine: Engine, fit: Fit) -> Findings:
    (taken,) = fit.cards
    held = taken.weight_bytes + taken.reserve.total_bytes + memory.processes_bytes
    needed = math.ceil((held + taken.cache_bytes) / 2**20)
    if needed > engine.memory_max_mib:
        yield Finding(
            f"{key}.memory_max_mib",
            engine.memory_max_mib,
            f"weights, cache and {server.title} itself need {needed} MiB",
            "allow that much, or write a smaller cache_mib",
        )


def engine_keys(settings: HostSettings) -> Findings:
    """Keys that cannot be sent; expects that the secrets can be read."""
    for at, _, engine in served(settings):
        key = secrets.read(engine.api_key)
        if key and (wrong := completion.key_problem(key)):
            yield Finding(f"{at}.api_key", engine.api_key, f"this secret {wrong}", NEW_SECRET)
