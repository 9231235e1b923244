"""The shape of a model, or of a text/vision pair, read from its config.json alone: all that a price depends on.

A saved config leaves out what equals its class's default, so the defaults of the supported architectures stand here
too; a test holds them to what transformers itself resolves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlb_batch.errors import ModelError

Config = Mapping[str, Any]

_TEXT_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
                  vocab_size=32000, max_position_embeddings=2048),
    "mistral": dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
                    num_key_value_heads=8, vocab_size=32000, max_position_embeddings=131072),
    "qwen2": dict(hidden_size=4096, intermediate_size=22016, num_hidden_layers=32, num_attention_heads=32,
                  num_key_value_heads=32, vocab_size=151936, max_position_embeddings=32768),
}  # fmt: skip
_VISION_DEFAULTS: dict[str, dict[str, Any]] = {
    "clip_vision_model": dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
                              num_channels=3, image_size=224, patch_size=32),
    "siglip_vision_model": dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                                num_attention_heads=12, num_channels=3, image_size=224, patch_size=16),
}  # fmt: skip
# What a family falls back to when its config names no tower or decoder at all.
_CLIP_L = dict(model_type="clip_vision_model", hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
               num_attention_heads=16, image_size=336, patch_size=14)  # fmt: skip
_SO400M = dict(model_type="siglip_vision_model", hidden_size=1152, intermediate_size=4304, num_hidden_layers=26,
               num_attention_heads=14, image_size=384, patch_size=14)  # fmt: skip
# The text tower of a pair; its vision tower is a siglip_vision_model.
_PAIR_TEXT = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, max_position_embeddings=64)
_ROPES = ("default", "linear", "dynamic", "yarn", "llama3")
_FAMILIES: dict[str, dict[str, Any]] = {
    "llava": dict(text="llama", vision=_CLIP_L, layer=-2, strategy="default", pooled=False, trailer=0),
    "llava_next": dict(text="llama", vision=_CLIP_L, layer=-2, strategy="default", pooled=False, trailer=0),
    "llava_onevision": dict(text="qwen2", vision=_SO400M, layer=-1, strategy="full", pooled=True, trailer=1),
}


@dataclass(frozen=True)
class DecoderShape:
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int

    @property
    def q_dim(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        return self.kv_heads * self.head_dim


@dataclass(frozen=True)
class VisionShape:
    taken: tuple[int, ...]  # behind which layers the features are taken, in this order
    hidden: int
    ffn: int
    channels: int
    patch_size: int
    image_size: int  # pixels along one edge
    class_token: bool

    @property
    def layers(self) -> int:
        """Those that run, up to the last one whose features are taken."""
        return max(self.taken)

    @property
    def side(self) -> int:
        """Patches along one edge."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        return self.side**2

    @property
    def tokens(self) -> int:
        return self.patches + self.class_token


@dataclass(frozen=True)
class ModelShape:
    family: str
    decoder: DecoderShape
    vision: VisionShape
    projector_in: int  # width of the features that enter the projector
    pooled: bool  # 2 x 2 bilinear pooling behind the projector
    trailer: int  # tokens that close the visual sequence (a newline) and are never pruned

    @property
    def side(self) -> int:
        """Rows, and columns, of visual tokens of one frame."""
        return math.ceil(self.vision.side / 2) if self.pooled else self.vision.side

    @property
    def tokens_per_frame(self) -> int:
        return self.side**2


@dataclass(frozen=True)
class PairedShape:
    """SigLIP with both towers: through it some methods look at frames and prompts."""

    vision: VisionShape
    text_layers: int
    text_hidden: int
    text_ffn: int
    text_tokens: int  # every text is padded to these
    width: int  # of the space in which a text and an image are compared


def model_shape(config: Config) -> ModelShape:
    """The shape that a checkpoint's config.json describes."""
    family = str(config.get("model_type"))
    if family.startswith("llava") and "hidden_size" in config and "text_config" not in config:
        raise ModelError(
            "this is LLaVA's own form of a checkpoint; name its conversion for transformers (llava-hf/... on the hub)"
        )
    if family not in _FAMILIES:
        raise ModelError(f"model_type {family!r} has no known architecture here; supported: {', '.join(_FAMILIES)}")
    known = _FAMILIES[family]
    text = {"model_type": known["text"], **_part(config, "text_config")}
    vision = _part(config, "vision_config") or known["vision"]
    _refuse_quantised(config, text)
    layer = config.get("vision_feature_layer", known["layer"])
    feature_layers = [layer] if isinstance(layer, int) else layer
    if not (isinstance(feature_layers, list) and feature_layers and all(isinstance(i, int) for i in feature_layers)):
        raise ModelError(
            f"vision_feature_layer {layer!r} is neither a layer nor a list of layers; copy the checkpoint again"
        )
    vision_shape = _vision_shape(vision, feature_layers)
    _check_strategy(config.get("vision_feature_select_strategy", known["strategy"]), vision_shape)
    return ModelShape(
        family=family,
        decoder=_decoder_shape(text),
        vision=vision_shape,
        projector_in=vision_shape.hidden * len(vision_shape.taken),
        pooled=known["pooled"],
        trailer=known["trailer"],
    )


