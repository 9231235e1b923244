"""What a step of a clip lesson shows and asks: drawn from the lesson, the seed and the step's number, without a model.

Legend: B clips, F frames, H height, W width, C colour channels, K tokens of a row that stay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mlb_batch.tiny.build import make_tokenizer
from mlb_batch.tiny.train.answers import Thinning
from mlb_batch.tiny.train.frames import vary
from mlb_batch.tiny.train.lessons import lesson_talk
from mlb_batch.tiny.train.notes import Notes, notes
from mlb_batch.tiny.train.packing import Dialogue, Packed, Packer
from mlb_batch.tiny.train.thin import faded, thinned
from mlb_batch.tiny.world import HELD_OUT_FROM, Clip, make_clip

POOLED_CELLS = 4
_FADE_LAYERS = (4, 10)  # from the one on, up to the other
_MOST_CLIPS = 24  # in a batch: what is said of them costs more than their tokens, where those are few


@dataclass(frozen=True)
class Lesson:
    """Up to step `until`, clips of these kinds; every batch has clips of one length, fewer where they are longer."""

    until: int
    frames: tuple[int, ...]
    batch_frames: int
    max_acts: int
    max_flashes: int
    reading: float = 0.0  # this share of the steps stays with texts
    thin: tuple[tuple[int, float], ...] = ()  # and clips of so many frames, of whose tokens this share stays
    leave_before: int = 1  # the others leave before a layer under this one
    fade: tuple[float, ...] = ()  # half way up one of these shares of what stayed is left, by chance alone
    most_clips: int = _MOST_CLIPS
    talk: Callable[[Clip, np.random.Generator], list[Dialogue]] = lesson_talk

    @property
    def shows(self) -> tuple[tuple[int, float], ...]:
        """Each equally often: so many frames, and the share of their tokens that is there."""
        return (*((frames, 1.0) for frames in self.frames), *self.thin)

    def clips(self, frames: int, share: float) -> int:
        return max(6, min(self.most_clips, int(self.batch_frames / (frames * share))))


@dataclass(frozen=True)
class ClipBatch:
    """Clips that are looked at whole, with what their tokens should know; or at a share of their tokens."""

    pixels_BFHWC: NDArray[np.uint8]
    packed: Packed
    notes: Notes | None
    thinnings: tuple[Thinning, ...]


@dataclass(frozen=True)
class Reading:
    """A step that stays with texts, and what they are drawn by."""

    rng: np.random.Generator


class Drawing:
    def __init__(self, seed: int, lessons: tuple[Lesson, ...]) -> None:
        self.seed, self.lessons = seed, lessons
        self.packer = Packer(make_tokenizer("tiny"), "video")

    def __call__(self, step: int) -> ClipBatch | Reading:
        lesson = lesson_of(self.lessons, step)
        rng = np.random.default_rng((self.seed, step))
        frames, share = lesson.shows[int(rng.choice(len(lesson.shows)))]
        if lesson.reading and rng.random() < lesson.reading:
            return Reading(rng)
        clips = [
            make_clip(clip_seed, frames, max_acts=lesson.max_acts, max_flashes=lesson.max_flashes)
            for clip_seed in rng.integers(0, HELD_OUT_FROM, lesson.clips(frames, share)).tolist()
        ]
        tokens = clip_tokens(frames)
        pixels = np.stack([vary(clip.pixels_FHWC, rng) for clip in clips])
        packed = self.packer.pack_visual(tokens, [lesson.talk(clip, rng) for clip in clips])
        if share == 1:
            return ClipBatch(pixels, packed, notes(clips, tokens, POOLED_CELLS), ())
        thin = self._thin(packed, int(rng.integers(lesson.leave_before)), [
            thinned(clip, tokens, POOLED_CELLS, share, rng) for clip in clips
        ])  # fmt: skip
        if not lesson.fade:
            return ClipBatch(pixels, packed, None, (thin,))
        left = packed.only(thin.index_BK)
        fewer = int((left.ids_BL[0] == self.packer.media_id).sum())
        at, still = int(rng.integers(*_FADE_LAYERS)), float(rng.choice(lesson.fade))
        fade = self._thin(left, at, [faded(fewer, still, rng) for _ in clips])
        return ClipBatch(pixels, packed, None, (thin, fade))

    def _thin(self, packed: Packed, at: int, stay: list[NDArray[np.bool_]]) -> Thinning:
        """By which of each clip's visual tokens stay, as many of each."""
        there = torch.ones_like(packed.ids_BL, dtype=torch.bool)
        there[packed.ids_BL == self.packer.media_id] = torch.from_numpy(np.concatenate(stay))
        return Thinning(at, there.nonzero()[:, 1].view(len(stay), -1))


def lesson_of(lessons: tuple[Lesson, ...], step: int) -> Lesson:
    return next((lesson for lesson in lessons if step < lesson.until), lessons[-1])


def clip_tokens(frames: int) -> int:
    """Those of its frames, and the one that closes it."""
    return frames * POOLED_CELLS**2 + 1
