"""Compute whether a model fits its cards, with vLLM's own arithmetic and before any change.

    model = load("/srv/models/qwen")
    fit = plan(model, [Card(total_mib=24576)] * 2, EngineSettings(tensor_parallel=2))
    fit.fits, fit.binds, fit.nearest

Read the modules in this order: `architecture` (what each layer keeps), `blocks` (how vLLM divides
memory into blocks), `weights`, `planner`. A model that cannot be planned raises `NotUnderstood`.
"""

from holdfast.fit.architecture import NotUnderstood
from holdfast.fit.planner import Card, EngineSettings, Fit, Model, load, plan
from holdfast.fit.report import table

__all__ = ["Card", "EngineSettings", "Fit", "Model", "NotUnderstood", "load", "plan", "table"]
