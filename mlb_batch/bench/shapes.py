"""The named shapes that are measured: real classes with random weights, made on the device; nothing is downloaded.

    tiny   the embedded video model's
    mid    LlavaOnevision classes, sized to fill a CPU: a 12-layer SigLIP of width 384 and a 16-layer Qwen2 of width 768
           (12 heads, 4 for keys and values); 32 frames of 196 tokens
    7b     LLaVA-OneVision-7B: SigLIP so400m/14 at 384 px, Qwen2-7B
    34b    LLaVA-1.6-34B: CLIP-L/14 at 336 px, Yi-34B; its context is made long enough for the unpruned run

The tokenizer is the embedded models' own: prompts are a few dozen tokens, and no token ends an answer, so that
everyone generates as much. Time does not depend on what the weights say.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaOnevisionConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

from mlb_batch.bench.options import Options
from mlb_batch.errors import SpecError
from mlb_batch.tiny.architectures import CLIP_MEAN, CLIP_STD, token_id, video_config
from mlb_batch.tiny.tokenizer import image_tokenizer, video_tokenizer
from mlb_batch.vlm.checkpoint import Checkpoint

_HALF = [0.5, 0.5, 0.5]
_ROOT = tempfile.TemporaryDirectory(prefix="mlb-batch-bench-")  # removed when the process ends


@dataclass(frozen=True)
class Shape:
    name: str
    config: Callable[[PreTrainedTokenizerFast], Any]
    video: bool  # a video model, else one of images that is used on frames
    frames: int
    new_tokens: int
    batches: tuple[int, ...]  # that a contender may choose from
    method: str = "adatp"
    ratio: float = 0.273


def _onevision(tokenizer: PreTrainedTokenizerFast, vision: dict[str, Any], text: dict[str, Any]) -> Any:
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(patch_size=14, vision_use_head=False, **vision),
        text_config=Qwen2Config(bos_token_id=None, eos_token_id=None, **text),
        image_token_index=token_id(tokenizer, "<image>"),
        video_token_index=token_id(tokenizer, "<video>"),
    )  # fmt: skip


def _mid(tokenizer: PreTrainedTokenizerFast) -> Any:
    vision: dict[str, Any] = dict(
        hidden_size=384, intermediate_size=1536, num_hidden_layers=12, num_attention_heads=6, image_size=384
    )
    text = dict(vocab_size=32_000, hidden_size=768, intermediate_size=4096, num_hidden_layers=16,
                num_attention_heads=12, num_key_value_heads=4, max_position_embeddings=32_768)  # fmt: skip
    return _onevision(tokenizer, vision, text)


def _7b(tokenizer: PreTrainedTokenizerFast) -> Any:
    vision = dict[str, Any](hidden_size=1152, intermediate_size=4304, num_hidden_layers=26, num_attention_heads=16,
                            image_size=384)  # fmt: skip
    text = dict(vocab_size=152_000, hidden_size=3584, intermediate_size=18_944, num_hidden_layers=28,
                num_attention_heads=28, num_key_value_heads=4, max_position_embeddings=32_768)  # fmt: skip
    return _onevision(tokenizer, vision, text)


def _34b(tokenizer: PreTrainedTokenizerFast) -> Any:
    vision = CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
                              image_size=336, patch_size=14, projection_dim=768)  # fmt: skip
    text = LlamaConfig(vocab_size=64_000, hidden_size=7168, intermediate_size=20_480, num_hidden_layers=60,
                       num_attention_heads=56, num_key_value_heads=8, max_position_embeddings=32_768,
                       bos_token_id=None, eos_token_id=None)  # fmt: skip
    return LlavaNextConfig(
        vision_config=vision, text_config=text, image_seq_length=576,
        image_token_index=token_id(tokenizer, "<image>"), image_grid_pinpoints=[[336, 672], [672, 336]],
    )  # fmt: skip


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tiny", video_config, True, frames=32, new_tokens=16, batches=(1, 2)),
        Shape("mid", _mid, True, frames=32, new_tokens=64, batches=(1, 2)),
        Shape("7b", _7b, True, frames=32, new_tokens=128, batches=(1, 2, 4, 8, 16, 32)),
        Shape("34b", _34b, False, frames=32, new_tokens=128, batches=(1, 2, 4), method="mlb"),
    )
}


def shape(name: str) -> Shape:
    if name not in SHAPES:
        raise SpecError(f"--shape: {name!r} is not one of {', '.join(SHAPES)}")
    return SHAPES[name]


def asked(options: Options) -> Shape:
    """The named shape, but for what else was said."""
    named = shape(options.shape)
    return replace(
        named,
        frames=options.frames or named.frames,
        new_tokens=options.new_tokens or named.new_tokens,
        batches=(options.batch,) if options.batch else named.batches,
        method=options.method or named.method,
        ratio=named.ratio if options.ratio is None else options.ratio,
    )


@cache
def checkpoint(name: str) -> Checkpoint:
    """The shape as a folder would say it, all but the weights."""
    wanted, folder = shape(name), Path(_ROOT.name) / name
    tokenizer = video_tokenizer() if wanted.video else image_tokenizer()
    config = wanted.config(tokenizer)
    config.save_pretrained(folder)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    pixels = _pixels(config.vision_config.image_size, wanted.video)
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    return Checkpoint(f"random {name}", folder, json.loads((folder / "config.json").read_text()), f"random-{name}")


def _pixels(px: int, video: bool) -> dict[str, Any]:
    size = {"height": px, "width": px}
    normal = (_HALF, _HALF) if video else (CLIP_MEAN, CLIP_STD)
    return {"size": size, "resample": 3, "rescale_factor": 1 / 255, "image_mean": normal[0], "image_std": normal[1]}