def paired_shape(config: Config) -> PairedShape:
    """The shape that a SigLIP checkpoint's config.json describes."""
    if config.get("model_type") != "siglip":
        raise ModelError(
            f"model_type {config.get('model_type')!r} is no text/vision pair that is known here; "
            "name a SigLIP checkpoint with both towers as prune.feature_model, or null"
        )
    vision, text = _part(config, "vision_config"), _part(config, "text_config")
    if vision.get("vision_use_head") is False:
        raise ModelError(
            "its vision tower has no head (vision_use_head), so that no text can be held against an image; "
            "name a SigLIP checkpoint with both towers as prune.feature_model, or null"
        )
    _refuse_quantised(config, vision, text)
    t = _PAIR_TEXT | {k: v for k, v in text.items() if v is not None}
    hidden = _count(t, "hidden_size")
    return PairedShape(
        vision=_vision_shape({**vision, "model_type": "siglip_vision_model"}, [-1]),
        text_layers=_count(t, "num_hidden_layers"),
        text_hidden=hidden,
        text_ffn=_count(t, "intermediate_size"),
        text_tokens=_count(t, "max_position_embeddings"),
        width=_count({"projection_size": hidden} | t, "projection_size"),
    )


def _part(config: Config, name: str) -> Config:
    part = config.get(name) or {}
    if not isinstance(part, Mapping):
        raise ModelError(f"config.json: {name} is {part!r}, and must be an object; copy the checkpoint again")
    return part


def _count(config: Config, name: str) -> int:
    value = config[name]
    if not isinstance(value, int) or value < 1:
        raise ModelError(f"config.json: {name} is {value!r}, and must be a whole number; copy the checkpoint again")
    return value


def _refuse_quantised(*configs: Config) -> None:
    if any(config.get("quantization_config") for config in configs):
        raise ModelError(
            "its weights are quantised, which is not supported; use the checkpoint that they were made from"
        )


def _decoder_shape(text: Config) -> DecoderShape:
    kind = text["model_type"]
    if kind not in _TEXT_DEFAULTS:
        raise ModelError(f"text model {kind!r} is not supported; supported: {', '.join(_TEXT_DEFAULTS)}")
    _check_rope(text)
    c = _TEXT_DEFAULTS[kind] | {k: v for k, v in text.items() if v is not None}
    hidden, heads = _count(c, "hidden_size"), _count(c, "num_attention_heads")
    # Left out, these are the class's own default; a null that is written down means as many as heads.
    kv_heads = (_TEXT_DEFAULTS[kind] | dict(text)).get("num_key_value_heads") or heads
    return DecoderShape(
        layers=_count(c, "num_hidden_layers"),
        hidden=hidden,
        ffn=_count(c, "intermediate_size"),
        heads=heads,
        kv_heads=_count({"num_key_value_heads": kv_heads}, "num_key_value_heads"),
        head_dim=_count({"head_dim": hidden // heads} | c, "head_dim"),
        vocab=_count(c, "vocab_size"),
        context=_context(_count(c, "max_position_embeddings"), _rope(text)),
    )


def _check_rope(text: Config) -> None:
    """LongRoPE has two sets of frequencies and goes by a sequence's length; here all positions are by one set."""
    kind = _rope_type(_rope(text))
    if kind not in _ROPES:
        raise ModelError(f"rope_type {kind!r} is not supported; use a checkpoint with one of {', '.join(_ROPES)}")


def _rope(text: Config) -> Config:
    return _part(text, "rope_parameters") or _part(text, "rope_scaling")


def _rope_type(rope: Config) -> str:
    return str(rope.get("rope_type") or rope.get("type") or "default")


def _context(positions: int, rope: Config) -> int:
    """Some configs give what their scaling of RoPE reaches, others what it begins with (`dynamic` is no fixed one)."""
    if _rope_type(rope) not in ("linear", "yarn"):
        return positions
    begins_with, factor = rope.get("original_max_position_embeddings") or positions, rope.get("factor", 1.0)
    if not (isinstance(begins_with, int) and isinstance(factor, int | float)):
        raise ModelError(f"config.json: its RoPE is scaled by no number ({dict(rope)}); copy the checkpoint again")
    return max(positions, int(begins_with * factor))


def _vision_shape(vision: Config, feature_layers: list[int]) -> VisionShape:
    kind = vision.get("model_type", "clip_vision_model")
    if kind not in _VISION_DEFAULTS:
        raise ModelError(f"vision tower {kind!r} is not supported; supported: {', '.join(_VISION_DEFAULTS)}")
    c = _VISION_DEFAULTS[kind] | {k: v for k, v in vision.items() if v is not None}
    total = _count(c, "num_hidden_layers")
    # hidden_states holds the embeddings first: index i is what i layers give, and -1 what all of them do.
    taken = tuple(i if i >= 0 else total + 1 + i for i in feature_layers)
    if not all(0 < i <= total for i in taken):
        raise ModelError(f"vision_feature_layer {feature_layers} does not lie in a tower of {total} layers")
    return VisionShape(
        taken=taken,
        hidden=_count(c, "hidden_size"),
        ffn=_count(c, "intermediate_size"),
        channels=_count(c, "num_channels"),
        patch_size=_count(c, "patch_size"),
        image_size=_count(c, "image_size"),
        class_token=kind == "clip_vision_model",
    )


def _check_strategy(strategy: str, vision: VisionShape) -> None:
    """A class token is dropped, and nothing else is: any other reading would break the grid of a frame."""
    if (strategy == "default") != vision.class_token:
        fitting = "default" if vision.class_token else "full"
        raise ModelError(
            f"vision_feature_select_strategy {strategy!r} does not fit this vision tower; only {fitting} does"
        )
