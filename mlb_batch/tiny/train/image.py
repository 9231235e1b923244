"""The image model's lessons: its tower on single frames, then the whole model on still scenes, single and tiled.

It never sees two frames of a clip: what it makes of a video is the training-free method's doing.

Legend: B scenes, K tiles of one (the whole scene first), H height, W width, C colours, N visual tokens, D hidden width.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaNextForConditionalGeneration

from mlb_batch.tiny.architectures import IMAGE_PX, image_config
from mlb_batch.tiny.build import make_tokenizer
from mlb_batch.tiny.scenes import CAPTION_PROMPTS, Scene, make_scene
from mlb_batch.tiny.train.answers import Sample, accuracy, answer_loss
from mlb_batch.tiny.train.export import as_stored
from mlb_batch.tiny.train.frames import FrameHeads, make_frames, vary
from mlb_batch.tiny.train.loop import Task
from mlb_batch.tiny.train.packing import Dialogue, Packer
from mlb_batch.tiny.train.pixels import clip_pixels
from mlb_batch.tiny.world import HELD_OUT_FROM

FRAME_STEPS, FRAME_BATCH, CELLS = 600, 96, 4
SHALLOW_LAYERS = 4
SHALLOW_STEPS, DEEP_STEPS = 600, 200
_SCENES_A_BATCH = {"single": 24, "tiled": 6}
_TILED_SHARE = 0.3


class FrameStudent(nn.Module):
    """The tower with its projector, pooled to a few cells, and the heads that question them."""

    def __init__(self, model: LlavaNextForConditionalGeneration) -> None:
        super().__init__()
        self.tower = model.model.vision_tower
        self.projector = model.model.multi_modal_projector
        self.heads = FrameHeads(model.config.get_text_config().hidden_size)

    def tokens(self, pixels_BHWC: NDArray[np.uint8]) -> Tensor:
        hidden = self.tower(clip_pixels(pixels_BHWC), output_hidden_states=True).hidden_states[-2]
        return self.projector(hidden[:, 1:])

    def cells(self, pixels_BHWC: NDArray[np.uint8]) -> Tensor:
        tokens_BND = self.tokens(pixels_BHWC)
        side = round(tokens_BND.shape[1] ** 0.5)
        grid_BDGG = functional.adaptive_avg_pool2d(tokens_BND.mT.unflatten(2, (side, side)), CELLS)
        return grid_BDGG.permute(0, 2, 3, 1)


def fresh_model(seed: int, layers: int) -> LlavaNextForConditionalGeneration:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlavaNextForConditionalGeneration(image_config(make_tokenizer("tiny-image"), layers))


def frame_task(model: LlavaNextForConditionalGeneration, seed: int, batch: int = FRAME_BATCH) -> Task:
    torch.manual_seed(seed)
    student = FrameStudent(model)

    def loss(step: int) -> Tensor:
        frames = make_frames((seed, 3, step), batch, IMAGE_PX, CELLS)
        with torch.autocast("cpu", torch.bfloat16):
            cells = student.cells(frames.pixels_BHWC)
        return student.heads.loss_with_place(cells.float(), frames)

    @torch.no_grad()
    def measure(step: int) -> dict[str, float]:
        frames = make_frames((HELD_OUT_FROM, 0), 256, IMAGE_PX, CELLS)
        return student.heads.right(student.cells(frames.pixels_BHWC), frames)

    return Task("image-frames", student, loss, measure, FRAME_STEPS, 2e-3)


class SceneSchool:
    """Makes the scene batches of a step and asks the model about them."""

    def __init__(self, model: LlavaNextForConditionalGeneration, seed: int) -> None:
        self.model = model
        self.seed = seed
        self.packer = Packer(make_tokenizer("tiny-image"), "image")
        for parameter in model.model.vision_tower.parameters():
            parameter.requires_grad_(False)

    def loss(self, step: int) -> Tensor:
        rng = np.random.default_rng((self.seed, step))
        form = "tiled" if rng.random() < _TILED_SHARE else "single"
        seeds = rng.integers(0, HELD_OUT_FROM, _SCENES_A_BATCH[form]).tolist()
        packed, visual_ND, _ = self._sample(seeds, form, rng)
        with torch.autocast("cpu", torch.bfloat16):
            return answer_loss(self.model, self.packer.media_id, packed, visual_ND)

    def measure(self, step: int, scenes: int = 48) -> dict[str, float]:
        figures: dict[str, float] = {}
        for form in _SCENES_A_BATCH:
            with torch.autocast("cpu", torch.bfloat16):
                exam = self._exam(form, scenes)
                right = accuracy(self.model, self.packer.media_id, exam, lambda talk: talk.kind)
            figures |= {f"{kind}, {form}": share for kind, share in right.items()}
        return figures

    def _exam(self, form: str, scenes: int) -> Iterator[Sample]:
        for start in range(0, scenes, 12):
            yield self._sample(range(HELD_OUT_FROM + start, HELD_OUT_FROM + min(start + 12, scenes)), form, None)

    def _sample(self, seeds: list[int] | range, form: str, rng: np.random.Generator | None) -> Sample:
        """With `rng`, varied pixels and some of the questions; without, the scene as it is and all that is asked."""
        scenes = [make_scene(seed, IMAGE_PX * (2 if form == "tiled" else 1)) for seed in seeds]
        pixels_BHWC = np.stack([vary(scene.pixels_HWC, rng) if rng else scene.pixels_HWC for scene in scenes])
        dialogues = [_talk(scene, rng) for scene in scenes]
        with torch.autocast("cpu", torch.bfloat16):
            visual_BND = self._tiled(pixels_BHWC) if form == "tiled" else self._single(pixels_BHWC)
        packed = self.packer.pack_visual(visual_BND.shape[1], dialogues)
        return packed, visual_BND.flatten(0, 1), dialogues

    def _single(self, pixels_BHWC: NDArray[np.uint8]) -> Tensor:
        """One view of 12 x 12 tokens, which is what a frame of a video gets."""
        hidden = self.model.model.vision_tower(clip_pixels(pixels_BHWC), output_hidden_states=True).hidden_states[-2]
        return self.model.model.multi_modal_projector(hidden[:, 1:])

    def _tiled(self, pixels_BHWC: NDArray[np.uint8]) -> Tensor:
        """The whole scene small, then its four quarters, joined by the model's own code."""
        tiles_BKCHW = tiles(clip_pixels(pixels_BHWC))
        sizes = torch.tensor([list(pixels_BHWC.shape[1:3])] * len(pixels_BHWC))
        return torch.stack(tuple(self.model.model.get_image_features(tiles_BKCHW, sizes).pooler_output))


