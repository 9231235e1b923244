"""One set of weights that the project and transformers both run: two trees of modules over the same tensors."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from mlb_batch.bench.options import Options
from mlb_batch.bench.shapes import Shape, asked, checkpoint
from mlb_batch.vlm.attention import NAME
from mlb_batch.vlm.checkpoint import Checkpoint
from mlb_batch.vlm.load import fused, pick_device, pick_dtype


@dataclass(frozen=True)
class Bed:
    shape: Shape
    checkpoint: Checkpoint
    model: Any  # as the engine runs it
    twin: Any  # as transformers does
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def made(cls, options: Options) -> Bed:
        device = pick_device(options.device)
        dtype = pick_dtype("auto", device)
        wanted = checkpoint(options.shape)
        model = random_model(wanted, device, dtype)
        twin = _twin(model)  # first: what follows changes modules
        return cls(asked(options), wanted, fused(model), twin, device, dtype)


def _twin(model: Any) -> Any:
    """The same weights as transformers would load them by itself, with its SDPA attention; nothing is doubled."""
    tensors = [*model.parameters(), *model.buffers()]
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    twin.set_attn_implementation("sdpa")
    return twin


def random_model(wanted: Checkpoint, device: torch.device, dtype: torch.dtype) -> Any:
    """Drawn on the device itself, in the dtype that it will run in."""
    config: Any = AutoConfig.from_pretrained(wanted.folder, local_files_only=True)
    attention = {"": "sdpa", "text_config": NAME, "vision_config": "sdpa"}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(0)
        model: Any = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=attention)
    model.generation_config.eos_token_id = None
    return model.to(device).eval().requires_grad_(False)


def saved_model(wanted: Checkpoint, device: torch.device, dtype: torch.dtype) -> Path:
    """The checkpoint's folder with random weights in it: a job loads it like any other."""
    random_model(wanted, device, dtype).save_pretrained(wanted.folder)
    return wanted.folder
