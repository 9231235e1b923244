"""The paired text/vision model (SigLIP with both towers): frame features and text-to-frame similarity for AdaTP.

Shapes: F frames, H x W pixels, C channels, P prompts, E width of the shared space.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel, GemmaTokenizer

from mlb_batch.cost.shapes import PairedShape, paired_shape
from mlb_batch.vlm.checkpoint import Checkpoint
from mlb_batch.vlm.load import from_files, refuse_gaps
from mlb_batch.vlm.preprocess import FrameRecipe, paired_recipe
from mlb_batch.vlm.small_files import tokenizer_of
from mlb_batch.vlm.vision import images_at_once, normalise


@dataclass(frozen=True)
class Look:
    """What the pair saw: a feature a frame, and the similarity of each prompt to each frame."""

    feature_FE: Tensor
    similarity_PF: Tensor


class Paired:
    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        self.shape: PairedShape = paired_shape(checkpoint.config)
        self._recipe: FrameRecipe = paired_recipe(checkpoint)
        self._tokenizer = tokenizer_of(checkpoint)
        # SigLIP 2 learned lower case only, which its tokenizer leaves to its user; SigLIP's own sees to it itself.
        self._lowered = isinstance(self._tokenizer, GemmaTokenizer)
        model, told = from_files(AutoModel, checkpoint, dtype)
        refuse_gaps(checkpoint, told["missing_keys"])
        self._model = model.to(device).eval().requires_grad_(False)
        self._device, self._dtype = device, dtype

    def look(self, pixels_FHWC: np.ndarray, texts: list[str]) -> Look:
        at_once = images_at_once(self.shape.vision, self._device, self._dtype)
        parts = [pixels_FHWC[start : start + at_once] for start in range(0, len(pixels_FHWC), at_once)]
        frames_FE = torch.cat([self._features(part_FHWC) for part_FHWC in parts])
        written = [text.lower() for text in texts] if self._lowered else texts
        ids = self._tokenizer(
            written, padding="max_length", truncation=True, max_length=self.shape.text_tokens, return_tensors="pt"
        )
        texts_PE = _pooled(self._model.get_text_features(input_ids=ids["input_ids"].to(self._device)))
        unit_FE, unit_PE = (torch.nn.functional.normalize(x.float(), dim=-1) for x in (frames_FE, texts_PE))
        return Look(frames_FE.float(), unit_PE @ unit_FE.T)

    def _features(self, pixels_FHWC: np.ndarray) -> Tensor:
        pixels_FCHW = self._sized(normalise(pixels_FHWC, self._recipe, self._device, torch.float32))
        return _pooled(self._model.get_image_features(pixel_values=pixels_FCHW.to(self._dtype)))

    def _sized(self, pixels_FCHW: Tensor) -> Tensor:
        """Frames come at the video model's size; where the pair's own is another, they are resized on the device."""
        size = self._recipe.resize
        assert isinstance(size, tuple)
        if pixels_FCHW.shape[-2:] == size:
            return pixels_FCHW
        return torch.nn.functional.interpolate(pixels_FCHW, size=size, mode="bicubic", antialias=True)


def _pooled(out: object) -> Tensor:
    """The pooled features; newer transformers wrap them in an output object."""
    pooled = out if isinstance(out, Tensor) else out.pooler_output  # type: ignore[attr-defined]
    assert isinstance(pooled, Tensor)
    return pooled
