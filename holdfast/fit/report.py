"""The plan as tables for a terminal."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from holdfast.fit.planner import GIB, Fit
from holdfast.fit.weights import quantisation


def _gib(size_bytes: float) -> str:
    return f"{size_bytes / GIB:.2f}"


def table(fit: Fit) -> Group:
    """Memory of each card in GiB, the cache, the verdict, and the setting that limits it."""
    cards = Table(title=f"{fit.model.name} ({quantisation(fit.model.config)}), GiB on each card")
    cards.add_column("card")
    for name in (
        "usable",
        "budget",
        "weights",
        "activations",
        "graphs",
        "context",
        "margin",
        "cache",
    ):
        cards.add_column(name, justify="right")
    for each in fit.cards:
        held = each.reserve
        sizes = (
            each.card.usable_bytes,
            each.budget_bytes,
            each.weight_bytes,
            held.activation_bytes,
            held.graph_bytes,
            held.context_bytes,
            held.margin_bytes,
            each.cache_bytes,
        )
        cards.add_row(each.card.name, *map(_gib, sizes))
    has_cache = bool(fit.pool.groups)
    cache = Table(show_header=False, title="the cache")
    cache.add_column("what")
    cache.add_column("value", justify="right")
    rows = {
        "bytes of a token on a card": f"{fit.bytes_per_token:,}",
        "state of a sequence on a card, MiB": f"{fit.state_bytes / 2**20:.2f}",
        "block, tokens": f"{fit.pool.block_tokens:,}",
        "block, bytes on a card": f"{fit.pool.block_bytes:,}",
        "blocks": f"{fit.blocks:,}",
        "blocks of one request": f"{fit.pool.blocks_per_request(fit.context_tokens):,}",
        "requested context, tokens": f"{fit.context_tokens:,}",
        "longest context that fits, tokens": f"{fit.longest_tokens:,}",
        "requests of that context at once": f"{fit.concurrency:.2f}",
        "cache size as vLLM logs it, tokens": f"{fit.cache_tokens:,}",
    }
    for what, value in rows.items():
        cache.add_row(what, value)
    words = [f"{'fits' if fit.fits else 'does not fit'}; limit: {fit.binds}"]
    if not fit.fits:
        nearest = fit.nearest or ("nothing similar fits: take more cards, or a smaller model",)
        words += [f"would fit: {change}" for change in nearest]
    return Group(cards, *[cache] * has_cache, Text("\n".join(words)))
