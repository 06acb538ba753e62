"""Engines: what they serve, on which cards, with which flags, and whether that fits."""

from __future__ import annotations

import math
import re

from pydantic import ValidationError

from holdfast import completion, registry, secrets
from holdfast.checks.finding import NEW_SECRET, Finding, Findings, nearest, no_file
from holdfast.checks.gpu import own_card
from holdfast.checks.storage import WHAT_FILES_DO, described
from holdfast.checks.tailnet import tailnet_scope
from holdfast.engines import vllm
from holdfast.engines.fit import FLAGS, fit_of
from holdfast.engines.vllm import lock_of
from holdfast.fit.architecture import NotUnderstood
from holdfast.fit.planner import Fit
from holdfast.refusal import MISSING, shown
from holdfast.settings import Engine, HostSettings, Vllm

PROCESSES_BYTES = 2200 * 2**20
"""What the three processes of an engine hold beside weights and cache on a CPU: 3.2 GB of them with
a cache of 1 GiB and a model of 1 MB (measured with 0.32)."""
USUAL_UTILISATION = 0.80
"""More leaves a card without room for a second context, a graph or a display (the mission)."""


def engines(settings: HostSettings) -> Findings:
    """Engines that could not start, or not beside each other."""
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
        # Whether it fits is known of an engine that makes sense.
        if not wrong:
            yield from _fit(key, engine, settings)


def _lock(wanted: Vllm) -> Findings:
    if wanted.lock is None:
        on_cpu = [engine.name for engine in wanted.engines if not engine.cards]
        if on_cpu:
            yield Finding(
                "vllm.lock",
                MISSING,
                f"{', '.join(on_cpu)} names no card, and the project's own lock is of CUDA's build",
                "name its cards, or write the lock of a CPU build",
            )
        return
    lock = wanted.lock
    wrong = no_file(lock)
    text = "" if wrong else lock_of(wanted).read_text("utf-8", "replace")
    # A build for another device has the same flags and keeps the same books.
    pinned = re.search(r"^vllm==([^\s+]+)", text, re.MULTILINE)
    if wrong:
        pass
    elif pinned is None or pinned[1] != vllm.VERSION:
        wrong = f"it does not pin vllm {vllm.VERSION}, of which flags and memory are known here"
    elif re.search(r"^\w(?!.*(--hash|\\$)).*$", text, re.MULTILINE):
        wrong = "a requirement in it has no hash"
    else:
        return
    yield Finding("vllm.lock", lock, wrong, "write what 'uv pip compile --generate-hashes' made")


def _name(key: str, engine: Engine) -> Findings:
    if engine.name.endswith(("-loopback", "-tailnet", "-watch")):
        yield Finding(
            f"{key}.name", engine.name, "another engine's door may be called so", "rename it"
        )


def _checkpoint(key: str, engine: Engine, settings: HostSettings) -> Findings:
    if registry.checkpoint_of(settings, engine) is None:
        names = {checkpoint.name for checkpoint in settings.storage.checkpoints}
        yield Finding(
            f"{key}.checkpoint",
            engine.checkpoint,
            "storage.checkpoints declares no such model",
            nearest(engine.checkpoint, names),
        )


def _cards(key: str, engine: Engine, settings: HostSettings) -> Findings:
    for place, name in enumerate(engine.cards):
        why = "a number may be another card after a reboot"
        yield from own_card(f"{key}.cards[{place}]", name, settings, why)


def _peers(key: str, engine: Engine) -> Findings:
    if engine.peer_access is not None and len(engine.cards) < 2:
        wrong = "it is between the cards of one engine, and this has fewer than two"
        yield Finding(f"{key}.peer_access", engine.peer_access, wrong, "remove it")


def _memory(key: str, engine: Engine) -> Findings:
    if engine.utilisation > USUAL_UTILISATION and engine.utilisation_reason is None:
        yield Finding(
            f"{key}.utilisation",
            engine.utilisation,
            f"more than {USUAL_UTILISATION:.2f} of a card needs a reason",
            "say it in utilisation_reason, or write less",
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
            "on cards the cache is what the utilisation leaves",
            "remove it",
        )


def _flags(key: str, engine: Engine) -> Findings:
    known = vllm.flags()
    for name, written in engine.flags.items():
        at, value = f"{key}.flags.{name}", shown(written, name)
        plain = name.removeprefix("no-")
        if plain in vllm.HELD:
            yield Finding(at, value, "this flag is not an inventory's to set", vllm.HELD[plain])
        elif name != plain and plain in known:
            yield Finding(
                at, value, "a flag is switched off by its value", f"write '{plain}' False"
            )
        elif name not in known:
            wrong = f"vLLM {vllm.VERSION} has no such flag"
            yield Finding(at, value, wrong, nearest(name, set(known) - set(vllm.HELD)))
        elif problem := vllm.flag_problem(name, written):
            yield Finding(at, value, problem, "write one that it takes")


_KEYS = {
    "max_model_len": "context_tokens",
    "max_num_seqs": "concurrent_requests",
    "max_num_batched_tokens": "flags max-num-batched-tokens",
    "kv_cache_mib": "cache_mib",
}
"""What an inventory calls the settings that the planner names after vLLM's."""


def _in_keys(sentence: str) -> str:
    found = re.sub(r"\w+", lambda word: _KEYS.get(word[0], word[0]), sentence)
    found = re.sub(r"tensor_parallel (\d+)", r"\1 cards", found)
    return found.replace("tensor_parallel", "the number of cards")


def _fit(key: str, engine: Engine, settings: HostSettings) -> Findings:
    checkpoint = registry.checkpoint_of(settings, engine)
    if checkpoint is None or isinstance(described(checkpoint), str):
        # The checkpoint's own finding says it.
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
        wrong = f"it decides what fits, and nothing can be counted with it: {said['msg']}"
        yield Finding(f"{key}.flags.{flag}", said["input"], wrong, "write a value that vLLM takes")
        return
    except WHAT_FILES_DO as error:
        yield Finding(
            f"{key}.checkpoint",
            engine.checkpoint,
            "its config.json says what no model can be"
            f" ({type(error).__name__}: {_in_keys(str(error))})",
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
            f"weights, cache and vLLM itself are {needed} MiB",
            "allow that much, or write a smaller cache_mib",
        )


def engine_keys(settings: HostSettings) -> Findings:
    """Keys that cannot be sent; expects that the secrets can be read."""
    for index, engine in enumerate(registry.engines(settings)):
        key = secrets.read(engine.api_key)
        if key and (wrong := completion.key_problem(key)):
            at = f"vllm.engines[{index}].api_key"
            yield Finding(at, engine.api_key, f"this secret {wrong}", NEW_SECRET)
