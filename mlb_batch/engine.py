"""From a job and its plan to the model that answers: what the captioning actors load, and the frames that it wants."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlb_batch.errors import ModelError
from mlb_batch.planning import Plan, Setup, setup
from mlb_batch.spec import JobSpec
from mlb_batch.video import FrameSize, Sampling

if TYPE_CHECKING:
    from mlb_batch.vlm.captioner import Captioner


def frame_size(spec: JobSpec, priced: Plan) -> FrameSize:
    """How frames get to the model's input size, from its own processor config."""
    from mlb_batch.vlm.preprocess import frame_recipe

    recipe = frame_recipe(_as_planned(spec, priced).checkpoint)
    return FrameSize(recipe.resize, recipe.crop, recipe.resample)


def sampling(spec: JobSpec, priced: Plan) -> Sampling:
    """The plan may take fewer frames than the job asked for, where only that meets the budget."""
    return Sampling(priced.frames, spec.frames.strategy, spec.frames.fps)


def load_captioner(spec: JobSpec, priced: Plan) -> Captioner:
    """On the node where it is called: the weights come from that node's own copy."""
    from mlb_batch.vlm.captioner import Captioner, Settings

    means = _as_planned(spec, priced)
    settings = Settings(
        method=means.method,
        keep=priced.keep,
        content=priced.content,
        max_new_tokens=spec.generate.max_new_tokens,
        expected_new_tokens=priced.expected_new_tokens,
        temperature=spec.generate.temperature,
        seed=spec.generate.seed,
        device=spec.model.device,
        dtype=spec.model.dtype,
        feature_model=means.pair,
    )
    return Captioner(means.checkpoint, settings)


def _as_planned(spec: JobSpec, priced: Plan) -> Setup:
    """The job's model at the revision that was planned with: a branch of a hub may have moved since."""
    pinned = spec.model.model_copy(update={"revision": priced.revision})
    means = setup(spec.model_copy(update={"model": pinned}))
    if means.checkpoint.revision != priced.revision:
        raise ModelError(
            f"model.id: {spec.model.id} is {means.checkpoint.revision} on this node and {priced.revision} where the "
            "job was planned; give every node the same files"
        )
    return means
