"""Vanilla is transformers: features, texts of `generate`, and every selecting method at keep 1.0."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import oracles
import pytest
import torch
from engine_runs import Case, model, prompter, pruning, run, settings
from models import DEEP, FAMILIES, Spec, checkpoint, eager, pixels

from mlb_batch.cost.schedule import WHOLE
from mlb_batch.vlm.captioner import Answer, Ask, Captioner, Clip, Settings
from mlb_batch.vlm.load import fuse_norms
from mlb_batch.vlm.preprocess import frame_recipe
from mlb_batch.vlm.vision import see

SPECS = {
    **FAMILIES,
    "deep": DEEP,
    "tied heads of their own": Spec(tied=True, kv_heads=4, seed=11),
    "llava-mistral": Spec("llava", "mistral", kv_heads=1, seed=12),
    "next-llama": Spec("llava_next", "llama", layers=2, kv_heads=4, tied=True, side=4, seed=13),
}
TEXTS = ("What is it?", "And who is walking there in the end, and why would he do that?", "Why")
NEW = 12


def clip(spec: Spec, frames: int, seed: int, texts: Sequence[str] = TEXTS) -> Clip:
    return Clip(pixels(spec, frames, seed), tuple(Ask(f"{seed}-{i}", "qa", t) for i, t in enumerate(texts)))


def said_by_transformers(spec: Spec, given: Clip) -> list[str]:
    return [transformers_text(spec, given, ask.text) for ask in given.asks]


@torch.inference_mode()
def transformers_text(spec: Spec, given: Clip, text: str) -> str:
    """`generate` on the checkpoint's own template: of a video, or of embedded frames for a family of images."""
    built, tokenizer = eager(spec), prompter(spec).tokenizer
    kind = "video" if spec.family == "llava_onevision" else "image"
    content = [{"type": kind}, {"type": "text", "text": text}]
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    closing = int(spec.family == "llava_onevision")
    count = len(given.pixels_FHWC) * spec.tokens_per_frame + closing
    expanded = str(rendered).replace(f"<{kind}>", f"<{kind}>" * count)
    opened = rendered.startswith(tokenizer.bos_token or "\0")
    ids = tokenizer(expanded, add_special_tokens=not opened, return_tensors="pt").input_ids
    how = dict(max_new_tokens=NEW, do_sample=False, eos_token_id=tokenizer.eos_token_id)
    pixel_values = oracles.pixel_values(spec, given.pixels_FHWC)
    if kind == "video":
        out = built.generate(input_ids=ids, pixel_values_videos=pixel_values[None], **how)[0, ids.shape[1] :]
    else:
        embeds = built.get_input_embeddings()(ids)[0]
        embeds[ids[0] == tokenizer.convert_tokens_to_ids("<image>")] = oracles.visual_tokens(spec, given.pixels_FHWC)[0]
        out = built.generate(inputs_embeds=embeds[None], **how)[0]
    return tokenizer.decode(out, skip_special_tokens=True).strip()


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_texts_are_those_of_generate(spec: Spec) -> None:
    """Alone, and in ragged batches of unlike clips with unlike numbers of prompts, in any order."""
    captioner = Captioner(checkpoint(spec), Settings(pruning("none"), WHOLE, NEW, device="cpu"))
    clips = [clip(spec, 3, 1), clip(spec, 1, 2, TEXTS[:1]), clip(spec, 6, 3, TEXTS[1:])]
    wanted = [said_by_transformers(spec, c) for c in clips]
    assert len({text for texts in wanted for text in texts}) > 1
    for batch in ([0], [1], [2], [0, 1, 2], [2, 0], [1, 1, 0]):
        answers = captioner.annotate([clips[i] for i in batch])
        texts = [[a.text for a in some if isinstance(a, Answer)] for some in answers]
        assert texts == [wanted[i] for i in batch]


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_visual_tokens_are_those_of_transformers(spec: Spec) -> None:
    """The tower is run layer by layer and in batches; the features are the family's own."""
    recipe, shape = frame_recipe(checkpoint(spec)), checkpoint(spec).shape
    frames = pixels(spec, 70, 5)  # more than one batch of the tower
    with torch.inference_mode():
        seen = see(model(spec), shape, recipe, list(frames))
    theirs_ND, closing_RD = oracles.visual_tokens(spec, frames)
    assert seen.visual_FKD.flatten(0, 1).shape == theirs_ND.shape
    assert float((seen.visual_FKD.flatten(0, 1) - theirs_ND).abs().max()) < 1e-5
    assert len(closing_RD) == shape.trailer


