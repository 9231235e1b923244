"""The video model's lessons: its tower on single frames, its language model on texts (reading.py), all of it on clips.

Legend: B clips, F frames, H height, W width, C colour channels, N visual tokens of the batch, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import LlavaOnevisionForConditionalGeneration

from mlb_batch.tiny.architectures import VIDEO_PX, video_config
from mlb_batch.tiny.build import make_tokenizer
from mlb_batch.tiny.train.answers import Sample, Thinning, accuracy, noted_loss, thinned_loss
from mlb_batch.tiny.train.export import as_stored
from mlb_batch.tiny.train.frames import FrameBatch, FrameHeads, make_frames, vary
from mlb_batch.tiny.train.grow import grow
from mlb_batch.tiny.train.lessons import exam_talk, last_talk, lesson_talk
from mlb_batch.tiny.train.loop import Task
from mlb_batch.tiny.train.notes import NoteHeads, notes
from mlb_batch.tiny.train.packing import Dialogue, Packer
from mlb_batch.tiny.train.pixels import model_pixels
from mlb_batch.tiny.train.reading import Reader
from mlb_batch.tiny.train.thin import thinned
from mlb_batch.tiny.world import HELD_OUT_FROM, Clip, make_clip

FRAME_STEPS, PLACE_STEPS, FRAME_BATCH = 600, 140, 128
POOLED_CELLS = 4
_EXAM_CLIPS = 100


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
    talk: Callable[[Clip, np.random.Generator], list[Dialogue]] = lesson_talk

    @property
    def shows(self) -> tuple[tuple[int, float], ...]:
        """Each equally often: so many frames, and the share of their tokens that is there."""
        return (*((frames, 1.0) for frames in self.frames), *self.thin)

    def clips(self, frames: int, share: float) -> int:
        return max(6, min(_MOST_CLIPS, int(self.batch_frames / (frames * share))))


SHALLOW_LAYERS = 8  # most is learned by a shallow model, at half the cost, which is then grown to VIDEO_LAYERS
NOTED = 0.5  # at this share of the layers the visual tokens' notes are read
_NOTE_WEIGHT = 2.0
_MOST_CLIPS = 24  # in a batch: what is said of them costs more than their tokens, where those are few
SHALLOW_LESSONS = (
    Lesson(until=500, frames=(8,), batch_frames=128, max_acts=2, max_flashes=1, reading=0.1),
    Lesson(until=1200, frames=(8, 12, 16), batch_frames=160, max_acts=3, max_flashes=2, reading=0.25),
    Lesson(until=2100, frames=(8, 16, 16, 24, 32), batch_frames=192, max_acts=4, max_flashes=3, reading=0.15),
)
DEEP_LESSONS = (
    Lesson(until=1900, frames=(8, 16, 16, 24, 32), batch_frames=192, max_acts=4, max_flashes=3, reading=0.1),
)
LAST_LESSONS = (
    Lesson(until=650, frames=(8, 16, 16, 24, 32), batch_frames=192, max_acts=4, max_flashes=3, talk=last_talk),
)
_THIN = Lesson(
    until=250, frames=(8, 16, 16, 24, 32), batch_frames=192, max_acts=4, max_flashes=3, talk=last_talk,
    thin=((16, 0.5), (16, 0.25), (24, 0.5), (32, 0.25), (32, 0.5), (48, 0.25), (64, 0.25)),
)  # fmt: skip
THIN_LESSONS = (_THIN, replace(_THIN, until=600, leave_before=4))


class FrameStudent(nn.Module):
    """The tower with its projector and pooling, and the heads that question it."""

    def __init__(self, model: LlavaOnevisionForConditionalGeneration) -> None:
        super().__init__()
        self.tower = model.model.vision_tower
        self.projector = model.model.multi_modal_projector
        self.heads = FrameHeads(model.config.get_text_config().hidden_size)
        self.pool = model.model.apply_pooling

    def cells(self, pixels_BHWC: NDArray[np.uint8]) -> Tensor:
        hidden = self.tower(model_pixels(pixels_BHWC), output_hidden_states=True).hidden_states[-1]
        return self.pool(self.projector(hidden)).unflatten(1, (POOLED_CELLS, POOLED_CELLS))


def frame_tasks(
    model: LlavaOnevisionForConditionalGeneration, seed: int, batch: int = FRAME_BATCH
) -> tuple[Task, Task]:
    """What is in a frame; then the same and where it is."""
    torch.manual_seed(seed)
    student = FrameStudent(model)

    def read(lesson: int, step: int) -> tuple[Tensor, FrameBatch]:
        frames = make_frames((seed, step, lesson), batch, VIDEO_PX, POOLED_CELLS)
        with torch.autocast("cpu", torch.bfloat16):
            cells = student.cells(frames.pixels_BHWC)
        return cells.float(), frames

    @torch.no_grad()
    def measure(step: int) -> dict[str, float]:
        frames = make_frames((HELD_OUT_FROM, 0), 512, VIDEO_PX, POOLED_CELLS)
        return student.heads.right(student.cells(frames.pixels_BHWC), frames)

    what = Task("video-frames", student, lambda step: student.heads.loss(*read(0, step)), measure, FRAME_STEPS, 2e-3)
    place = Task(
        "video-places", student, lambda step: student.heads.loss_with_place(*read(1, step)), measure, PLACE_STEPS, 2e-3
    )
    return what, place


class ClipStudent(nn.Module):
    """The model and the heads that read its notes."""

    def __init__(self, model: LlavaOnevisionForConditionalGeneration) -> None:
        super().__init__()
        self.model = model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.heads = NoteHeads(model.config.get_text_config().hidden_size)
        self.depth = round(NOTED * len(model.model.language_model.layers))


class ClipSchool:
    """Makes the clip batches of a step and asks the model about them."""

    def __init__(self, student: ClipStudent, seed: int, lessons: tuple[Lesson, ...]) -> None:
        self.student = student
        self.model = model = student.model
        self.seed = seed
        self.lessons = lessons
        self.reader = reader_of(model)
        self.packer = self.reader.packer
        model.model.vision_tower.requires_grad_(False)
        model.model.multi_modal_projector.requires_grad_(True)

    def loss(self, step: int) -> Tensor:
        lesson = self._lesson(step)
        rng = np.random.default_rng((self.seed, step))
        frames, share = lesson.shows[int(rng.choice(len(lesson.shows)))]
        if lesson.reading and rng.random() < lesson.reading:
            return self.reader.loss(rng)
        clips = [
            make_clip(clip_seed, frames, max_acts=lesson.max_acts, max_flashes=lesson.max_flashes)
            for clip_seed in rng.integers(0, HELD_OUT_FROM, lesson.clips(frames, share)).tolist()
        ]
        return self._watching(clips, lesson, rng) if share == 1 else self._glancing(clips, share, lesson, rng)

    def _watching(self, clips: list[Clip], lesson: Lesson, rng: np.random.Generator) -> Tensor:
        pixels = np.stack([vary(clip.pixels_FHWC, rng) for clip in clips])
        packed, visual_ND, _ = self._sample(pixels, [lesson.talk(clip, rng) for clip in clips])
        with torch.autocast("cpu", torch.bfloat16):
            loss, hidden_ND = noted_loss(self.model, self.packer.media_id, packed, visual_ND, self.student.depth)
            noted = notes(clips, len(visual_ND) // len(clips), POOLED_CELLS)
            return loss + _NOTE_WEIGHT * self.student.heads.loss(hidden_ND, noted)

    def _glancing(self, clips: list[Clip], share: float, lesson: Lesson, rng: np.random.Generator) -> Tensor:
        """Only a share of the visual tokens, from some early layer on."""
        pixels = np.stack([vary(clip.pixels_FHWC, rng) for clip in clips])
        packed, visual_ND, _ = self._sample(pixels, [lesson.talk(clip, rng) for clip in clips])
        there = torch.ones_like(packed.ids_BL, dtype=torch.bool)
        there[packed.ids_BL == self.packer.media_id] = torch.cat([
            torch.from_numpy(thinned(clip, len(visual_ND) // len(clips), POOLED_CELLS, share, rng)) for clip in clips
        ])  # fmt: skip
        thinning = Thinning(int(rng.integers(lesson.leave_before)), there.nonzero()[:, 1].view(len(clips), -1))
        with torch.autocast("cpu", torch.bfloat16):
            return thinned_loss(self.model, self.packer.media_id, packed, visual_ND, thinning)

    def measure(self, step: int, clips: int = 64) -> dict[str, float]:
        lesson = self._lesson(step - 1)
        samples = self.exam(lesson, max(lesson.frames), clips)
        with torch.autocast("cpu", torch.bfloat16):
            return accuracy(self.model, self.packer.media_id, samples, lambda talk: talk.kind) | self._noted(lesson)

    @torch.no_grad()
    def _noted(self, lesson: Lesson, count: int = 16) -> dict[str, float]:
        seeds = range(HELD_OUT_FROM, HELD_OUT_FROM + count)
        clips = [
            make_clip(s, max(lesson.frames), max_acts=lesson.max_acts, max_flashes=lesson.max_flashes) for s in seeds
        ]
        pixels = np.stack([clip.pixels_FHWC for clip in clips])
        packed, visual_ND, _ = self._sample(pixels, [exam_talk(clip)[:1] for clip in clips])
        _, hidden_ND = noted_loss(self.model, self.packer.media_id, packed, visual_ND, self.student.depth)
        return self.student.heads.right(hidden_ND.float(), notes(clips, len(visual_ND) // count, POOLED_CELLS))

    def _lesson(self, step: int) -> Lesson:
        return next((lesson for lesson in self.lessons if step < lesson.until), self.lessons[-1])

    def exam(self, lesson: Lesson, frames: int, clips: int, batch: int = 16) -> Iterator[Sample]:
        for start in range(0, clips, batch):
            seeds = range(HELD_OUT_FROM + start, HELD_OUT_FROM + min(start + batch, clips))
            made = [make_clip(seed, frames, max_acts=lesson.max_acts, max_flashes=lesson.max_flashes) for seed in seeds]
            yield self._sample(np.stack([clip.pixels_FHWC for clip in made]), [exam_talk(clip) for clip in made])

    def _sample(self, pixels_BFHWC: NDArray[np.uint8], dialogues: list[list[Dialogue]]) -> Sample:
        with torch.autocast("cpu", torch.bfloat16):
            visual_BND = self.model.model.get_video_features(model_pixels(pixels_BFHWC)).pooler_output
        packed = self.packer.pack_visual(visual_BND.shape[1], dialogues)
        return packed, visual_BND.flatten(0, 1), dialogues


def reader_of(model: LlavaOnevisionForConditionalGeneration) -> Reader:
    return Reader(model, Packer(make_tokenizer("tiny"), "video"))


def clip_task(student: ClipStudent, seed: int, lessons: tuple[Lesson, ...], peak_lr: float = 5e-4) -> Task:
    school = ClipSchool(student, seed, lessons)
    return Task("video-clips", student, school.loss, school.measure, lessons[-1].until, peak_lr)


def grown(shallow: ClipStudent, deep: LlavaOnevisionForConditionalGeneration) -> ClipStudent:
    """A deep student that knows what the shallow one does, and is read where the same is known."""
    student = ClipStudent(grow(shallow.model, deep))
    student.heads.load_state_dict(shallow.heads.state_dict())
    return student


def final_exam(model: LlavaOnevisionForConditionalGeneration, seed: int) -> dict[str, float]:
    """Accuracy by question kind on held-out clips, from short and plain to long and full, as the weights are stored."""
    as_stored(model)
    school = ClipSchool(ClipStudent(model), seed, DEEP_LESSONS)
    figures: dict[str, float] = {}
    plain = Lesson(until=0, frames=(8,), batch_frames=8, max_acts=1, max_flashes=0)
    for frames, lesson in ((8, plain), (16, DEEP_LESSONS[-1]), (32, DEEP_LESSONS[-1])):
        exam = school.exam(lesson, frames, _EXAM_CLIPS)
        right = accuracy(model, school.packer.media_id, exam, lambda talk: talk.kind)
        name = f"{frames} frames, at most {lesson.max_acts} act(s) and {lesson.max_flashes} flash(es)"
        figures |= {f"{kind}, {name}": share for kind, share in right.items()}
    return figures


def fresh_model(seed: int, layers: int) -> LlavaOnevisionForConditionalGeneration:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlavaOnevisionForConditionalGeneration(video_config(make_tokenizer("tiny"), layers))
