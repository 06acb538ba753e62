"""Does a model fit the cards? vLLM's own arithmetic, done before anything is changed.

    model = load("/srv/models/qwen")
    fit = plan(model, [Card(total_mib=24576)] * 2, EngineSettings(tensor_parallel=2))
    fit.fits, fit.binds, fit.nearest

To be read in this order: `architecture` (what each layer keeps), `blocks` (how vLLM cuts memory
into blocks), `weights`, `planner`. What is not understood is refused with a sentence.
"""

from holdfast.fit.architecture import NotUnderstood
from holdfast.fit.planner import Card, EngineSettings, Fit, Model, load, plan
from holdfast.fit.report import table

__all__ = ["Card", "EngineSettings", "Fit", "Model", "NotUnderstood", "load", "plan", "table"]
