"""Routers: chains that contradict their profile."""

from __future__ import annotations

from holdfast import completion, secrets
from holdfast.checks.finding import NEW_SECRET, Finding, Findings, nearest
from holdfast.checks.tailnet import tailnet_scope
from holdfast.engines.servers import declared_engines
from holdfast.settings import SERVERS, CallerKey, Engine, HostSettings, Router

_TAKEN = ("floor", "queue")
"""A router's names for answers that are not from an engine."""


def routers(settings: HostSettings) -> Findings:
    """Routers whose chain is empty, wrong, or would answer with another model."""
    declared = {engine.name: engine for engine in declared_engines(settings)}
    for index, router in enumerate(settings.routers):
        key = f"routers[{index}]"
        if router.name.endswith(("-loopback", "-tailnet", "-drain")):
            yield Finding(
                f"{key}.name",
                router.name,
                "this ending is reserved for sockets of routers",
                "rename it",
            )
        unknown = [name for name in router.engines if name not in declared]
        for name in unknown:
            at = f"{key}.engines[{router.engines.index(name)}]"
            mend = nearest(name, set(declared))
            yield Finding(at, name, _undeclared(), mend)
        if not unknown:
            yield from _chain(key, router, [declared[name] for name in router.engines])
        if router.profile in ("private", "client"):
            yield from _sovereign(key, router)
        else:
            yield from _leads_to_clouds(key, router, settings)
        if router.profile == "client":
            yield from _client(key, router)
        elif router.profile == "cloud":
            yield from _cloud(key, router)
        elif not router.engines and not router.floor:
            mend = "name one, or write floor True"
            if router.profile == "personal":
                mend += '; a router with no local upstream is profile="cloud"'
            yield Finding(f"{key}.engines", [], "this router has no local upstream", mend)
        if router.floor and settings.floor is None:
            yield Finding(f"{key}.floor", True, "this host has no floor", "declare floor")
        yield from tailnet_scope(f"{key}.scope", router.scope, settings)


def _undeclared() -> str:
    lists = " and ".join(f"{name}.engines" for name in SERVERS)
    return f"{lists} declare{'s' if len(SERVERS) == 1 else ''} no such engine"


def _chain(key: str, router: Router, chain: list[Engine]) -> Findings:
    for place, engine in enumerate(chain):
        at = f"{key}.engines[{place}]"
        first = chain[0]
        if engine.name in _TAKEN:
            yield Finding(
                at, engine.name, "this name is reserved for other answers", "rename the engine"
            )
        if engine.task != first.task:
            yield Finding(
                at,
                engine.name,
                f"its task is '{engine.task}', and that of {first.name} is '{first.task}'",
                "give each task its own router",
            )
        elif engine.chat != first.chat:
            yield Finding(
                at,
                engine.name,
                f"only one of it and {first.name} answers chat requests",
                "give each its own router",
            )
        elif engine.checkpoint != first.checkpoint and router.profile != "client":
            # An engine answers 404 to the name of another checkpoint.
            yield Finding(
                at,
                engine.name,
                f"it serves {engine.checkpoint}, so it cannot answer requests for"
                f" {first.checkpoint}, which {first.name} serves",
                "name engines of one checkpoint, or give it its own router",
            )
    if router.clouds and chain and chain[0].task == "embed":
        yield Finding(
            f"{key}.clouds",
            router.clouds,
            f"clouds cannot do the task of {chain[0].name}",
            "remove it",
        )
    if router.floor and chain and chain[0].task == "embed":
        yield Finding(
            f"{key}.floor", True, f"the floor cannot do the task of {chain[0].name}", "remove it"
        )


def _client(key: str, router: Router) -> Findings:
    if len(router.engines) != 1:
        yield Finding(
            f"{key}.engines",
            router.engines,
            "a 'client' router must have exactly one engine",
            "name one",
        )
    if router.floor:
        yield Finding(
            f"{key}.floor",
            True,
            "a 'client' router must not fall back to another model",
            "remove it",
        )
    if router.queue is not None:
        yield Finding(
            f"{key}.queue",
            router.queue.model_dump(exclude_defaults=True),
            "a 'client' router returns an error at once when its engine is down",
            "remove it",
        )


def _sovereign(key: str, router: Router) -> Findings:
    if router.clouds:
        yield Finding(
            f"{key}.clouds",
            router.clouds,
            f"a '{router.profile}' router must not fall back to a cloud",
            "remove it, or write profile 'personal'",
        )
    if router.keys:
        yield Finding(
            f"{key}.keys",
            [each.name for each in router.keys],
            f"a '{router.profile}' router has one key for all callers",
            "write api_key, or profile 'personal'",
        )
    if router.api_key is None:
        yield Finding(
            f"{key}.api_key",
            None,
            f"a '{router.profile}' router needs a key",
            "name its secret",
        )


