"""From frames and prompts to what prefill takes: the schedule of each clip, its visual tokens, its features.

Shapes: F frames, H x W pixels, C colours, V tower width, K tokens of a frame, N visual tokens, P tokens of the prefix,
R of the trailer, S of a suffix, D hidden width.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlb_batch.cost import flops
from mlb_batch.cost.memory import Footprint, Line, footprint
from mlb_batch.cost.schedule import WHOLE, ClipShape, Schedule
from mlb_batch.cost.shapes import PairedShape
from mlb_batch.prune.scores import neighbour_cosine, spread
from mlb_batch.vlm.checkpoint import Checkpoint
from mlb_batch.vlm.decoder import Decoder
from mlb_batch.vlm.inputs import ClipInput
from mlb_batch.vlm.memory import room_bytes
from mlb_batch.vlm.meter import Meter
from mlb_batch.vlm.moving import sent
from mlb_batch.vlm.paired import Paired
from mlb_batch.vlm.preprocess import FrameRecipe, frame_recipe
from mlb_batch.vlm.values import Settings
from mlb_batch.vlm.vision import Seen, see


@dataclass(frozen=True)
class Source:
    """A clip whose prompts all tokenize; `key` is the id of its first ask."""

    key: str
    pixels_FHWC: np.ndarray
    texts: tuple[str, ...]
    suffixes: tuple[tuple[int, ...], ...]
    trace: bool = False


@dataclass(frozen=True)
class Preparer:
    model: Any
    decoder: Decoder
    recipe: FrameRecipe
    prefix: tuple[int, ...]
    settings: Settings
    paired: Paired | None

    @classmethod
    def of(cls, model: Any, checkpoint: Checkpoint, prefix: tuple[int, ...], settings: Settings) -> Preparer:
        """On a loaded model; the pair that the settings name is loaded beside it."""
        decoder = Decoder.of(model, checkpoint.shape)
        paired = Paired(settings.feature_model, decoder.device, decoder.dtype) if settings.feature_model else None
        return cls(model, decoder, frame_recipe(checkpoint), prefix, settings, paired)

    @property
    def pair_shape(self) -> PairedShape | None:
        return self.paired.shape if self.paired else None

    def inputs(self, sources: list[Source], meters: list[Meter]) -> list[ClipInput]:
        """All clips of a batch; their frames go through the tower together."""
        encoded = [self._frames(source) for source in sources]
        seen = self.see([source.pixels_FHWC[e] for source, e in zip(sources, encoded, strict=True)])
        for meter, frames in zip(meters, encoded, strict=True):
            meter.encode(len(frames))
        return [self._input(*each) for each in zip(sources, encoded, seen, meters, strict=True)]

    def see(self, clips: list[np.ndarray]) -> list[Seen]:
        frames, sizes = [frame_HWC for clip in clips for frame_HWC in clip], [len(clip) for clip in clips]
        seen = see(self.model, self.decoder.shape, self.recipe, frames)
        parts = zip(seen.visual_FKD.split(sizes), seen.feature_FV.split(sizes), strict=True)
        return [Seen(visual_FKD, feature_FV) for visual_FKD, feature_FV in parts]

    def clip_shape(self, source: Source) -> ClipShape:
        side, trailer = self.decoder.shape.side, self.decoder.shape.trailer
        suffixes = tuple(len(s) for s in source.suffixes)
        return ClipShape(len(source.pixels_FHWC), side, side, len(self.prefix), trailer, suffixes)

    def line(self, sources: Sequence[Source]) -> Line:
        """The clips before a device that has as much room as it has now; on a CPU all go in at once."""
        room = room_bytes(self.decoder.device)
        if room is None:
            return Line([Footprint(0, 0, 0)] * len(sources), 0)
        return Line([self.footprint(source) for source in sources], room)

    def footprint(self, source: Source) -> Footprint:
        """Before it is looked at: a keep by content may turn out to be any."""
        keep = self.settings.keep if self.settings.content is None else WHOLE
        return footprint(
            self.decoder.shape, self.clip_shape(source), self._schedule(source, keep), self.settings.max_new_tokens,
            self.decoder.dtype.itemsize,
        )  # fmt: skip

    def _schedule(self, source: Source, keep: int) -> Schedule:
        return self.settings.method.schedule(self.decoder.shape, self.clip_shape(source), keep)

    def _frames(self, source: Source) -> list[int]:
        """The frames that are encoded: all, where the clip's own keep depends on what they show."""
        shape = self.clip_shape(source)
        return spread(self._schedule(source, self.settings.keep).encoded(shape), shape.frames)

    def _input(self, source: Source, encoded: list[int], seen: Seen, meter: Meter) -> ClipInput:
        shape = self.clip_shape(source)
        assert self.settings.method.traits.fits(self.decoder.shape, shape), "a prompt without room is refused before"
        keep = self._keep(source, seen)
        schedule = self._schedule(source, keep)
        used = spread(schedule.frames, shape.frames)
        at = sent(torch.tensor([encoded.index(f) for f in used]), self.decoder.device)
        per_frame = shape.tokens_per_frame
        frame_N = sent(torch.tensor(used), self.decoder.device).repeat_interleave(per_frame)
        feature_FV, relevance = seen.feature_FV[at], None
        if schedule.features:
            feature_FV, relevance = self._look(source, used, meter)
        return ClipInput(
            shape=shape,
            schedule=schedule,
            keep=keep,
            prefix_PD=self.decoder.embed(self.prefix),
            visual_ND=seen.visual_FKD[at].flatten(0, 1),
            place_N=frame_N * per_frame + torch.arange(per_frame, device=self.decoder.device).repeat(len(used)),
            trailer_RD=self._trailer(),
            suffixes_SD=tuple(self.decoder.embed(s) for s in source.suffixes),
            feature_FV=feature_FV,
            relevance_F=relevance,
            seed=zlib.crc32(source.pixels_FHWC.tobytes()),
            trace=source.trace,
        )

    def _keep(self, source: Source, seen: Seen) -> int:
        """The job's keep; or the clip's own, where it may spend that much."""
        settings = self.settings
        if settings.content is None:
            return settings.keep
        assert settings.method.see_all, "a keep by content is priced with all frames encoded"
        wanted = settings.content.keep(redundancy(seen.feature_FV))
        return settings.grant(source.key, self.clip_shape(source), wanted) if settings.grant else wanted

    def _look(self, source: Source, used: list[int], meter: Meter) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The paired model's view of the same frames and of the prompts."""
        assert self.paired, "the schedule asks for a paired model"
        look = self.paired.look(source.pixels_FHWC[used], list(source.texts))
        meter.features(flops.look(self.paired.shape, len(used), len(source.texts)))
        return look.feature_FE, tuple(look.similarity_PF)

    def _trailer(self) -> Tensor:
        """LLaVA-OneVision closes a video with its newline embedding."""
        if not self.decoder.shape.trailer:
            return self.decoder.embed(())
        newline_D: Tensor = self.model.model.image_newline
        return newline_D[None]


def redundancy(feature_FV: Tensor) -> float:
    """How much a clip repeats itself: the mean cosine of neighbouring frames; one frame repeats nothing. Features that
    are no numbers end as an error, for which the least is spent.
    """
    if len(feature_FV) == 1:
        return 0.0
    return float(neighbour_cosine(feature_FV).mean().nan_to_num(1.0).clamp(0, 1))
