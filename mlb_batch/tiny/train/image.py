"""The image model's lessons: its tower on single frames, then the whole model on still scenes, single and tiled.

It never sees two frames of a clip: what it makes of a video is the training-free method's doing.

Legend: B scenes, K tiles of one (the whole scene first), H height, W width, C colours, N visual tokens, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaNextForConditionalGeneration, PreTrainedModel

from mlb_batch.tiny.architectures import IMAGE_PX, image_config
from mlb_batch.tiny.build import make_tokenizer
from mlb_batch.tiny.questions import Question
from mlb_batch.tiny.scenes import CAPTION_PROMPTS, CHECKING_PROMPT, TELLING_PROMPT, Scene, check, make_scene, tell
from mlb_batch.tiny.train.ahead import Ahead
from mlb_batch.tiny.train.answers import Sample, accuracy, answer_loss
from mlb_batch.tiny.train.drills import given_away, lettered, some
from mlb_batch.tiny.train.export import as_stored
from mlb_batch.tiny.train.frames import FrameHeads, make_frames, vary
from mlb_batch.tiny.train.loop import Task
from mlb_batch.tiny.train.packing import Dialogue, Packed, Packer
from mlb_batch.tiny.train.pixels import clip_pixels, half
from mlb_batch.tiny.world import HELD_OUT_FROM

FRAME_STEPS, FRAME_BATCH = 600, 96
SIDE, REACH = 12, 1.5  # tokens of a frame's side; a shape is about three of them wide, and each of those should know it
SHALLOW_LAYERS = 6  # each is then followed by one copy, as in the video model
SHALLOW_STEPS, DEEP_STEPS = 650, 60
LONG_STEPS, LONG_SCALE, _LONG_PEAK_LR = 1800, 3, 8e-4  # in batches so many times as large
DRILLS_FROM = 300  # when things are looked up
_SCENES_A_BATCH = {"single": 24, "tiled": 6}
_TOKENS = {"single": SIDE**2, "tiled": SIDE**2 + 2 * SIDE * (2 * SIDE + 1)}  # tiles in rows, each closed by a token
_TILED_SHARE = 0.3
_TELLINGS_A_SCENE, _QUESTIONS_A_SCENE, _GIVEN_AWAY_A_SCENE, _LETTERED_A_SCENE = 3, 6, 2, 2


class FrameStudent(nn.Module):
    """The tower with its projector, and the heads that question each of its tokens."""

    def __init__(self, model: LlavaNextForConditionalGeneration) -> None:
        super().__init__()
        self.tower = model.model.vision_tower
        self.projector = model.model.multi_modal_projector
        self.heads = FrameHeads(model.config.get_text_config().hidden_size)

    def cells(self, pixels_BHWC: NDArray[np.uint8]) -> Tensor:
        return _view(self.tower, self.projector, pixels_BHWC).unflatten(1, (SIDE, SIDE))


def _view(tower: PreTrainedModel, projector: nn.Module, pixels_BHWC: NDArray[np.uint8]) -> Tensor:
    """One view of 12 x 12 tokens, which is what a frame of a video gets."""
    pixels = clip_pixels(pixels_BHWC, tower.device)
    tokens_BND: Tensor = projector(tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:])
    return tokens_BND


def fresh_model(seed: int, layers: int) -> LlavaNextForConditionalGeneration:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlavaNextForConditionalGeneration(image_config(make_tokenizer("tiny-image"), layers))


def frame_task(model: LlavaNextForConditionalGeneration, seed: int, batch: int = FRAME_BATCH) -> Task:
    torch.manual_seed(seed)
    student = FrameStudent(model).to(model.device)

    def loss(step: int) -> Tensor:
        frames = make_frames((seed, 3, step), batch, IMAGE_PX, SIDE, reach=REACH).to(model.device)
        with half(model):
            cells = student.cells(frames.pixels_BHWC)
        return student.heads.loss_with_place(cells.float(), frames)

    @torch.no_grad()
    def measure(step: int) -> dict[str, float]:
        frames = make_frames((HELD_OUT_FROM, 0), 256, IMAGE_PX, SIDE, reach=REACH).to(model.device)
        return student.heads.right(student.cells(frames.pixels_BHWC), frames)

    return Task("image-frames", student, loss, measure, FRAME_STEPS, 2e-3)


@dataclass(frozen=True)
class SceneBatch:
    pixels_BHWC: NDArray[np.uint8]
    tiled: bool
    packed: Packed


class SceneDrawing:
    """The scenes of a step and what is asked of them, from its number and the seed."""

    def __init__(self, seed: int, drills_from: int, scale: int = 1) -> None:
        self.seed, self.drills_from, self.scale = seed, drills_from, scale
        self.packer = Packer(make_tokenizer("tiny-image"), "image")

    def __call__(self, step: int) -> SceneBatch:
        rng = np.random.default_rng((self.seed, step))
        form = "tiled" if rng.random() < _TILED_SHARE else "single"
        seeds = rng.integers(0, HELD_OUT_FROM, self.scale * _SCENES_A_BATCH[form]).tolist()
        scenes = scenes_of(seeds, form)
        pixels = np.stack([vary(scene.pixels_HWC, rng) for scene in scenes])
        talks = [lesson_talk(scene, rng, step >= self.drills_from) for scene in scenes]
        return SceneBatch(pixels, form == "tiled", self.packer.pack_visual(_TOKENS[form], talks))


def scenes_of(seeds: list[int] | range, form: str) -> list[Scene]:
    return [make_scene(seed, IMAGE_PX * (2 if form == "tiled" else 1)) for seed in seeds]


class SceneSchool:
    """Shows the model the batch of a step and asks it."""

    def __init__(self, model: LlavaNextForConditionalGeneration, batch: Callable[[int], SceneBatch]) -> None:
        self.model, self.batch = model, batch
        self.packer = Packer(make_tokenizer("tiny-image"), "image")
        model.model.vision_tower.requires_grad_(False)

    def loss(self, step: int) -> Tensor:
        batch = self.batch(step)
        visual_ND = self._seen(batch.pixels_BHWC, batch.tiled)
        with half(self.model):
            return answer_loss(self.model, self.packer.media_id, batch.packed.to(self.model.device), visual_ND)

    def measure(self, step: int, scenes: int = 48) -> dict[str, float]:
        figures: dict[str, float] = {}
        for form in _SCENES_A_BATCH:
            with half(self.model):
                exam = self._exam(form, scenes)
                right = accuracy(self.model, self.packer.media_id, exam, lambda talk: talk.kind)
            figures |= {f"{kind}, {form}": share for kind, share in right.items()}
        return figures

    def _exam(self, form: str, scenes: int) -> Iterator[Sample]:
        for start in range(0, scenes, 12):
            shown = scenes_of(range(HELD_OUT_FROM + start, HELD_OUT_FROM + min(start + 12, scenes)), form)
            dialogues = [exam_talk(scene) for scene in shown]
            packed = self.packer.pack_visual(_TOKENS[form], dialogues)
            visual_ND = self._seen(np.stack([scene.pixels_HWC for scene in shown]), form == "tiled")
            yield packed.to(self.model.device), visual_ND, dialogues

    def _seen(self, pixels_BHWC: NDArray[np.uint8], tiled: bool) -> Tensor:
        with half(self.model):
            visual_BND = self._tiled(pixels_BHWC) if tiled else self._single(pixels_BHWC)
        return visual_BND.flatten(0, 1)

    def _single(self, pixels_BHWC: NDArray[np.uint8]) -> Tensor:
        return _view(self.model.model.vision_tower, self.model.model.multi_modal_projector, pixels_BHWC)

    def _tiled(self, pixels_BHWC: NDArray[np.uint8]) -> Tensor:
        """The whole scene small, then its four quarters, joined by the model's own code."""
        tiles_BKCHW = tiles(clip_pixels(pixels_BHWC, self.model.device))
        sizes = torch.tensor([list(pixels_BHWC.shape[1:3])] * len(pixels_BHWC))
        return torch.stack(tuple(self.model.model.get_image_features(tiles_BKCHW, sizes).pooler_output))


