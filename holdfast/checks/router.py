"""Routers: chains that could not hold what their profile promises."""

from __future__ import annotations

from holdfast import completion, registry, secrets
from holdfast.checks.finding import NEW_SECRET, Finding, Findings, nearest
from holdfast.checks.tailnet import tailnet_scope
from holdfast.settings import CallerKey, Engine, HostSettings, Router

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
        if router.profile in ("private", "client"):
            yield from _sovereign(key, router)
        else:
            yield from _leads_to_clouds(key, router, settings)
        if router.profile == "client":
            yield from _client(key, router)
        elif router.profile == "cloud":
            yield from _cloud(key, router)
        elif not router.engines and not router.floor:
            mend = "name one, or say floor"
            if router.profile == "personal":
                mend += '; a router that has clouds alone is profile="cloud"'
            yield Finding(f"{key}.engines", [], "nothing here would answer", mend)
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
        elif engine.chat != first.chat:
            yield Finding(
                at,
                engine.name,
                f"of it and {first.name}, one answers chats and the other does not",
                "give each a router of its own",
            )
        elif engine.checkpoint != first.checkpoint and router.profile != "client":
            # Both answer to the checkpoint's name; of another's, an engine says 404.
            yield Finding(
                at,
                engine.name,
                f"it serves {engine.checkpoint}, and would not answer who asked {first.name} for"
                f" {first.checkpoint}",
                "name engines of one checkpoint, or give it a router of its own",
            )
    if router.clouds and chain and chain[0].task == "embed":
        yield Finding(
            f"{key}.clouds",
            router.clouds,
            f"no cloud can do what {chain[0].name} does",
            "remove it",
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
            "a client gets an error at once when its engine is away",
            "remove it",
        )


def _sovereign(key: str, router: Router) -> Findings:
    if router.clouds:
        yield Finding(
            f"{key}.clouds",
            router.clouds,
            f"{router.profile} work never falls back to a cloud",
            "remove it, or write profile 'personal'",
        )
    if router.keys:
        yield Finding(
            f"{key}.keys",
            [each.name for each in router.keys],
            f"a {router.profile} router has one key for all who call it",
            "write api_key, or profile 'personal'",
        )
    if router.api_key is None:
        yield Finding(
            f"{key}.api_key",
            None,
            "either no caller could use it, or every caller",
            "name its secret",
        )


def clouds(settings: HostSettings) -> Findings:
    """URLs to which LiteLLM would append the wrong path."""
    for index, cloud in enumerate(settings.clouds.providers if settings.clouds else ()):
        if cloud.api == "anthropic" and cloud.base_url.endswith("/v1"):
            yield Finding(
                f"clouds.providers[{index}].base_url",
                cloud.base_url,
                "/v1/messages is appended to this URL",
                "write it without /v1",
            )


def _leads_to_clouds(key: str, router: Router, settings: HostSettings) -> Findings:
    declared = {each.name for each in settings.clouds.providers} if settings.clouds else set()
    taken = {*_TAKEN, *(engine.name for engine in registry.engines(settings))}
    for place, name in enumerate(router.clouds):
        at = f"{key}.clouds[{place}]"
        if name not in declared:
            mend = nearest(name, declared)
            yield Finding(at, name, "clouds.providers declares no such cloud", mend)
        if name in taken:
            yield Finding(at, name, "local answers are called so", "rename the cloud")
    if router.api_key is not None:
        yield Finding(
            f"{key}.api_key",
            router.api_key,
            f"who calls a {router.profile} router has a key of their own",
            "remove it, and give each person or agent one of keys",
        )
    if not router.keys:
        yield Finding(f"{key}.keys", [], "no caller could use it", "give each person or agent one")
    if router.queue is not None:
        yield Finding(
            f"{key}.queue",
            router.queue.model_dump(exclude_defaults=True),
            "what waits is private work, and leads to no cloud",
            "remove it, or write profile 'private'",
        )
    if router.clouds and router.keys and not any(each.clouds for each in router.keys):
        yield Finding(
            f"{key}.clouds", router.clouds, "no key of it may use one", "remove it, or let one"
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
                f"{holder} has this secret, and a router could not tell them apart",
                "name a secret of its own",
            )
        yield from _spender(at, router, each)


def _spender(key: str, router: Router, caller: CallerKey) -> Findings:
    for place, name in enumerate(caller.clouds):
        if name not in router.clouds:
            mend = nearest(name, set(router.clouds))
            yield Finding(
                f"{key}.clouds[{place}]", name, f"{router.name} does not lead to it", mend
            )
    if caller.clouds and caller.budget_usd is None:
        yield Finding(
            f"{key}.budget_usd", None, f"nothing would limit what {caller.name} spends", "write it"
        )
    if caller.budget_usd is not None and not caller.clouds:
        yield Finding(
            f"{key}.budget_usd",
            caller.budget_usd,
            "local work costs nothing, and this key leads to no cloud",
            "remove it, or name its clouds",
        )
    if router.profile == "cloud" and not caller.clouds:
        yield Finding(f"{key}.clouds", [], f"{caller.name} could ask no cloud", "name its clouds")


def _cloud(key: str, router: Router) -> Findings:
    if not router.clouds:
        yield Finding(f"{key}.clouds", [], "no cloud would answer", "name one")
    for name, value in (("engines", router.engines), ("floor", router.floor)):
        if value:
            yield Finding(
                f"{key}.{name}",
                value,
                "a cloud router leads to clouds alone",
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
