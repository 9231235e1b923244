"""Training: questions that branch off one clip get what a mask over the whole row would give them, gradients too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from mlb_batch.tiny.train import video
from mlb_batch.tiny.train.answers import answer_logits
from mlb_batch.tiny.train.branches import branched_attention, branches_of
from mlb_batch.tiny.train.lessons import exam_talk
from mlb_batch.tiny.train.loop import Pace, train
from mlb_batch.tiny.train.notes import cell_of
from mlb_batch.tiny.train.pixels import model_pixels
from mlb_batch.tiny.train.thin import thinned
from mlb_batch.tiny.world import make_clip

CELLS = video.POOLED_CELLS
LESSON = video.Lesson(until=1, frames=(8,), batch_frames=8, max_acts=2, max_flashes=1)


def rows_of(prefixes: list[int], branches: list[list[int]]) -> Tensor:
    """Prefix, its padding, the branches, the row's padding."""
    rows = [
        [-1] * prefix + [-2] * (max(prefixes) - prefix) + np.repeat(np.arange(len(lengths)), lengths).tolist()
        for prefix, lengths in zip(prefixes, branches, strict=True)
    ]
    longest = max(map(len, rows))
    return torch.tensor([row + [-2] * (longest - len(row)) for row in rows])


def seen(branch_BL: Tensor) -> Tensor:
    causal_LL = torch.ones(branch_BL.shape[1], branch_BL.shape[1], dtype=torch.bool).tril()
    same_BLL = branch_BL[:, :, None] == branch_BL[:, None, :]
    prefix_BLL = (branch_BL == -1)[:, None, :].expand_as(same_BLL)
    return ((same_BLL | prefix_BLL) & causal_LL)[:, None]


@pytest.mark.parametrize("prefixes", [[20, 20, 20], [20, 3, 11]], ids=["as long", "of any length"])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_it_is_what_a_mask_gives_forth_and_back(prefixes: list[int], kv_heads: int):
    torch.manual_seed(0)
    branch_BL = rows_of(prefixes, [[3, 7, 2], [5, 5], [9, 1, 1, 4]])
    heads = (4, kv_heads, kv_heads)
    given = [torch.randn(3, h, branch_BL.shape[1], 8, requires_grad=True) for h in heads]
    masked = scaled_dot_product_attention(*given, attn_mask=seen(branch_BL), scale=0.3, enable_gqa=True).transpose(1, 2)
    ours, _ = branched_attention(nn.Identity(), *given, None, 0.3, branches_of(branch_BL))
    real_BL = branch_BL != -2
    weight = torch.randn_like(masked)[real_BL]
    assert torch.allclose(ours[real_BL], masked[real_BL], atol=1e-5)
    expected, got = (torch.autograd.grad((out[real_BL] * weight).sum(), given) for out in (masked, ours))
    for one, other in zip(expected, got, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_token_that_is_left_out_leaves_the_others_where_they_were():
    model = video.fresh_model(0, layers=3).eval()
    school = video.ClipSchool(video.ClipStudent(model), 0, (LESSON,))
    clip = make_clip(5, 8)
    visual_ND = model.model.get_video_features(model_pixels(clip.pixels_FHWC[None])).pooler_output[0]
    there = thinned(clip, len(visual_ND), CELLS, 0.25, np.random.default_rng(0))
    talk = exam_talk(clip)[3]
    packed = school.packer.pack_visual(len(visual_ND), [[talk]], [there.tolist()])
    ours, _ = answer_logits(model, school.packer.media_id, packed, visual_ND[there])
    before, after, asked = school.packer.branch(talk.prompt, talk.answer)
    embed = model.get_input_embeddings()
    whole = torch.cat([embed(torch.tensor(before)), visual_ND[there], embed(torch.tensor(after))])[None]
    positions = [*range(len(before)), *(len(before) + there), *range(len(before) + len(visual_ND), 10**6)]
    model.model.language_model.set_attn_implementation("sdpa")
    causal = torch.ones(1, 1, whole.shape[1], whole.shape[1], dtype=torch.bool).tril()  # none: gaps would part the text
    hidden = model.model.language_model(
        inputs_embeds=whole, position_ids=torch.tensor([positions[: whole.shape[1]]]), attention_mask=causal,
        use_cache=False,
    ).last_hidden_state  # fmt: skip
    theirs = model.lm_head(hidden)[0, asked - len(after) - 1 : -1]
    assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("share", [0.5, 0.25])
@pytest.mark.parametrize("seed", range(5))
def test_what_is_left_out_is_chance_but_of_everything_shown_something_stays(seed: int, share: float):
    clip = make_clip(seed, 24)
    tokens = 24 * CELLS**2 + 1
    one, other, again = (thinned(clip, tokens, CELLS, share, np.random.default_rng(s)) for s in (0, 1, 0))
    assert (one == again).all() and not np.array_equal(one, other)
    assert len(one) == len(set(one.tolist())) == round(24 * CELLS**2 * share) + 1
    assert (np.diff(one) > 0).all() and one[-1] == tokens - 1
    for thing in (*clip.truth.acts, *clip.truth.flashes):
        at = {cell_of(sprite, CELLS) for shown, sprite in clip.shown if shown == thing}
        assert len(at & set(one.tolist())) >= min(3, len(at))


def test_a_thin_lesson_lowers_its_loss(tmp_path: Path):
    shown = ((16, 0.25), (16, 0.5))
    lesson = video.Lesson(until=16, frames=(), thin=shown, batch_frames=8, max_acts=2, max_flashes=1)
    task = video.clip_task(video.ClipStudent(video.fresh_model(0, layers=2)), 0, (lesson,), peak_lr=2e-3)
    losses = train(task, Pace(tmp_path, 16, log_every=1000, measure_every=1000, save_every=1000))
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
