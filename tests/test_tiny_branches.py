"""Training: questions that branch off one clip get what a mask over the whole row would give them, gradients too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from mlb_batch.tiny.train import video
from mlb_batch.tiny.train.answers import Thinning, answer_logits
from mlb_batch.tiny.train.branches import branched_attention, branches_of
from mlb_batch.tiny.train.drawing import POOLED_CELLS, Lesson
from mlb_batch.tiny.train.lessons import exam_talk
from mlb_batch.tiny.train.loop import Pace, train
from mlb_batch.tiny.train.notes import cell_of
from mlb_batch.tiny.train.packing import Dialogue, Packed
from mlb_batch.tiny.train.pixels import model_pixels
from mlb_batch.tiny.train.thin import faded, thinned
from mlb_batch.tiny.world import make_clip

CELLS = POOLED_CELLS
LESSON = Lesson(until=1, frames=(8,), batch_frames=8, max_acts=2, max_flashes=1)


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


def test_a_gpu_gets_the_same_as_a_mask():
    branch_BL = rows_of([20, 3, 11], [[3, 7, 2], [5, 5], [9, 1, 1, 4]])
    nothing = torch.zeros_like(branch_BL)
    assert torch.equal(Packed(nothing, nothing, nothing, branch_BL).seen_B1LL, seen(branch_BL))


@pytest.mark.parametrize("leaving", [(0,), (1,), (3,), (1, 3), (0, 2)], ids=str)
def test_a_token_that_leaves_leaves_the_others_where_they_were(leaving: tuple[int, ...]):
    model = video.fresh_model(0, layers=4).eval()
    school = video.ClipSchool(video.ClipStudent(model), 0, (LESSON,))
    clip = make_clip(5, 8)
    visual_ND = model.model.get_video_features(model_pixels(clip.pixels_FHWC[None])).pooler_output[0]
    rng = np.random.default_rng(0)
    stays_N = thinned(clip, len(visual_ND), CELLS, 0.25, rng)
    still_N = stays_N.copy()
    still_N[stays_N] = faded(int(stays_N.sum()), 0.5, rng)
    talks = exam_talk(clip)[2:5]
    packed = left = school.packer.pack_visual(len(visual_ND), [talks])
    thinnings = []
    for at, stay_N in zip(leaving, (stays_N, still_N[stays_N]), strict=False):
        there = torch.ones_like(left.ids_BL, dtype=torch.bool)
        there[left.ids_BL == school.packer.media_id] = torch.from_numpy(stay_N)
        thinnings.append(Thinning(at, there.nonzero()[:, 1][None]))
        left = left.only(thinnings[-1].index_BK)
    ours, _ = answer_logits(model, school.packer.media_id, packed, visual_ND, thinnings)
    there_by_layer = dict(zip(leaving, map(torch.from_numpy, (stays_N, still_N)), strict=False))
    alone = [asked_alone(model, school, talk, visual_ND, there_by_layer) for talk in talks]
    assert torch.allclose(ours, torch.cat(alone), atol=1e-4)


def asked_alone(
    model: nn.Module, school: video.ClipSchool, talk: Dialogue, visual_ND: Tensor, there_by_layer: dict[int, Tensor]
) -> Tensor:
    """The whole sequence through every layer; a token that has left is hidden from the others by a mask."""
    language = model.model.language_model
    language.set_attn_implementation("sdpa")
    before, after, asked = school.packer.branch(talk.prompt, talk.answer)
    embed = model.get_input_embeddings()
    hidden = torch.cat([embed(torch.tensor(before)), visual_ND, embed(torch.tensor(after))])[None]
    length = hidden.shape[1]
    there_L = torch.ones(length, dtype=torch.bool)
    causal_LL = torch.ones(length, length, dtype=torch.bool).tril()
    rotation = language.rotary_emb(hidden, torch.arange(length)[None])
    for index, layer in enumerate(language.layers):
        there_L[len(before) : len(before) + len(visual_ND)] &= there_by_layer.get(index, torch.tensor(True))
        mask_LL = causal_LL & (there_L | torch.eye(length, dtype=torch.bool))
        hidden = layer(hidden, attention_mask=mask_LL[None, None], position_embeddings=rotation)
    logits_LV: Tensor = model.lm_head(language.norm(hidden))[0]
    return logits_LV[asked - len(after) - 1 : -1]


@pytest.mark.parametrize("share", [0.5, 0.25])
@pytest.mark.parametrize("seed", range(5))
def test_what_is_left_out_is_chance_but_of_everything_shown_something_stays(seed: int, share: float):
    clip = make_clip(seed, 24)
    tokens = 24 * CELLS**2 + 1
    one, other, again = (thinned(clip, tokens, CELLS, share, np.random.default_rng(s)) for s in (0, 1, 0))
    assert (one == again).all() and not np.array_equal(one, other)
    assert one.sum() == round(24 * CELLS**2 * share) + 1 and one[-1]
    for thing in (*clip.truth.acts, *clip.truth.flashes):
        at = {cell_of(sprite, CELLS) for shown, sprite in clip.shown if shown == thing}
        assert one[list(at)].sum() >= min(3, len(at))


@pytest.mark.parametrize(("fade", "layers"), [((), 2), ((0.5, 0.25), 10)], ids=["thin", "and fading"])
def test_a_thin_lesson_lowers_its_loss(fade: tuple[float, ...], layers: int, tmp_path: Path):
    shown = ((16, 0.25), (16, 0.5))
    lesson = Lesson(until=16, frames=(), thin=shown, fade=fade, batch_frames=8, max_acts=2, max_flashes=1)
    task = video.clip_task(video.ClipStudent(video.fresh_model(0, layers=layers)), 0, (lesson,), peak_lr=2e-3)
    losses = train(task, Pace(tmp_path, 16, log_every=1000, measure_every=1000, save_every=1000))
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