def clouds(settings: HostSettings) -> Findings:
    """URLs to which LiteLLM would append the wrong path."""
    for index, cloud in enumerate(settings.clouds.providers if settings.clouds else ()):
        if cloud.api == "anthropic" and cloud.base_url.endswith("/v1"):
            yield Finding(
                f"clouds.providers[{index}].base_url",
                cloud.base_url,
                "/v1/messages is appended to this URL already",
                "write it without /v1",
            )


def _leads_to_clouds(key: str, router: Router, settings: HostSettings) -> Findings:
    declared = {each.name for each in settings.clouds.providers} if settings.clouds else set()
    taken = {*_TAKEN, *(engine.name for engine in declared_engines(settings))}
    for place, name in enumerate(router.clouds):
        at = f"{key}.clouds[{place}]"
        if name not in declared:
            mend = nearest(name, declared)
            yield Finding(at, name, "clouds.providers declares no such cloud", mend)
        if name in taken:
            yield Finding(at, name, "this name is reserved for local answers", "rename the cloud")
    if router.api_key is not None:
        yield Finding(
            f"{key}.api_key",
            router.api_key,
            f"each caller of a '{router.profile}' router has its own key",
            "remove it, and give each person or agent an entry in keys",
        )
    if not router.keys:
        yield Finding(
            f"{key}.keys", [], "no caller could use this router", "give each person or agent one"
        )
    if router.queue is not None:
        yield Finding(
            f"{key}.queue",
            router.queue.model_dump(exclude_defaults=True),
            "the queue is for private work, which must not reach a cloud",
            "remove it, or write profile 'private'",
        )
    if router.clouds and router.keys and not any(each.clouds for each in router.keys):
        yield Finding(
            f"{key}.clouds",
            router.clouds,
            "none of its keys may use a cloud",
            "remove it, or name clouds in a key",
        )
    # One person may have one key for several routers.
    holders: dict[str, str] = {}
    for other in (each for router in settings.routers for each in router.keys):
        holders.setdefault(other.api_key, other.name)
    for place, each in enumerate(router.keys):
        at = f"{key}.keys[{place}]"
        holder = holders[each.api_key]
        if holder != each.name:
            yield Finding(
                f"{at}.api_key",
                each.api_key,
                f"{holder} has this secret, so a router could not distinguish them",
                "give it its own secret",
            )
        yield from _spender(at, router, each)


def _spender(key: str, router: Router, caller: CallerKey) -> Findings:
    for place, name in enumerate(caller.clouds):
        if name not in router.clouds:
            mend = nearest(name, set(router.clouds))
            yield Finding(f"{key}.clouds[{place}]", name, f"{router.name} has no such cloud", mend)
    if caller.clouds and caller.budget_usd is None:
        yield Finding(
            f"{key}.budget_usd",
            None,
            f"without it the spending of {caller.name} has no limit",
            "write it",
        )
    if caller.budget_usd is not None and not caller.clouds:
        yield Finding(
            f"{key}.budget_usd",
            caller.budget_usd,
            "this key may use no cloud, and local work costs nothing",
            "remove it, or name its clouds",
        )
    if router.profile == "cloud" and not caller.clouds:
        yield Finding(f"{key}.clouds", [], f"{caller.name} may use no cloud", "name its clouds")


def _cloud(key: str, router: Router) -> Findings:
    if not router.clouds:
        yield Finding(f"{key}.clouds", [], "a 'cloud' router needs a cloud", "name one")
    for name, value in (("engines", router.engines), ("floor", router.floor)):
        if value:
            yield Finding(
                f"{key}.{name}",
                value,
                "a 'cloud' router uses clouds only",
                "remove it, or write profile 'personal'",
            )


def router_keys(settings: HostSettings) -> Findings:
    """Keys that cannot be sent; expects that the secrets can be read."""
    for index, router in enumerate(settings.routers):
        sent = {f"keys[{place}].api_key": each.api_key for place, each in enumerate(router.keys)}
        if router.api_key:
            sent["api_key"] = router.api_key
        for at, name in sent.items():
            key = secrets.read(name)
            if key and (wrong := completion.key_problem(key)):
                yield Finding(f"routers[{index}].{at}", name, f"this secret {wrong}", NEW_SECRET)
