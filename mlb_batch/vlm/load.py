"""Weights to a model on a device: transformers' own classes, safetensors only, no remote code."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from mlb_batch.cost.calibration import usual_dtype
from mlb_batch.errors import ModelError
from mlb_batch.storage_errors import first_line
from mlb_batch.vlm.attention import NAME
from mlb_batch.vlm.checkpoint import Checkpoint
from mlb_batch.vlm.small_files import refuse_window

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"model.device: {device!r} is no device; use auto, cpu or cuda") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ModelError("model.device: no CUDA device is here; use auto or cpu")
    return chosen


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    if dtype != "auto" and dtype not in _DTYPES:
        raise ModelError(f"model.dtype: {dtype!r} is not one of auto, {', '.join(_DTYPES)}")
    return _DTYPES[usual_dtype(device.type) if dtype == "auto" else dtype]


def load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Any:
    """The whole model, its language model with our attention, ready to infer."""
    refuse_window(checkpoint)
    attention = {"": "sdpa", "text_config": NAME, "vision_config": "sdpa"}
    model, told = from_files(AutoModelForImageTextToText, checkpoint, dtype, attn_implementation=attention)
    layers = checkpoint.shape.vision.layers
    refuse_gaps(checkpoint, [name for name in told["missing_keys"] if not _never_runs(name, layers)])
    return fused(model.to(device).eval().requires_grad_(False))


def from_files(kind: Any, checkpoint: Checkpoint, dtype: torch.dtype, **how: Any) -> Any:
    """The model, made by transformers' class for its kind, and what that says of its weights."""
    try:
        return kind.from_pretrained(
            checkpoint.folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **how,
        )
    except (ImportError, OSError, ValueError, KeyError, RuntimeError) as error:
        said = f"transformers can't load it ({first_line(error)}); copy it again"
        raise ModelError(f"{checkpoint.name}: {said}") from error


def fused(model: Any) -> Any:
    """The language model's norms as torch's own, where half precision makes the difference small and a GPU makes it
    matter: one kernel that reads its input once, for six that write it out in fp32 on the way.
    """
    if model.device.type == "cuda" and model.dtype != torch.float32:
        fuse_norms(model.model.language_model)
    return model


def fuse_norms(language: nn.Module) -> None:
    for parent in list(language.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                setattr(parent, name, _fused(child))


def _fused(norm: Any) -> nn.RMSNorm:
    made = nn.RMSNorm(len(norm.weight), norm.variance_epsilon, elementwise_affine=False)
    made.weight = norm.weight
    return made.eval()


def refuse_gaps(checkpoint: Checkpoint, missing: Collection[str]) -> None:
    """transformers draws at random what the files don't hold, and says so in its log only."""
    if missing:
        raise ModelError(
            f"{checkpoint.name}: its files lack {len(missing)} of the model's weights, like {min(missing)}; "
            "copy the checkpoint again"
        )


def _never_runs(name: str, vision_layers: int) -> bool:
    """Behind the features of the tower that are taken, some checkpoints hold nothing."""
    _, tower, rest = name.partition("vision_tower.")
    layer = re.search(r"encoder\.layers\.(\d+)\.", rest)
    behind = layer is not None and int(layer[1]) >= vision_layers
    return bool(tower) and (behind or re.search(r"(^|\.)(head|post_layernorm)\.", rest) is not None)
