"""Frames as the towers take them, read from the same constants as the checkpoints' processor files."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlb_batch.tiny.architectures import CLIP_MEAN, CLIP_STD


def model_pixels(pixels_HWC: NDArray[np.uint8]) -> Tensor:
    """SigLIP's way: uint8 (any leading axes) to -1 .. 1, channels first."""
    return torch.from_numpy(pixels_HWC).movedim(-1, -3).float() / 127.5 - 1


def clip_pixels(pixels_HWC: NDArray[np.uint8]) -> Tensor:
    """CLIP's way: scaled by its mean and deviation of each colour, channels first."""
    mean_C, std_C = torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)
    return ((torch.from_numpy(pixels_HWC).float() / 255 - mean_C) / std_C).movedim(-1, -3)
