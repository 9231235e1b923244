"""Shapes to price: the published models, and hypothesis' draws of small ones; and bills as one."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import strategies as st

from mlb_batch.cost.flops import Bill
from mlb_batch.cost.schedule import ClipShape, Cut, Schedule
from mlb_batch.cost.shapes import DecoderShape, ModelShape, VisionShape, model_shape

_QWEN2_7B = {
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152000,
}  # fmt: skip
ONEVISION_7B = model_shape({"model_type": "llava_onevision", "text_config": _QWEN2_7B})
LLAVA_VIDEO_7B = ONEVISION_7B  # the same tower and decoder; its frames are 13 rows of 13 tokens and a newline
LLAVA_NEXT_7B = model_shape(
    {"model_type": "llava_next", "text_config": {"model_type": "llama", "max_position_embeddings": 4096}}
)


def added(bills: Iterable[Bill]) -> Bill:
    return Bill(*map(sum, zip(*(bill.parts for bill in bills), strict=True)))


@st.composite
def decoders(draw: st.DrawFn, least_layers: int = 1) -> DecoderShape:
    kv_heads = draw(st.integers(1, 4))
    heads = kv_heads * draw(st.integers(1, 3))
    return DecoderShape(
        layers=draw(st.integers(least_layers, 12)),
        hidden=8 * draw(st.integers(1, 8)),
        ffn=draw(st.integers(8, 96)),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=2 * draw(st.integers(1, 8)),
        vocab=draw(st.integers(10, 500)),
        context=draw(st.sampled_from([512, 1024, 32768])),
    )


@st.composite
def clip_shapes(draw: st.DrawFn, max_prompts: int = 4) -> ClipShape:
    suffixes = draw(st.lists(st.integers(1, 30), min_size=1, max_size=max_prompts))
    return ClipShape(
        frames=draw(st.integers(1, 12)), rows=draw(st.integers(1, 5)), cols=draw(st.integers(1, 5)),
        prefix=draw(st.integers(0, 20)), trailer=draw(st.integers(0, 1)), suffixes=tuple(suffixes),
    )  # fmt: skip


@st.composite
def cut_schedules(draw: st.DrawFn, shape: ModelShape, clip: ClipShape) -> Schedule:
    layers = draw(st.sets(st.integers(0, shape.decoder.layers - 1), max_size=4))
    keeps = draw(st.lists(st.integers(1, clip.visual), min_size=len(layers), max_size=len(layers)))
    cuts = tuple(Cut(at, keep) for at, keep in zip(sorted(layers), sorted(keeps, reverse=True), strict=True))
    return Schedule(clip.frames, cuts, rows="last", fork=draw(st.booleans()))


@st.composite
def models(draw: st.DrawFn) -> ModelShape:
    """Small models of both kinds: pooled SigLIP towers, and CLIP ones with a class token; frames are square."""
    vision = VisionShape(
        taken=(draw(st.integers(1, 3)),), hidden=8 * draw(st.integers(1, 4)), ffn=draw(st.integers(8, 40)), channels=3,
        patch_size=4, image_size=4 * draw(st.integers(2, 8)), class_token=draw(st.booleans()),
    )  # fmt: skip
    pooled = not vision.class_token
    return ModelShape("llava", draw(decoders(least_layers=2)), vision, vision.hidden, pooled, trailer=int(pooled))
