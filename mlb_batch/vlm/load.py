"""Weights to a model on a device: transformers' own classes, safetensors only, no remote code."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText

from mlb_batch.errors import ModelError
from mlb_batch.vlm.attention import NAME
from mlb_batch.vlm.checkpoint import Checkpoint

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
    """auto: bfloat16 on a GPU; fp32 on a CPU, where half precision is slower and answers differ by batch."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in _DTYPES:
        raise ModelError(f"model.dtype: {dtype!r} is not one of auto, {', '.join(_DTYPES)}")
    return _DTYPES[dtype]


def load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Any:
    """The whole model, its language model with our attention, ready to infer."""
    _refuse_windows(checkpoint)
    model: Any = AutoModelForImageTextToText.from_pretrained(
        checkpoint.folder,
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        attn_implementation={"": "sdpa", "text_config": NAME, "vision_config": "sdpa"},
    )
    return fused(model.to(device).eval().requires_grad_(False))


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


def _refuse_windows(checkpoint: Checkpoint) -> None:
    """Asks transformers, not the file: a saved config leaves out what its class has by default (Mistral: a window)."""
    text: Any = AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True).get_text_config()
    window = getattr(text, "sliding_window", None)
    if window and window < checkpoint.shape.decoder.context:
        raise ModelError(
            f"{checkpoint.name}: its language model attends in a sliding window of {window}; "
            "packed prefill is exact for full attention only, use a checkpoint without a window"
        )
