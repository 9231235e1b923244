"""Frames as the towers take them, read from the same constants as the checkpoints' processor files; and in half
precision, wherever the model is."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from mlb_batch.tiny.architectures import CLIP_MEAN, CLIP_STD

CPU = torch.device("cpu")


def half(model: PreTrainedModel) -> torch.autocast:
    return torch.autocast(model.device.type, torch.bfloat16)


def model_pixels(pixels_HWC: NDArray[np.uint8], device: torch.device = CPU) -> Tensor:
    """SigLIP's way: uint8 (any leading axes) to -1 .. 1, channels first."""
    return torch.from_numpy(pixels_HWC).to(device).movedim(-1, -3).float() / 127.5 - 1


def clip_pixels(pixels_HWC: NDArray[np.uint8], device: torch.device = CPU) -> Tensor:
    """CLIP's way: scaled by its mean and deviation of each colour, channels first."""
    mean_C, std_C = torch.tensor(CLIP_MEAN, device=device), torch.tensor(CLIP_STD, device=device)
    return ((torch.from_numpy(pixels_HWC).to(device).float() / 255 - mean_C) / std_C).movedim(-1, -3)