def test_features_of_several_layers_side_by_side() -> None:
    """LLaVA-1.5 may take several layers' features; the projector gets them as transformers gives them."""
    spec = FAMILIES["llava"]
    built, shape = model(spec), checkpoint(spec).shape
    from mlb_batch.cost.shapes import model_shape
    from mlb_batch.vlm.vision import tower_features

    many = model_shape({**checkpoint(spec).config, "vision_feature_layer": [-2, 1, 3]})
    pixels_FCHW = oracles.pixel_values(spec, pixels(spec, 2, 1))
    with torch.inference_mode():
        ours = tower_features(built.model.vision_tower, many.vision, pixels_FCHW)
        hidden = eager(spec).model.vision_tower(pixels_FCHW, output_hidden_states=True).hidden_states
    theirs = torch.cat([hidden[i][:, 1:] for i in (-2, 1, 3)], dim=-1)
    assert float((ours - theirs).abs().max()) < 1e-5 and many.projector_in == 3 * shape.projector_in


SELECTING = {
    "adatp": {},
    "adatp both suppress": {"global": "both", "local": "suppress", "score": "question"},
    "adatp linear": {"schedule": "linear", "global": "none", "local": "none"},
    "fastv": {},
    "fastv late": {"at": 4},
    "random": {},
    "uniform": {},
    "frames": {},
    "density": {},
    "unique": {},
    "pool": {},  # at 1.0 there is nothing to merge
}


@pytest.mark.parametrize("spec", FAMILIES.values(), ids=FAMILIES)
def test_keeping_all_is_vanilla(spec: Spec) -> None:
    cases = [Case(pixels(spec, 4, 1), TEXTS), Case(pixels(spec, 7, 2), TEXTS[:1])]
    vanilla = [p.tokens for ran in run(spec, settings(pruning("none")), cases) for p in ran.prompts]
    for name, options in SELECTING.items():
        for select in ("per_prompt", "per_video"):
            for compact in (False, True):
                method = pruning(name.split()[0], options, select, compact)
                got = [p.tokens for ran in run(spec, settings(method), cases) for p in ran.prompts]
                assert got == vanilla, (name, select, compact)


@pytest.mark.parametrize("spec", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("expand", ["carry", "refeed"])
@pytest.mark.parametrize("name", ["segattn", "mlb-g", "mlb"])
def test_one_segment_in_cells_of_one_without_a_tail_is_vanilla(name: str, expand: str, spec: Spec) -> None:
    cases = [Case(pixels(spec, 4, 1), TEXTS), Case(pixels(spec, 7, 2), TEXTS[:1])]
    vanilla = [p.tokens for ran in run(spec, settings(pruning("none")), cases) for p in ran.prompts]
    for question in ("last", "mean"):
        for select in ("per_prompt", "per_video"):
            options = {"segment": 9, "expand": expand, "question": question, "tail": 0}
            ran_clips = run(spec, settings(pruning(name, options, select)), cases)
            assert [r.given.schedule.scan.segments for r in ran_clips if r.given.schedule.scan] == [(4,), (7,)]
            assert [p.tokens for ran in ran_clips for p in ran.prompts] == vanilla


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_fused_norms_are_transformers_own(spec: Spec) -> None:
    """With the same weights; in half precision they round once where transformers rounds twice."""
    built = eager(spec)
    ids = torch.arange(40)[None] % spec_vocabulary(built)
    for dtype, near in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        theirs = copy.deepcopy(built).to(dtype).model.language_model
        with torch.no_grad():
            for norm in (m for m in theirs.modules() if type(m).__name__.endswith("RMSNorm")):
                norm.weight.add_(torch.randn(len(norm.weight), generator=torch.Generator().manual_seed(0)) / 4)
        ours = copy.deepcopy(theirs)
        fuse_norms(ours)
        assert not any(type(m).__name__ != "RMSNorm" and type(m).__name__.endswith("RMSNorm") for m in ours.modules())
        with torch.inference_mode():
            one, other = (m(input_ids=ids).last_hidden_state.float() for m in (theirs, ours))
        assert float((one - other).abs().mean() / one.abs().mean()) < near


def spec_vocabulary(built: Any) -> int:
    return int(built.get_input_embeddings().num_embeddings)
