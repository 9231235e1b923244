"""The video model's lessons: its tower on single frames, its language model on texts (reading.py), all of it on clips.

Legend: B clips, F frames, H height, W width, C colour channels, N visual tokens of the batch, D hidden width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import LlavaOnevisionForConditionalGeneration

from mlb_batch.tiny.architectures import VIDEO_LAYERS, VIDEO_PX, video_config
from mlb_batch.tiny.build import make_tokenizer
from mlb_batch.tiny.train.ahead import Ahead
from mlb_batch.tiny.train.answers import Sample, accuracy, answer_loss, noted_loss
from mlb_batch.tiny.train.drawing import POOLED_CELLS, Drawing, Lesson, Reading, clip_tokens, lesson_of
from mlb_batch.tiny.train.export import as_stored
from mlb_batch.tiny.train.frames import FrameBatch, FrameHeads, make_frames
from mlb_batch.tiny.train.grow import grow
from mlb_batch.tiny.train.lessons import drilled_talk, even_talk, exam_talk, last_talk
from mlb_batch.tiny.train.loop import Task
from mlb_batch.tiny.train.notes import NoteHeads, notes
from mlb_batch.tiny.train.packing import Dialogue, Packer
from mlb_batch.tiny.train.pixels import half, model_pixels
from mlb_batch.tiny.train.reading import Reader
from mlb_batch.tiny.world import HELD_OUT_FROM, make_clip

FRAME_STEPS, PLACE_STEPS, FRAME_BATCH = 600, 140, 128
_EXAM_CLIPS = 100

SHALLOW_LAYERS = 8  # most is learned by a shallow model, at half the cost, which is then grown to VIDEO_LAYERS
NOTED = 0.5  # at this share of the layers the visual tokens' notes are read
_NOTE_WEIGHT = 2.0
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
LONG_LESSONS = (
    Lesson(
        until=900, frames=(8, 16, 16, 24, 32, 48), batch_frames=768, most_clips=64, max_acts=4, max_flashes=3,
        talk=last_talk, leave_before=8,
        thin=((16, 0.5), (16, 0.25), (16, 0.15), (24, 0.25), (32, 0.5), (32, 0.25), (32, 0.1), (64, 0.25), (64, 0.1)),
    ),
)  # fmt: skip
# Large models look at a clip in their lower half, and hardly at all further up; a lesson that lets tokens fade half way
# up, and notes that are read at a quarter of the layers, have this one do so too.
_EARLY = Lesson(
    until=1000, frames=(16, 32, 64, 64), batch_frames=384, most_clips=16, max_acts=4, max_flashes=3, talk=even_talk,
    leave_before=3, fade=(0.5, 0.25, 0.125),
    thin=((16, 0.5), (16, 0.25), (32, 0.5), (32, 0.25), (48, 0.25), (64, 0.5), (64, 0.25)),
)  # fmt: skip
EARLY_LESSONS = (_EARLY,)
AGAIN_LESSONS = (replace(_EARLY, until=1250, frames=(16, 16, 32, 48, 64), talk=drilled_talk),)


@dataclass(frozen=True)
class Stage:
    """Lessons that begin with the weights as they are stored."""

    name: str
    lessons: tuple[Lesson, ...]
    peak_lr: float
    noted: float = NOTED


STAGES_ON_A_PACKAGE = (
    Stage("video-thin", THIN_LESSONS, 3e-4),
    Stage("video-long", LONG_LESSONS, 5e-4),
    Stage("video-early", EARLY_LESSONS, 4e-4, noted=0.25),
    Stage("video-again", AGAIN_LESSONS, 4e-4, noted=0.25),
)


class FrameStudent(nn.Module):
    """The tower with its projector and pooling, and the heads that question it."""

    def __init__(self, model: LlavaOnevisionForConditionalGeneration) -> None:
        super().__init__()
        self.tower = model.model.vision_tower
        self.projector = model.model.multi_modal_projector
        self.heads = FrameHeads(model.config.get_text_config().hidden_size)
        self.pool = model.model.apply_pooling

    def cells(self, pixels_BHWC: NDArray[np.uint8]) -> Tensor:
        hidden = self.tower(model_pixels(pixels_BHWC, self.tower.device), output_hidden_states=True).hidden_states[-1]
        return self.pool(self.projector(hidden)).unflatten(1, (POOLED_CELLS, POOLED_CELLS))


def frame_tasks(
    model: LlavaOnevisionForConditionalGeneration, seed: int, batch: int = FRAME_BATCH
) -> tuple[Task, Task]:
    """What is in a frame; then the same and where it is."""
    torch.manual_seed(seed)
    student = FrameStudent(model).to(model.device)

    def read(lesson: int, step: int) -> tuple[Tensor, FrameBatch]:
        frames = make_frames((seed, step, lesson), batch, VIDEO_PX, POOLED_CELLS).to(model.device)
        with half(model):
            cells = student.cells(frames.pixels_BHWC)
        return cells.float(), frames

    @torch.no_grad()
    def measure(step: int) -> dict[str, float]:
        frames = make_frames((HELD_OUT_FROM, 0), 512, VIDEO_PX, POOLED_CELLS).to(model.device)
        return student.heads.right(student.cells(frames.pixels_BHWC), frames)

    what = Task("video-frames", student, lambda step: student.heads.loss(*read(0, step)), measure, FRAME_STEPS, 2e-3)
    place = Task(
        "video-places", student, lambda step: student.heads.loss_with_place(*read(1, step)), measure, PLACE_STEPS, 2e-3
    )
    return what, place


class ClipStudent(nn.Module):
    """The model and the heads that read its notes."""

    def __init__(self, model: LlavaOnevisionForConditionalGeneration, noted: float = NOTED) -> None:
        super().__init__()
        self.model = model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.heads = NoteHeads(model.config.get_text_config().hidden_size).to(model.device)
        self.depth = round(noted * len(model.model.language_model.layers))


class ClipSchool:
    """Shows the model the batch of a step and asks it."""

    def __init__(self, student: ClipStudent, seed: int, lessons: tuple[Lesson, ...], processes: int = 0) -> None:
        self.student = student
        self.model = model = student.model
        self.lessons = lessons
        self.batch = Ahead(partial(Drawing, seed, lessons), lessons[-1].until, processes)
        self.reader = reader_of(model)
        self.packer = self.reader.packer
        model.model.vision_tower.requires_grad_(False)
        model.model.multi_modal_projector.requires_grad_(True)

    def loss(self, step: int) -> Tensor:
        batch = self.batch(step)
        if isinstance(batch, Reading):
            return self.reader.loss(batch.rng)
        packed, visual_ND = batch.packed.to(self.model.device), self._seen(batch.pixels_BFHWC)
        with half(self.model):
            if not batch.notes:
                return answer_loss(self.model, self.packer.media_id, packed, visual_ND, batch.thinnings)
            loss, hidden_ND = noted_loss(self.model, self.packer.media_id, packed, visual_ND, self.student.depth)
            return loss + _NOTE_WEIGHT * self.student.heads.loss(hidden_ND, batch.notes)

    def measure(self, step: int, clips: int = 64) -> dict[str, float]:
        lesson = lesson_of(self.lessons, step - 1)
        samples = self.exam(lesson, max(lesson.frames), clips)
        with half(self.model):
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

    def exam(self, lesson: Lesson, frames: int, clips: int, batch: int = 16) -> Iterator[Sample]:
        for start in range(0, clips, batch):
            seeds = range(HELD_OUT_FROM + start, HELD_OUT_FROM + min(start + batch, clips))
            made = [make_clip(seed, frames, max_acts=lesson.max_acts, max_flashes=lesson.max_flashes) for seed in seeds]
            yield self._sample(np.stack([clip.pixels_FHWC for clip in made]), [exam_talk(clip) for clip in made])

    def _sample(self, pixels_BFHWC: NDArray[np.uint8], dialogues: list[list[Dialogue]]) -> Sample:
        packed = self.packer.pack_visual(clip_tokens(pixels_BFHWC.shape[1]), dialogues)
        return packed.to(self.model.device), self._seen(pixels_BFHWC), dialogues

    def _seen(self, pixels_BFHWC: NDArray[np.uint8]) -> Tensor:
        with half(self.model):
            visual_BND: Tensor = self.model.model.get_video_features(
                model_pixels(pixels_BFHWC, self.model.device)
            ).pooler_output
            if visual_BND.shape[1] < clip_tokens(pixels_BFHWC.shape[1]):  # transformers before 5.20 closes clips later
                closing_B1D = self.model.model.image_newline.expand(len(visual_BND), 1, -1)
                visual_BND = torch.cat((visual_BND, closing_B1D.to(visual_BND)), 1)
        return visual_BND.flatten(0, 1)


def reader_of(model: LlavaOnevisionForConditionalGeneration) -> Reader:
    return Reader(model, Packer(make_tokenizer("tiny"), "video"))


def clip_task(
    student: ClipStudent, seed: int, lessons: tuple[Lesson, ...], peak_lr: float = 5e-4, processes: int = 0
) -> Task:
    school = ClipSchool(student, seed, lessons, processes)
    return Task("video-clips", student, school.loss, school.measure, lessons[-1].until, peak_lr)


def grown(shallow: ClipStudent, deep: LlavaOnevisionForConditionalGeneration) -> ClipStudent:
    """A deep student that knows what the shallow one does, and is read where the same is known."""
    student = ClipStudent(grow(shallow.model, deep))
    student.heads.load_state_dict(shallow.heads.state_dict())
    return student


@torch.no_grad()
def final_exam(model: LlavaOnevisionForConditionalGeneration, seed: int) -> dict[str, float]:
    """Accuracy by question kind on held-out clips, from short and plain to long and full, as the weights are stored."""
    as_stored(model)
    school = ClipSchool(ClipStudent(model), seed, DEEP_LESSONS)
    figures: dict[str, float] = {}
    plain = Lesson(until=0, frames=(8,), batch_frames=8, max_acts=1, max_flashes=0)
    for frames, lesson in ((8, plain), (16, DEEP_LESSONS[-1]), (32, DEEP_LESSONS[-1])):
        exam = list(school.exam(lesson, frames, _EXAM_CLIPS))
        right = accuracy(model, school.packer.media_id, exam, lambda talk: talk.kind)
        name = f"{frames} frames, at most {lesson.max_acts} act(s) and {lesson.max_flashes} flash(es)"
        figures |= {f"{kind}, {name}": share for kind, share in right.items()}
        for seen_below in (VIDEO_LAYERS // 2, VIDEO_LAYERS * 3 // 4):
            right = accuracy(model, school.packer.media_id, exam, lambda talk: talk.kind, seen_below)
            figures[f"all, {name}, of which layers from {seen_below} on see nothing"] = right["all"]
    return figures


def fresh_model(seed: int, layers: int) -> LlavaOnevisionForConditionalGeneration:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlavaOnevisionForConditionalGeneration(video_config(make_tokenizer("tiny"), layers))
