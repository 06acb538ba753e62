"""Whether a declared engine fits its cards."""

from __future__ import annotations

from pathlib import Path

from holdfast.engines.servers import server_of
from holdfast.fit import planner
from holdfast.fit.planner import Card, Fit
from holdfast.gpu.cards import declared_cards
from holdfast.settings import Engine, HostSettings
from holdfast.storage import checkpoint_of


def cards_of(settings: HostSettings, engine: Engine) -> list[Card]:
    """The declared cards of ``engine``; on the CPU the memory it may take stands for one."""
    if not engine.cards:
        memory = engine.memory_max_mib
        return [Card(name="CPU", total_mib=memory, usable_mib=memory)]
    declared = declared_cards(settings)
    return [
        Card(name=name, total_mib=declared[name].vram_mib)
        for name in engine.cards
        if name in declared
    ]


def fit_of(settings: HostSettings, engine: Engine) -> Fit | None:
    """Whether ``engine`` fits its cards; None where its checkpoint or a card is not declared, or
    Holdfast does not know how much memory its server needs.

    Raises:
        NotUnderstood: the checkpoint's description cannot be planned with.
        pydantic.ValidationError: a flag that decides it has a value that is none.
    """
    memory = server_of(settings, engine).memory
    checkpoint, cards = checkpoint_of(settings, engine), cards_of(settings, engine)
    if memory is None or checkpoint is None or len(cards) != max(1, len(engine.cards)):
        return None
    model = planner.load(Path(checkpoint.description).expanduser())
    return planner.plan(model, cards, memory.settings(engine, cards))