def scene_task(
    model: LlavaNextForConditionalGeneration, seed: int, steps: int, drills_from: int = 0, scale: int = 1,
    peak_lr: float = 1.5e-3, processes: int = 0,
) -> Task:  # fmt: skip
    school = SceneSchool(model, Ahead(partial(SceneDrawing, seed, drills_from, scale), steps, processes))
    return Task("image-scenes", model, school.loss, school.measure, steps, peak_lr)


def long_task(model: LlavaNextForConditionalGeneration, seed: int, processes: int = 0) -> Task:
    return scene_task(model, seed, LONG_STEPS, scale=LONG_SCALE, peak_lr=_LONG_PEAK_LR, processes=processes)


def final_exam(model: LlavaNextForConditionalGeneration, seed: int) -> dict[str, float]:
    """Accuracy by question kind on 200 held-out scenes, single and tiled, as the weights are stored."""
    as_stored(model)
    return SceneSchool(model, SceneDrawing(seed, 0)).measure(0, scenes=200)


def tiles(pixels_BCHW: Tensor) -> Tensor:
    """The scene at half size, and its quarters in raster order."""
    small = functional.avg_pool2d(pixels_BCHW, 2)
    quarters = [half for row in pixels_BCHW.chunk(2, 2) for half in row.chunk(2, 3)]
    return torch.stack([small, *quarters], 1)


def exam_talk(scene: Scene) -> list[Dialogue]:
    """The caption and all that can be asked."""
    return [Dialogue(CAPTION_PROMPTS[0], scene.caption, "caption"), *map(_dialogue, scene.questions)]


def lesson_talk(scene: Scene, rng: np.random.Generator, drills: bool) -> list[Dialogue]:
    """A caption, tellings, some questions and some choices whose answer is given away; and drills.

    A question takes two steps: its word for a thing must be found in the question, then looked for in the image; and
    neither is learned while the other is missing. So the second is taught on its own: captions let a shape follow its
    colour at once, tellings every trait every other. The drills do the same for what comes after a look-up: from both
    traits to yes or no, and from an option to the letter before it.
    """
    choices = [question for question in scene.questions if question.choices]
    talks = [
        Dialogue(str(rng.choice(CAPTION_PROMPTS)), scene.caption, "caption"),
        *(Dialogue(TELLING_PROMPT, tell(scene.things, rng), "telling") for _ in range(_TELLINGS_A_SCENE)),
        *map(_dialogue, some(scene.questions, _QUESTIONS_A_SCENE, rng)),
        *map(given_away, some(choices, _GIVEN_AWAY_A_SCENE, rng)),
    ]
    if drills:
        talks.append(Dialogue(CHECKING_PROMPT, check(scene.things, rng), "checking"))
        talks.extend(lettered(question, rng) for question in some(choices, _LETTERED_A_SCENE, rng))
    return talks


def _dialogue(question: Question) -> Dialogue:
    return Dialogue(question.prompt, question.answer, question.kind)
