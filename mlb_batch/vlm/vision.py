"""Frames to visual tokens: the vision tower, the projector, and the pooling that a family puts behind it.

The tower's layers are run one by one up to the one whose features the projector takes; the rest would be thrown away.

Shapes: F frames, C channels, H x W pixels, P patches, V tower width, D hidden width, K tokens of a frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlb_batch.cost.shapes import ModelShape, VisionShape
from mlb_batch.vlm.moving import sent
from mlb_batch.vlm.preprocess import FrameRecipe

_IMAGES_AT_ONCE = 64  # bounds the tower's activations; larger batches gain nothing
_CPU_ACTIVATION_BYTES = 24 * 2**20  # glibc's malloc asks the kernel for anew, zeroed, whatever is over 32 MiB


@dataclass(frozen=True)
class Seen:
    """What the tower saw of a clip: its visual tokens, and one content vector a frame."""

    visual_FKD: Tensor
    feature_FV: Tensor


def normalise(pixels_FHWC: np.ndarray, recipe: FrameRecipe, device: torch.device, dtype: torch.dtype) -> Tensor:
    """uint8 pixels as the checkpoint's own processor would hand them on, F x C x H x W."""
    pixels = sent(torch.from_numpy(pixels_FHWC), device).permute(0, 3, 1, 2).float() * recipe.scale
    mean_C, std_C = sent(torch.tensor([recipe.mean, recipe.std]), device)
    return ((pixels - mean_C[:, None, None]) / std_C[:, None, None]).to(dtype)


def see(model: Any, shape: ModelShape, recipe: FrameRecipe, frames: Sequence[np.ndarray]) -> Seen:
    """Some frames after the other: while a GPU looks at some, the next ones are on their way."""
    at_once = images_at_once(shape.vision, model.device, model.dtype)
    batches = (np.stack(frames[i : i + at_once]) for i in range(0, len(frames), at_once))
    pixels = (normalise(batch_FHWC, recipe, model.device, model.dtype) for batch_FHWC in batches)
    parts = [_see_batch(model.model, shape, pixels_FCHW) for pixels_FCHW in pixels]
    return Seen(torch.cat([p.visual_FKD for p in parts]), torch.cat([p.feature_FV for p in parts]))


def images_at_once(tower: VisionShape, device: torch.device, dtype: torch.dtype) -> int:
    if device.type != "cpu":
        return _IMAGES_AT_ONCE
    widest = max(tower.ffn, tower.hidden)
    return max(1, min(_IMAGES_AT_ONCE, _CPU_ACTIVATION_BYTES // (tower.tokens * widest * dtype.itemsize)))


def _see_batch(model: Any, shape: ModelShape, pixels_FCHW: Tensor) -> Seen:
    features_FPV = tower_features(model.vision_tower, shape.vision, pixels_FCHW)
    visual_FPD = model.multi_modal_projector(features_FPV)
    visual_FKD = pooled(visual_FPD, shape.vision.side) if shape.pooled else visual_FPD
    return Seen(visual_FKD, features_FPV.float().mean(dim=1))


def tower_features(tower: Any, shape: VisionShape, pixels_FCHW: Tensor) -> Tensor:
    """Patch features of the layers that the projector takes, side by side; the class token is left out."""
    body = getattr(tower, "vision_model", tower)  # transformers before 5.20 wraps the tower once more
    hidden_FPV = body.embeddings(pixels_FCHW)
    if hasattr(body, "pre_layrnorm"):
        hidden_FPV = body.pre_layrnorm(hidden_FPV)
    taken: dict[int, Tensor] = {}
    for number, layer in enumerate(body.encoder.layers[: shape.layers], start=1):
        hidden_FPV = layer(hidden_FPV, attention_mask=None)
        if number in shape.taken:
            taken[number] = hidden_FPV
    return torch.cat([taken[number] for number in shape.taken], dim=-1)[:, int(shape.class_token) :]


def pooled(visual_FPD: Tensor, side: int) -> Tensor:
    """Bilinear 2 x 2 pooling of each frame's grid, as LLaVA-OneVision does it for video."""
    grid_FDHW = visual_FPD.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    half = math.ceil(side / 2)
    small_FDHW = torch.nn.functional.interpolate(grid_FDHW, size=[half, half], mode="bilinear")
    return small_FDHW.permute(0, 2, 3, 1).flatten(1, 2)
