"""From a job and its plan to the model that answers: what the captioning actors load, and the frames that it wants."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlb_batch.planning import Plan
from mlb_batch.spec import JobSpec
from mlb_batch.video import FrameSize

if TYPE_CHECKING:
    from mlb_batch.vlm.captioner import Captioner


def frame_size(spec: JobSpec) -> FrameSize:
    """How frames get to the model's input size, from its own processor config."""
    from mlb_batch.vlm.checkpoint import resolve
    from mlb_batch.vlm.preprocess import frame_recipe

    recipe = frame_recipe(resolve(spec.model.id, spec.model.revision))
    return FrameSize(recipe.resize, recipe.crop, recipe.resample)


def load_captioner(spec: JobSpec, priced: Plan) -> Captioner:
    """On the node where it is called: the weights come from that node's own copy, at the plan's revision."""
    from mlb_batch import prune
    from mlb_batch.vlm.captioner import Captioner, Settings
    from mlb_batch.vlm.checkpoint import resolve

    settings = Settings(
        method=prune.make(spec.prune.method, spec.prune.options, spec.prune.select, spec.prune.compact_cache),
        keep=priced.keep,
        max_new_tokens=spec.generate.max_new_tokens,
        temperature=spec.generate.temperature,
        seed=spec.generate.seed,
        device=spec.model.device,
        dtype=spec.model.dtype,
        expected_new_tokens=priced.expected_new_tokens,
    )
    return Captioner(resolve(spec.model.id, spec.model.revision), settings)
