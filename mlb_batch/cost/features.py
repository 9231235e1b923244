"""The paired text/vision model (SigLIP with both towers) that some methods look through, and what a look costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlb_batch.cost.flops import attend, linear, tower
from mlb_batch.cost.shapes import VisionShape
from mlb_batch.errors import ModelError

# What transformers takes where a saved config says nothing; a test holds these to it.
_VISION = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_channels=3, image_size=224,
               patch_size=16)  # fmt: skip
_TEXT = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, max_position_embeddings=64)


@dataclass(frozen=True)
class PairedShape:
    vision: VisionShape
    text_layers: int
    text_hidden: int
    text_ffn: int
    text_tokens: int  # every text is padded to these
    width: int  # of the space in which a text and an image are compared


def paired_shape(config: Mapping[str, Any]) -> PairedShape:
    """The shape that a SigLIP checkpoint's config.json describes."""
    if config.get("model_type") != "siglip":
        raise ModelError(
            f"model_type {config.get('model_type')!r} is no text/vision pair that is known here; "
            "name a SigLIP checkpoint with both towers as prune.feature_model, or null"
        )
    v = _VISION | (config.get("vision_config") or {})
    if v.get("vision_use_head") is False:
        raise ModelError(
            "its vision tower has no head (vision_use_head), so that no text can be held against an image; "
            "name a SigLIP checkpoint with both towers as prune.feature_model, or null"
        )
    t = _TEXT | (config.get("text_config") or {})
    vision = VisionShape(
        layers=v["num_hidden_layers"],
        hidden=v["hidden_size"],
        ffn=v["intermediate_size"],
        channels=v["num_channels"],
        patch_size=v["patch_size"],
        image_size=v["image_size"],
        class_token=False,
    )
    width = t.get("projection_size") or t["hidden_size"]
    return PairedShape(
        vision, t["num_hidden_layers"], t["hidden_size"], t["intermediate_size"], t["max_position_embeddings"], width
    )


def look_at_images(pair: PairedShape, images: int) -> int:
    """The tower, and the head that pools its patches by one learned query."""
    v = pair.vision
    pooled = 2 * linear(v.patches, v.hidden, v.hidden) + 2 * linear(1, v.hidden, v.hidden)
    pooled += attend(v.hidden, v.patches) + 2 * linear(1, v.hidden, v.ffn)
    return tower(v, images) + images * pooled


def look_at_texts(pair: PairedShape, texts: int) -> int:
    """The text tower (full attention over the padded text), and the projection of its last token."""
    n, d = pair.text_tokens, pair.text_hidden
    one = 4 * linear(n, d, d) + 2 * linear(n, d, pair.text_ffn) + attend(d, n * n)
    return texts * (pair.text_layers * one + linear(1, d, pair.width))


def look(pair: PairedShape, images: int, texts: int) -> int:
    """Each frame once, each prompt once, and the likeness of every prompt to every frame: what a clip pays for it."""
    return look_at_images(pair, images) + look_at_texts(pair, texts) + linear(images, pair.width, texts)