def scene_task(model: LlavaNextForConditionalGeneration, seed: int, steps: int) -> Task:
    school = SceneSchool(model, seed)
    return Task("image-scenes", model, school.loss, school.measure, steps, 1.5e-3)


def final_exam(model: LlavaNextForConditionalGeneration, seed: int) -> dict[str, float]:
    """Accuracy by question kind on 200 held-out scenes, single and tiled, as the weights are stored."""
    as_stored(model)
    return SceneSchool(model, seed).measure(0, scenes=200)


def tiles(pixels_BCHW: Tensor) -> Tensor:
    """The scene at half size, and its quarters in raster order."""
    small = functional.avg_pool2d(pixels_BCHW, 2)
    quarters = [half for row in pixels_BCHW.chunk(2, 2) for half in row.chunk(2, 3)]
    return torch.stack([small, *quarters], 1)


def _talk(scene: Scene, rng: np.random.Generator | None) -> list[Dialogue]:
    picked = range(len(scene.questions))
    prompt = CAPTION_PROMPTS[0]
    if rng:
        picked = rng.choice(len(scene.questions), min(7, len(scene.questions)), replace=False).tolist()
        prompt = str(rng.choice(CAPTION_PROMPTS))
    asked = [scene.questions[index] for index in picked]
    return [
        Dialogue(prompt, scene.caption, "caption"),
        *(
            Dialogue(question.prompt, question.answer, "choice" if question.choices else question.kind)
            for question in asked
        ),
    ]
