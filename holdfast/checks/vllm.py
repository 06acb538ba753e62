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
from holdfast.engines import vllm
from holdfast.engines.fit import FLAGS, fit_of
from holdfast.engines.servers import declared_engines
from holdfast.engines.vllm import lock_of
from holdfast.fit.architecture import NotUnderstood
from holdfast.fit.planner import Fit
from holdfast.python_environment import is_unhashed
from holdfast.refusal import MISSING, shown
from holdfast.settings import Engine, HostSettings, Vllm
from holdfast.storage import checkpoint_of

PROCESSES_BYTES = 2200 * 2**20
"""Memory of an engine's three processes without weights and cache on a CPU: 3.2 GB of them with
a cache of 1 GiB and a model of 1 MB (measured with 0.32)."""
USUAL_UTILISATION = 0.80
"""A higher share leaves no room for a second context, a graph or a display (the mission)."""


def engines(settings: HostSettings) -> Findings:
    """Engines that could not start, alone or together."""
    if settings.vllm is None:
        return
    yield from _lock(settings.vllm)
    for index, engine in enumerate(settings.vllm.engines):
        key = f"vllm.engines[{index}]"
        wrong = [
            *_name(key, engine),
            *_checkpoint(key, engine, settings),
            *_cards(key, engine, settings),
            *_peers(key, engine),
            *_memory(key, engine),
            *tailnet_scope(f"{key}.scope", engine.scope, settings),
            *_flags(key, engine),
        ]
        yield from wrong
        # The memory plan needs valid settings.
        if not wrong:
            yield from _fit(key, engine, settings)


def _lock(wanted: Vllm) -> Findings:
    if wanted.lock is None:
        on_cpu = [engine.name for engine in wanted.engines if not engine.cards]
        if on_cpu:
            yield Finding(
                "vllm.lock",
                MISSING,
                f"{', '.join(on_cpu)} names no card, and the project's own lock is for the"
                " CUDA build",
                "name its cards, or write a lock for a CPU build",
            )
        return
    lock = wanted.lock
    wrong = no_file(lock)
    text = "" if wrong else lock_of(wanted).read_text("utf-8", "replace")
    # A build for another device has the same flags and the same memory accounting.
    pinned = re.search(r"^vllm==([^\s+]+)", text, re.MULTILINE)
    if wrong:
        pass
    elif pinned is None or pinned[1] != vllm.VERSION:
        wrong = f"it does not pin vllm {vllm.VERSION}, the only version that Holdfast knows"
    elif is_unhashed(text):
        wrong = "one of its requirements has no hash"
    else:
        return
    yield Finding(
        "vllm.lock", lock, wrong, "write the output of 'uv pip compile --generate-hashes'"
    )


def _name(key: str, engine: Engine) -> Findings:
    if engine.name.endswith(("-loopback", "-tailnet", "-watch")):
        yield Finding(
            f"{key}.name",
            engine.name,
            "this ending is reserved for sockets of engines",
            "rename it",
        )


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


def _flags(key: str, engine: Engine) -> Findings:
    known = vllm.flags()
    for name, written in engine.flags.items():
        at, value = f"{key}.flags.{name}", shown(written, name)
        plain = name.removeprefix("no-")
        if plain in vllm.HELD:
            yield Finding(at, value, "an inventory must not set this flag", vllm.HELD[plain])
        elif name != plain and plain in known:
            yield Finding(
                at,
                value,
                "a flag is switched off by its value, not by a no- prefix",
                f"write '{plain}' False",
            )
        elif name not in known:
            wrong = f"vLLM {vllm.VERSION} has no such flag"
            yield Finding(at, value, wrong, nearest(name, set(known) - set(vllm.HELD)))
        elif problem := vllm.flag_problem(name, written):
            yield Finding(at, value, problem, "write a value that vLLM accepts")


_KEYS = {
    "max_model_len": "context_tokens",
    "max_num_seqs": "concurrent_requests",
    "max_num_batched_tokens": "flags max-num-batched-tokens",
    "kv_cache_mib": "cache_mib",
}
"""The planner's names, which are vLLM's, and the keys of an inventory."""


def _in_keys(sentence: str) -> str:
    found = re.sub(r"\w+", lambda word: _KEYS.get(word[0], word[0]), sentence)
    found = re.sub(r"tensor_parallel (\d+)", r"\1 cards", found)
    return found.replace("tensor_parallel", "the number of cards")


def _fit(key: str, engine: Engine, settings: HostSettings) -> Findings:
    checkpoint = checkpoint_of(settings, engine)
    if checkpoint is None or isinstance(described(checkpoint), str):
        # The checkpoint has its own finding.
        return
    try:
        fit = fit_of(settings, engine)
    except NotUnderstood as error:
        wrong, _, mend = _in_keys(str(error)).partition(": ")
        yield Finding(f"{key}.checkpoint", engine.checkpoint, wrong, mend or "choose another model")
        return
    except ValidationError as error:
        (said, *_) = error.errors()
        flag = next((flag for flag, name in FLAGS.items() if name == said["loc"][0]), "")
        wrong = f"the memory plan cannot be computed with it: {said['msg']}"
        yield Finding(
            f"{key}.flags.{flag}", said["input"], wrong, "write a value that vLLM accepts"
        )
        return
    except WHAT_FILES_DO as error:
        yield Finding(
            f"{key}.checkpoint",
            engine.checkpoint,
            f"its config.json is invalid ({type(error).__name__}: {_in_keys(str(error))})",
            "copy it again, or choose another model",
        )
        return
    if fit is None or vllm.SAVING & set(engine.flags):
        return
    if not engine.cards:
        yield from _host_memory(key, engine, fit)
    if not fit.fits:
        nearest_settings = fit.nearest or ("take more cards, or a smaller model",)
        yield Finding(
            f"{key}.context_tokens",
            engine.context_tokens,
            f"{engine.checkpoint} does not fit: {_in_keys(fit.binds)}",
            f"would fit: {' or: '.join(map(_in_keys, nearest_settings[:3]))}",
        )


def _host_memory(key: str, engine: Engine, fit: Fit) -> Findings:
    (memory,) = fit.cards
    held = memory.weight_bytes + memory.reserve.total_bytes + PROCESSES_BYTES
    needed = math.ceil((held + memory.cache_bytes) / 2**20)
    if needed > engine.memory_max_mib:
        yield Finding(
            f"{key}.memory_max_mib",
            engine.memory_max_mib,
            f"weights, cache and vLLM itself need {needed} MiB",
            "allow that much, or write a smaller cache_mib",
        )


def engine_keys(settings: HostSettings) -> Findings:
    """Keys that cannot be sent; expects that the secrets can be read."""
    for index, engine in enumerate(declared_engines(settings)):
        key = secrets.read(engine.api_key)
        if key and (wrong := completion.key_problem(key)):
            at = f"vllm.engines[{index}].api_key"
            yield Finding(at, engine.api_key, f"this secret {wrong}", NEW_SECRET)
