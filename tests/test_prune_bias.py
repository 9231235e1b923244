"""Planted biases: a plain top-k falls for them, the debiased selection does not, also in a clip of one segment.

The content is known by construction: a few tokens get twice the attention of the others. On top lies a bias that says
nothing about content: towards the two ends of the sequence, or towards the same spatial positions in every frame.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from engine_runs import Case, pruning, run, settings
from hypothesis import given
from hypothesis import settings as example
from hypothesis import strategies as st
from models import FAMILIES, pixels
from torch import Tensor

from mlb_batch.prune import make
from mlb_batch.prune.view import View

FRAMES, ROWS, COLS = 8, 3, 3
PLACES = ROWS * COLS
LIKE = torch.ones(FRAMES, 4)  # one segment
UNLIKE = torch.eye(FRAMES)  # a segment a frame
SCENES = torch.eye(FRAMES)[torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])]  # four segments of two frames


def view(score_N: Tensor, null_N: Tensor, features: Tensor) -> View:
    return View(
        grid=(FRAMES, ROWS, COLS), alive_N=torch.arange(FRAMES * PLACES), embed_ND=torch.zeros(FRAMES * PLACES, 2),
        feature_FD=features, attention_HN=(score_N / score_N.sum()).expand(2, -1),
        null_HN=(null_N / null_N.sum()).expand(2, -1), relevance_F=torch.zeros(FRAMES),
    )  # fmt: skip


def kept(name: str, options: dict[str, Any], seen: View, keep: int) -> set[int]:
    pick = make(name, options, paired=options.get("features") == "paired").pick(seen, keep)
    assert isinstance(pick, Tensor)
    return set(pick.tolist())


def pull_to_the_ends(strength: float) -> Tensor:
    """How much more attention a place in the sequence gets by its position alone; most at the very end."""
    from_end = torch.arange(FRAMES * PLACES).flip(0).float()
    from_start = torch.arange(FRAMES * PLACES).float()
    return 1 + strength * torch.exp(-from_end / 8) + 0.5 * strength * torch.exp(-from_start / 8)


@example(max_examples=60, deadline=None)
@given(st.sets(st.integers(2, FRAMES - 3), min_size=1, max_size=3), st.integers(0, 2**16), st.floats(8, 30))
def test_a_pull_to_the_ends(frames: set[int], seed: int, strength: float) -> None:
    """Content in the middle frames; the pull is measured without content and divided out."""
    random = torch.Generator().manual_seed(seed)
    content_N = 1 + 0.05 * torch.rand(FRAMES * PLACES, generator=random)
    places = torch.randperm(PLACES, generator=random).tolist()  # unlike ones: a position is represented once
    wanted = {f * PLACES + place for f, place in zip(sorted(frames), places, strict=False)}
    content_N[list(wanted)] *= 2
    pull_N = pull_to_the_ends(strength)
    for features in (LIKE, SCENES):
        seen = view(content_N * pull_N, pull_N, features)
        assert not kept("fastv", {}, seen, len(wanted)) & wanted
        assert not kept("segattn", {}, view_of_segment(seen), len(wanted)) & wanted
        for way in ("position", "both"):
            assert wanted <= kept("adatp", {"global": way, "local": "none"}, seen, FRAMES + len(wanted))
            assert wanted <= kept("adatp", {"global": way, "local": "dedup"}, seen, PLACES + FRAMES)
        # What is selected without content in it: with the pull taken away the ends are no longer favoured.
        assert wanted <= kept("adatp", {"global": "position", "local": "none"}, seen, len(wanted))


def view_of_segment(seen: View) -> View:
    return View(**{**seen.__dict__, "cell": (1, 1)})


@pytest.mark.parametrize("features", [LIKE, SCENES, UNLIKE], ids=["one segment", "four", "a segment a frame"])
def test_relevant_segments_are_found_behind_the_pull(features: Tensor) -> None:
    """Attention as relevance: raw, the ends matter most; corrected, the middle scene gets the larger share."""
    content_N = torch.ones(FRAMES, PLACES)
    content_N[4:6] *= 2
    pull_N = pull_to_the_ends(20)
    seen = view(content_N.flatten() * pull_N, pull_N, features)
    keep = 30
    plain, debiased = kept("fastv", {}, seen, keep), kept("adatp", {"local": "none"}, seen, keep)

    def in_the_middle(tokens: set[int]) -> int:
        return sum(4 * PLACES <= i < 6 * PLACES for i in tokens)

    assert in_the_middle(plain) < keep // 4 <= in_the_middle(debiased)
    if features is LIKE:  # one segment has nothing to share out; the corrected scores do it alone
        assert in_the_middle(debiased) == 2 * PLACES


@example(max_examples=60, deadline=None)
@given(st.integers(0, PLACES - 1), st.integers(0, PLACES - 1), st.integers(0, 2**16))
def test_a_position_that_is_loud_in_every_frame(loud: int, told: int, seed: int) -> None:
    """One position gets 5.77 times the mean in each frame; content is at another one; all is one segment."""
    if loud == told:
        told = (told + 1) % PLACES
    random = torch.Generator().manual_seed(seed)
    score_FP = 1 + 0.05 * torch.rand(FRAMES, PLACES, generator=random)
    score_FP[3, told] = 2.0
    score_FP[:, loud] *= 5.77
    seen = view(score_FP.flatten(), torch.ones(FRAMES * PLACES), LIKE)
    wanted, loud_ones = 3 * PLACES + told, {f * PLACES + loud for f in range(FRAMES)}
    keep = FRAMES
    assert kept("fastv", {}, seen, keep) == loud_ones
    deduped = kept("adatp", {"features": "paired", "global": "none", "local": "dedup"}, seen, keep)
    assert len(deduped & loud_ones) == 1 and wanted in deduped
    suppressed = kept("adatp", {"features": "paired", "global": "none", "local": "suppress"}, seen, FRAMES + 1)
    assert wanted in suppressed
    pooled = make("mlb-g").pick(View(**{**seen.__dict__, "cell": (1, 2)}), FRAMES * ROWS * 2)
    assert isinstance(pooled, Tensor)
    per_frame = torch.bincount(pooled // PLACES, minlength=FRAMES)
    assert per_frame.tolist() == [ROWS * 2] * FRAMES  # cells keep the structure of space and time


def test_the_end_of_a_segment_does_not_win_in_a_grid() -> None:
    """Attention that only grows with position: plain selection takes the last frames, cells take every frame alike."""
    seen = view(torch.linspace(1, 9, FRAMES * PLACES), torch.ones(FRAMES * PLACES), LIKE)
    seen = View(**{**seen.__dict__, "cell": (3, 3)})
    plain = kept("segattn", {}, seen, FRAMES)
    assert {i // PLACES for i in plain} == {FRAMES - 1}
    grid = make("mlb-g").pick(seen, FRAMES)
    assert isinstance(grid, Tensor)
    assert [i // PLACES for i in grid.tolist()] == list(range(FRAMES))


@pytest.mark.parametrize("spec", FAMILIES.values(), ids=FAMILIES)
def test_what_is_measured_without_content_is_the_bias_of_the_model_itself(spec: Any) -> None:
    """A clip of equal frames has no content to tell apart: its attention is all bias, and the correction is exact."""
    still = pixels(spec, 1, 3).repeat(5, axis=0)
    (ran,) = run(spec, settings(pruning("adatp", {"global": "position"}), 300_000), [Case(still, ("What is it?",))])
    first = ran.prompts[0].prefilled.trace[0]
    assert first.score_N is not None and first.null_N is not None
    assert np.ptp(first.score_N) > 1e-3  # the bias is there
    np.testing.assert_allclose(first.score_N, first.null_N, rtol=1e-3, atol=1e-7)
    assert int(first.segment_F.max()) == 0


@pytest.mark.parametrize("spec", FAMILIES.values(), ids=FAMILIES)
def test_the_number_of_segments_is_recorded(spec: Any) -> None:
    still, lively = pixels(spec, 1, 3).repeat(5, axis=0), pixels(spec, 7, 4)
    clips = [Case(still, ("What is it?",)), Case(lively, ("What is it?",))]
    one, more = run(spec, settings(pruning("adatp", {"tau": 0.999}), 300_000), clips)
    assert one.prompts[0].prefilled.segments == 1
    assert more.prompts[0].prefilled.segments > 1
    traced = more.prompts[0].prefilled.trace[0].segment_F
    assert int(traced.max()) + 1 == more.prompts[0].prefilled.segments
