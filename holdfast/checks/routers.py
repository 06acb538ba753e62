"""Routers: chains that could not hold what their profile promises."""

from __future__ import annotations

from holdfast import completion, registry, secrets
from holdfast.checks.finding import NEW_SECRET, Finding, Findings, nearest
from holdfast.checks.network import tailnet_scope
from holdfast.settings import Engine, HostSettings, Router

_TAKEN = ("floor", "queue")
"""What a router calls those of its answers that are not an engine's."""


def routers(settings: HostSettings) -> Findings:
    """Routers whose chain leads nowhere, elsewhere, or to what callers did not ask for."""
    declared = {engine.name: engine for engine in registry.engines(settings)}
    for index, router in enumerate(settings.routers):
        key = f"routers[{index}]"
        if router.name.endswith(("-loopback", "-tailnet", "-drain")):
            yield Finding(
                f"{key}.name", router.name, "another router's door may be called so", "rename it"
            )
        unknown = [name for name in router.engines if name not in declared]
        for name in unknown:
            at = f"{key}.engines[{router.engines.index(name)}]"
            mend = nearest(name, set(declared))
            yield Finding(at, name, "vllm.engines declares no such engine", mend)
        if not unknown:
            yield from _chain(key, router, [declared[name] for name in router.engines])
        if router.profile == "client":
            yield from _client(key, router)
        elif not router.engines and not router.floor:
            yield Finding(f"{key}.engines", [], "nobody would answer", "name one, or say floor")
        if router.floor and settings.floor is None:
            yield Finding(f"{key}.floor", True, "this host has no floor", "declare floor")
        yield from tailnet_scope(f"{key}.scope", router.scope, settings)


def _chain(key: str, router: Router, chain: list[Engine]) -> Findings:
    for place, engine in enumerate(chain):
        at = f"{key}.engines[{place}]"
        first = chain[0]
        if engine.name in _TAKEN:
            yield Finding(at, engine.name, "answers of others are called so", "rename the engine")
        if engine.task != first.task:
            yield Finding(
                at,
                engine.name,
                f"it does '{engine.task}', and {first.name} does '{first.task}'",
                "give each task a router of its own",
            )
        elif engine.checkpoint != first.checkpoint and router.profile == "private":
            # Both answer to the checkpoint's name; of another's, an engine says 404.
            yield Finding(
                at,
                engine.name,
                f"it serves {engine.checkpoint}, and would not answer who asked {first.name} for"
                f" {first.checkpoint}",
                "name engines of one checkpoint, or give it a router of its own",
            )
    if router.floor and chain and chain[0].task == "embed":
        yield Finding(
            f"{key}.floor", True, f"the floor cannot do what {chain[0].name} does", "remove it"
        )


def _client(key: str, router: Router) -> Findings:
    if len(router.engines) != 1:
        yield Finding(
            f"{key}.engines",
            router.engines,
            "a client is answered by one engine or not at all",
            "name one",
        )
    if router.floor:
        yield Finding(
            f"{key}.floor", True, "a client must not be answered by another model", "remove it"
        )
    if router.queue is not None:
        yield Finding(
            f"{key}.queue",
            router.queue.model_dump(exclude_defaults=True),
            "a client is told at once that its engine is away",
            "remove it",
        )


def router_keys(settings: HostSettings) -> Findings:
    """Keys that cannot be sent; expects that the secrets can be read."""
    for index, router in enumerate(settings.routers):
        key = secrets.read(router.api_key)
        if key and (wrong := completion.key_problem(key)):
            at = f"routers[{index}].api_key"
            yield Finding(at, router.api_key, f"this secret {wrong}", NEW_SECRET)
