"""From a job and its plan to the model that answers: what the captioning actors load, and the frames that it wants."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlb_batch.cost.allocate import ContentRule
from mlb_batch.spec import JobSpec
from mlb_batch.storage import local_path
from mlb_batch.video import FrameSize, Sampling

if TYPE_CHECKING:
    from mlb_batch.chain.purse import Grants
    from mlb_batch.planning import Plan, Setup
    from mlb_batch.prune import Pruning
    from mlb_batch.vlm.captioner import Captioner


@dataclass(frozen=True)
class Engine:
    """A recipe that travels to the actors. But for the method it imports nothing heavy until something is asked."""

    spec: JobSpec
    revision: str
    frames: int
    size: FrameSize  # the model's input, by its own processor config
    keep: int
    content: ContentRule | None
    expected_new_tokens: int
    pair_revision: str | None  # None where no paired model looks
    method: Pruning  # itself: by its name, one that the job's own script added is known to no actor

    @staticmethod
    def of(spec: JobSpec, priced: Plan) -> Engine:
        from mlb_batch.planning.setup import method_of

        named = spec.model_copy(update={
            "model": spec.model.model_copy(update={"id": _anywhere(spec.model.id)}),
            "prune": spec.prune.model_copy(update={"feature_model": _anywhere(spec.prune.feature_model)}),
        })  # fmt: skip
        size = FrameSize(priced.frame_resize, priced.frame_crop, priced.frame_resample)
        return Engine(
            named, priced.revision, priced.frames, size, priced.keep, priced.content, priced.expected_new_tokens,
            priced.pair_revision, method_of(spec, paired=priced.pair_revision is not None),
        )  # fmt: skip

    @property
    def sampling(self) -> Sampling:
        """The plan may take fewer frames than the job asked for, where only that meets the budget."""
        return Sampling(self.frames, self.spec.frames.strategy, self.spec.frames.fps)

    @property
    def clip_bytes(self) -> int:
        """Of a clip's frames at the model's input size, on their way to it."""
        sides = self.size.crop or self.size.resize
        assert isinstance(sides, tuple), "a frame of no fixed size fits no vision tower"
        return self.frames * 3 * math.prod(sides)

    def load(self, gpus: float, grants: Grants | None = None) -> Captioner:
        """The weights come from the copy of the node that this is called on. `gpus`: those that the process was given;
        with none `auto` is the CPU, since Ray hides a node's GPUs only from who was given some of them.
        """
        from mlb_batch.vlm.captioner import Captioner, Settings

        means = self._setup()
        settings = Settings(
            method=self.method,
            keep=self.keep,
            content=self.content,
            grant=grants.keep if grants else None,
            max_new_tokens=self.spec.generate.max_new_tokens,
            expected_new_tokens=self.expected_new_tokens,
            temperature=self.spec.generate.temperature,
            seed=self.spec.generate.seed,
            device="cpu" if self.spec.model.device == "auto" and not gpus else self.spec.model.device,
            dtype=self.spec.model.dtype,
            device_share=gpus or 1.0,
            feature_model=means.pair,
            selections=self.spec.prune.selections,
        )
        return Captioner(means.checkpoint, settings)

    def _setup(self) -> Setup:
        from mlb_batch.planning.setup import pinned

        return pinned(self.spec, self.revision, self.pair_revision, self.method)


def _anywhere(id: str | None) -> str | None:
    """A local folder as every process finds it, whatever folder it was started in; any other name as it is."""
    path = local_path(id) if id and "://" not in id else None
    return str(path) if path is not None and path.is_dir() else id
