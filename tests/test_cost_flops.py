"""The exact cost: published figures, what transformers resolves, what torch counts on real passes, and properties."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cost_cases import LLAVA_NEXT_7B, LLAVA_VIDEO_7B, ONEVISION_7B, added, clip_shapes, cut_schedules, decoders
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaOnevisionConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

from mlb_batch.cost import flops, paper
from mlb_batch.cost.flops import Bill
from mlb_batch.cost.schedule import ClipShape, Cut, Scan, Schedule, keep_count
from mlb_batch.cost.shapes import DecoderShape, ModelShape, model_shape
from mlb_batch.errors import ModelError

TERA = 1e12
patient = settings(deadline=None, max_examples=60)


def one_clip(frames: int, rows: int, cols: int, suffixes: tuple[int, ...] = (32,)) -> ClipShape:
    return ClipShape(frames, rows, cols, prefix=14, trailer=1, suffixes=suffixes)


# The papers' figures.


@pytest.mark.parametrize(
    ("schedule", "tera"),
    [
        (Schedule(32), 48.82),
        (Schedule(32, cuts=(Cut(2, keep_count(6272, 250_000)),)), 13.45),
        (Schedule(32, cuts=(Cut(0, keep_count(6272, 250_000)),)), 10.73),
        (Schedule(32, cuts=(Cut(0, keep_count(6272, 97_000)),)), 4.04),
    ],
)
def test_published_teraflops_of_onevision(schedule: Schedule, tera: float) -> None:
    assert f"{paper.macs(ONEVISION_7B, one_clip(32, 14, 14), schedule) / TERA:.2f}" == f"{tera:.2f}"


def test_published_teraflops_of_llava_video() -> None:
    """64 frames of 13 x 13 tokens and, behind each row, a newline: 10816 + 832 tokens."""
    clip = one_clip(64, 13, 14)
    assert clip.visual == 10816 + 832
    assert f"{paper.macs(LLAVA_VIDEO_7B, clip, Schedule(64)) / TERA:.1f}" == "103.2"


def test_published_shares_of_the_seven_grids() -> None:
    """LLaVA-MLB's seven grids on 50 frames of the 7B model with a tail of 24, as shares of vanilla's multiply-adds."""
    clip = ClipShape(50, 24, 24, prefix=0, trailer=0, suffixes=(32,))
    grids = {1440: 38.7, 960: 24.8, 720: 18.9, 480: 13.7, 320: 10.5, 180: 8.0, 80: 6.4}
    vanilla = paper.macs(LLAVA_NEXT_7B, clip, Schedule(50))
    for tokens, share in grids.items():
        scan = Scan((5,) * 10, layers=3, kept=(tokens + 24,) * 10, cells=((1, 1),) * 10, tail=24, refeed=False)
        macs = paper.macs(LLAVA_NEXT_7B, clip, Schedule(50, scan=scan, rows="last"))
        assert 100 * macs / vanilla == pytest.approx(share, abs=0.06)


# What a config says, against what transformers resolves from the same file.

CLIP = CLIPVisionConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=20,
                        patch_size=4, projection_dim=16)  # fmt: skip
SIGLIP = SiglipVisionConfig(hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4,
                            image_size=28, patch_size=4, vision_use_head=False)  # fmt: skip
SMALL = dict(vocab_size=128, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6)
CONFIGS: dict[str, PreTrainedConfig] = {
    "onevision": LlavaOnevisionConfig(
        vision_config=SIGLIP, text_config=Qwen2Config(**SMALL, num_key_value_heads=2), tie_word_embeddings=True
    ),
    "onevision untied": LlavaOnevisionConfig(
        vision_config=SIGLIP, text_config=Qwen2Config(**SMALL, num_key_value_heads=3, tie_word_embeddings=False)
    ),
    "next llama": LlavaNextConfig(vision_config=CLIP, text_config=LlamaConfig(**SMALL)),
    "next llama gqa": LlavaNextConfig(vision_config=CLIP, text_config=LlamaConfig(**SMALL, num_key_value_heads=2)),
    "next mistral": LlavaNextConfig(
        vision_config=CLIP, text_config=MistralConfig(**SMALL, num_key_value_heads=2, head_dim=16)
    ),
    "llava": LlavaConfig(vision_config=CLIP, text_config=LlamaConfig(**SMALL)),
    "llava two layers": LlavaConfig(
        vision_config=CLIP, text_config=LlamaConfig(**SMALL), vision_feature_layer=[-2, -3]
    ),
    "onevision's own defaults": LlavaOnevisionConfig(),
    "next's own defaults": LlavaNextConfig(),
    "llava's own defaults": LlavaConfig(),
    "a text model's own defaults": LlavaNextConfig(text_config=MistralConfig()),
    "a tower's own defaults": LlavaOnevisionConfig(vision_config=SiglipVisionConfig()),
    "a CLIP tower's own defaults": LlavaConfig(vision_config=CLIPVisionConfig()),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_shape_is_what_transformers_resolves(name: str, tmp_path: Path) -> None:
    CONFIGS[name].save_pretrained(tmp_path)  # leaves out what equals the class's defaults
    shape = model_shape(json.loads((tmp_path / "config.json").read_text()))
    resolved = AutoConfig.from_pretrained(tmp_path)
    text, vision = resolved.get_text_config(), resolved.vision_config
    layer = resolved.vision_feature_layer
    layers = [layer] if isinstance(layer, int) else layer
    assert shape.decoder == DecoderShape(
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        ffn=text.intermediate_size,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        vocab=text.vocab_size,
        context=text.max_position_embeddings,
    )
    assert shape.vision.layers == max(vision.num_hidden_layers + 1 + i if i < 0 else i for i in layers)
    assert (shape.vision.hidden, shape.vision.ffn) == (vision.hidden_size, vision.intermediate_size)
    assert shape.vision.channels == vision.num_channels
    assert shape.vision.patches == (vision.image_size // vision.patch_size) ** 2
    assert shape.vision.class_token == (vision.model_type == "clip_vision_model")
    assert shape.projector_in == vision.hidden_size * len(layers)


NULL_HEADS = {"num_key_value_heads": None}  # which transformers itself refuses for Mistral


@pytest.mark.parametrize(
    ("kind", "written"), [("llama", {}), ("llama", NULL_HEADS), ("mistral", {}), ("qwen2", {}), ("qwen2", NULL_HEADS)]
)
def test_as_many_key_heads_as_transformers_resolves(kind: str, written: dict[str, None], tmp_path: Path) -> None:
    text = {"model_type": kind, "hidden_size": 48, "num_attention_heads": 16, **written}
    config = {"model_type": "llava", "text_config": text}
    (tmp_path / "config.json").write_text(json.dumps(config))
    resolved = AutoConfig.from_pretrained(tmp_path).get_text_config()
    assert model_shape(config).decoder.kv_heads == resolved.num_key_value_heads


def test_unknown_architectures_are_named() -> None:
    for config in ({"model_type": "gpt2"}, {"model_type": "llava", "text_config": {"model_type": "gemma"}},
                   {"model_type": "llava", "vision_config": {"model_type": "pixtral"}}):  # fmt: skip
        with pytest.raises(ModelError, match="supported"):
            model_shape(config)


# Against torch's own counter, which counts whole rectangles, on real passes.


def counted(call: object, *args: object, **kwargs: object) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        call(*args, **kwargs)  # type: ignore[operator]
    return counter.get_total_flops()


RUNNABLE = [name for name in CONFIGS if "defaults" not in name]


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize("tokens", [1, 2, 17])
def test_decoder_is_what_torch_counts(name: str, tokens: int) -> None:
    model, shape = build(name)
    embeds = torch.randn(1, tokens, shape.decoder.hidden)
    seen = counted(model.model.language_model, inputs_embeds=embeds, use_cache=False)
    assert shape.decoder.layers * flops.layer(shape.decoder, tokens, tokens * tokens) == seen
    assert flops.head(shape.decoder, tokens) == counted(model.lm_head, embeds)


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize("images", [1, 3])
def test_vision_is_what_torch_counts(name: str, images: int) -> None:
    """The tower is cut after its last needed layer; the counter knows no interpolation, which pooling is made of."""
    model, shape = build(name)
    tower = model.model.vision_tower
    whole = replace(shape.vision, taken=(tower.config.num_hidden_layers,))
    pixels = torch.randn(images, 3, tower.config.image_size, tower.config.image_size)
    assert flops.tower(whole, images) == counted(tower, pixels)
    assert flops.tower(whole, images) - flops.tower(replace(whole, taken=(whole.layers - 1,)), images) > 0
    features = torch.randn(images, shape.vision.patches, shape.projector_in)
    linear_part = flops.project(replace(shape, pooled=False), images)
    assert linear_part == counted(model.model.multi_modal_projector, features)


def test_the_default_feature_layer_leaves_the_last_layer_out() -> None:
    _, shape = build("llava")
    assert shape.vision.layers == CLIP.num_hidden_layers - 1


def test_pooling_is_priced() -> None:
    """Four taps a number: 8 operations for each of side x side x hidden numbers a frame."""
    _, shape = build("onevision")
    assert (shape.vision.side, shape.side) == (7, 4)
    assert flops.project(shape, 5) - flops.project(replace(shape, pooled=False), 5) == 8 * 5 * 4 * 4 * 48


def build(name: str) -> tuple[torch.nn.Module, ModelShape]:
    torch.manual_seed(0)
    config = CONFIGS[name]
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa").eval()
    return model, model_shape(json.loads(config.to_json_string()))


# Properties.


@patient
@given(st.data(), decoders(), st.integers(1, 4))
def test_causal_pairs_are_the_lower_triangle(data: st.DataObject, d: DecoderShape, prompts: int) -> None:
    """Brute force over every pair of a trunk and its branches."""
    trunk = data.draw(st.integers(1, 12))
    branches = tuple(data.draw(st.lists(st.integers(1, 6), min_size=prompts, max_size=prompts)))
    owner = [-1] * trunk + [i for i, b in enumerate(branches) for _ in range(b)]
    attended = sum(owner[k] in (-1, owner[q]) for q in range(len(owner)) for k in range(q + 1))
    assert flops.tree_layer(d, trunk, branches) == flops.layer(d, trunk + sum(branches), attended)
    assert flops.rows_layer(d, "question", trunk, branches) == sum(
        2 * d.q_dim * sum(owner[k] in (-1, owner[q]) for k in range(q + 1)) for q in range(trunk, len(owner))
    )
    last = trunk
    for i, b in enumerate(branches):
        last += b
        assert flops.rows_layer(d, "last", trunk, branches[i : i + 1]) == 2 * d.q_dim * sum(
            owner[k] in (-1, i) for k in range(last)
        )


@patient
@given(decoders(), clip_shapes(), st.data())
def test_price_is_the_sum_over_layers(d: DecoderShape, clip: ClipShape, data: st.DataObject) -> None:
    """A statement of its own: walk the layers, with the tokens that each one sees written out."""
    shape = with_decoder(d)
    schedule = data.draw(cut_schedules(shape, clip))
    bill = flops.price(shape, clip, schedule)
    text, alive, forked = clip.prefix + clip.trailer, clip.visual, False
    prefill = scoring = 0
    for index in range(d.layers):
        for cut in schedule.cuts:
            if cut.at == index:
                if index:
                    for s in clip.suffixes:
                        scoring += 2 * d.q_dim * (text + alive + s) * (schedule.rows == "last")
                alive, forked = cut.keep, schedule.fork
        sequences = [(text + alive, (s,)) for s in clip.suffixes] if forked else [(text + alive, clip.suffixes)]
        prefill += sum(flops.tree_layer(d, trunk, branches) for trunk, branches in sequences)
    assert (bill.prefill, bill.scoring) == (prefill, scoring)
    assert bill.vision == flops.encode(shape, clip.frames)


@patient
@given(decoders(), clip_shapes(), st.data())
def test_cost_rises_with_keep(d: DecoderShape, clip: ClipShape, data: st.DataObject) -> None:
    shape = with_decoder(d)
    at = data.draw(st.integers(0, d.layers - 1))
    few, many = sorted(data.draw(st.tuples(st.integers(1, clip.visual), st.integers(1, clip.visual))))
    cheap, dear = (
        flops.price(shape, clip, Schedule(clip.frames, (Cut(at, n),), rows="last"), (3,)) for n in (few, many)
    )
    assert cheap.llm <= dear.llm and cheap.generate <= dear.generate
    assert (cheap.llm < dear.llm) == (few < many)
    macs = [paper.macs(shape, clip, Schedule(clip.frames, (Cut(at, n),))) for n in (few, many)]
    assert (macs[0] < macs[1]) == (few < many)
    assert cheap.llm <= flops.vanilla(shape, clip).llm + cheap.scoring


@patient
@given(decoders(), clip_shapes(), st.data())
def test_sharing_is_never_dearer_than_forking(d: DecoderShape, clip: ClipShape, data: st.DataObject) -> None:
    shape = with_decoder(d)
    schedule = data.draw(cut_schedules(shape, clip))
    shared, forked = (flops.price(shape, clip, replace(schedule, fork=f)) for f in (False, True))
    assert shared.prefill <= forked.prefill and shared.scoring == forked.scoring
    apart = [flops.price(shape, replace(clip, suffixes=(s,)), schedule) for s in clip.suffixes]
    assert forked.llm <= sum(one.llm for one in apart)
    if len(clip.suffixes) == 1:
        assert shared == forked == apart[0]
    assert paper.macs(shape, clip, replace(schedule, fork=False)) <= paper.macs(
        shape, clip, replace(schedule, fork=True)
    )


@patient
@given(st.builds(Bill, *[st.integers(0, 10**15)] * 4), st.integers(1, 9))
def test_splits_add_up(bill: Bill, ways: int) -> None:
    rows = flops.split(bill, ways)
    assert len(rows) == ways and added(rows) == bill
    for part in ("vision", "prefill", "scoring", "generate"):
        amounts = [getattr(row, part) for row in rows]
        assert max(amounts) - min(amounts) <= 1


@patient
@given(decoders(), st.integers(0, 9), st.data())
def test_generation_is_the_loop_over_tokens(d: DecoderShape, new: int, data: st.DataObject) -> None:
    cached = data.draw(st.lists(st.integers(0, 30), min_size=d.layers, max_size=d.layers))
    lengths, total = list(cached), 0
    for token in range(new):
        if token:  # the first token comes out of the prefill; each later one passes through every layer
            for i in range(d.layers):
                lengths[i] += 1
                total += flops.layer(d, 1, lengths[i])
        total += flops.linear(1, d.hidden, d.vocab)
    assert flops.generate(d, cached, new) == total


@patient
@given(decoders(), clip_shapes(), st.data())
def test_generation_finds_what_each_layer_kept(d: DecoderShape, clip: ClipShape, data: st.DataObject) -> None:
    shape = with_decoder(d)
    schedule = data.draw(cut_schedules(shape, clip))
    for prompt, suffix in enumerate(clip.suffixes):
        lengths = flops.cache_lengths(shape, clip, schedule, prompt)
        assert len(lengths) == d.layers and lengths == sorted(lengths, reverse=True)
        assert lengths[-1] == clip.prefix + clip.trailer + suffix + schedule.kept(clip)
        compact = flops.cache_lengths(shape, clip, replace(schedule, compact=True), prompt)
        assert compact == [lengths[-1]] * d.layers


@patient
@given(clip_shapes(), st.integers(1, 3))
def test_a_scan_of_one_segment_that_keeps_all_is_vanilla(clip: ClipShape, layers: int) -> None:
    shape = with_decoder(DecoderShape(5, 48, 80, 6, 2, 8, 128, 4096))
    scan = Scan((clip.frames,), layers, kept=(clip.visual,), cells=((1, 1),), tail=0, refeed=False)
    vanilla = flops.vanilla(shape, clip, (2,))
    assert replace(flops.price(shape, clip, Schedule(clip.frames, scan=scan), (2,)), scoring=0) == vanilla
    refed = flops.price(shape, clip, Schedule(clip.frames, scan=replace(scan, refeed=True)), (2,))
    assert refed.prefill == vanilla.prefill
    assert refed.scoring * shape.decoder.layers == vanilla.prefill * layers


def test_a_known_bill_by_hand() -> None:
    """Two layers, 4 visual tokens cut to 1 before layer 1, one prompt of 2 tokens, prefix 1: every term written out."""
    d = DecoderShape(layers=2, hidden=4, ffn=8, heads=2, kv_heads=1, head_dim=2, vocab=10, context=64)
    clip = ClipShape(1, 2, 2, prefix=1, trailer=0, suffixes=(2,))
    bill = flops.price(with_decoder(d), clip, Schedule(1, (Cut(1, 1),), rows="last"), (2,))
    linear = 2 * (4 * 4 + 2 * 4 * 2 + 4 * 4 + 3 * 4 * 8)  # q, k and v, o, feed-forward: a token in a layer
    first = 7 * linear + 4 * 4 * (7 * 8 // 2)
    second = 4 * linear + 4 * 4 * (4 * 5 // 2)
    assert bill.prefill == first + second
    assert bill.scoring == 2 * 4 * 7
    assert bill.generate == 2 * (2 * 4 * 10) + 2 * linear + 4 * 4 * (8 + 5)


def with_decoder(d: DecoderShape) -> ModelShape:
    return replace(ONEVISION_7B, decoder=d)


def test_vision_outweighs_a_language_model_at_a_tenth_of_its_tokens() -> None:
    """Why scope `total` exists: the papers' figures leave the tower out."""
    bill = flops.price(ONEVISION_7B, one_clip(32, 14, 14), Schedule(32, (Cut(0, 627),)))
    assert bill.vision > bill.llm
