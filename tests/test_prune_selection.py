"""Every method's selection against its plain statement, index for index, on random inputs and on many ties."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
import statements
import torch
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from statements import Groups, Seen
from torch import Tensor

from mlb_batch.cost.grids import CELLS, cells_before_tail, cells_in, pool_ladder
from mlb_batch.prune import make
from mlb_batch.prune.mlb import Mlb
from mlb_batch.prune.scores import join_most_similar, shares, spread
from mlb_batch.prune.view import Merge, Pick, View, all_in_order, check

many = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
NEAR = 1e-6  # two scores that are nearer than this may change places between fp32 and Python's floats


@st.composite
def views(draw: st.DrawFn, tied: bool = False, all_alive: bool = False) -> View:
    """A clip at some cut. Tied scores are sixteenths, which every order of summation adds up alike."""
    frames, rows, cols = draw(st.integers(1, 7)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    heads = draw(st.sampled_from([1, 2, 4]))
    whole = frames * rows * cols
    count = whole if all_alive else draw(st.integers(1, whole))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    alive_N = torch.randperm(whole, generator=random)[:count].sort().values

    def scores() -> Tensor:
        if tied:
            return 2.0 ** -torch.randint(1, 4, (heads, count), generator=random).float()
        return torch.rand(heads, count, generator=random) + 0.01

    steps = torch.randn(frames, 6, generator=random) * torch.rand(frames, 1, generator=random)
    return View(
        grid=(frames, rows, cols),
        alive_N=alive_N,
        embed_ND=torch.randn(count, 8, generator=random),
        feature_FD=steps.cumsum(0) + 1.0,
        attention_HN=scores(),
        null_HN=scores(),
        relevance_F=torch.rand(frames, generator=random),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


def seen(view: View) -> Seen:
    frames, rows, cols = view.grid
    paid, null = (None if x is None else x[:, None].tolist() for x in (view.attention_HN, view.null_HN))
    relevance = None if view.relevance_F is None else view.relevance_F.tolist()
    return Seen(frames, rows * cols, view.alive_N.tolist(), view.feature_FD.tolist(), paid, null, relevance)


def apart(scores: list[float]) -> bool:
    ordered = sorted(scores)
    return all(b - a > NEAR * max(1.0, abs(b)) for a, b in pairwise(ordered))


def chosen(name: str, options: dict[str, Any], view: View, keep: int) -> list[int]:
    method = make(name, options, paired=True)
    pick = sound(method.pick(view, keep), view, keep, method.traits.exact)
    assert isinstance(pick, Tensor)
    return pick.tolist()


def sound(pick: Pick, view: View, keep: int, exact: bool = True) -> Pick:
    all_in_order([check(pick, view, keep, exact)])
    return pick


@pytest.mark.parametrize("tied", [False, True])
@many
@given(st.data())
def test_fastv(tied: bool, data: st.DataObject) -> None:
    view = data.draw(views(tied))
    keep, heads = data.draw(st.integers(1, len(view.alive_N))), data.draw(st.sampled_from(["mean", "max"]))
    assume(tied or apart(statements.one_score(seen(view).paid or [], heads)))
    assert chosen("fastv", {"heads": heads}, view, keep) == statements.fastv(seen(view), keep, heads)


ADATP = {
    "features": st.sampled_from(["attention", "paired"]),
    "global": st.sampled_from(["segments", "position", "both", "none"]),
    "local": st.sampled_from(["dedup", "suppress", "none"]),
    "heads": st.sampled_from(["mean", "max"]),
    "spend": st.sampled_from(["exact", "cap"]),
    "tau": st.sampled_from([-1.0, 0.5, 0.95, 0.999]),
    "boost": st.sampled_from([1.0, 1.5, 2.0, 4.0]),
}


@pytest.mark.parametrize("tied", [False, True])
@settings(many, max_examples=300)
@given(st.data())
def test_adatp(tied: bool, data: st.DataObject) -> None:
    view = data.draw(views(tied))
    keep, options = data.draw(st.integers(1, len(view.alive_N))), data.draw(st.fixed_dictionaries(ADATP))
    names = {"global": "debias_global", "local": "debias_local"}
    plain = statements.AdaTP(**{names.get(k, k): v for k, v in options.items()})
    given_ = seen(view)
    assume(all(abs(statements.cosine(a, b) - plain.tau) > NEAR for a, b in pairwise(given_.features)))
    if tied:
        assume(options["local"] != "suppress")  # its quotients are not exact in fp32
        assume(options["features"] == "paired" or options["global"] in ("none", "position"))  # nor its means
    else:
        assume(apart(plain.debiased(given_)))
    event(f"segments: {min(3, max(statements.segments(given_.features, plain.tau)) + 1)}")
    assert chosen("adatp", options, view, keep) == plain.pick(given_, keep)


@many
@given(view=views(all_alive=True), data=st.data())
def test_density(view: View, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, len(view.alive_N)))
    tau, neighbours = data.draw(st.sampled_from([0.5, 0.9])), data.draw(st.integers(1, 5))
    given_, tokens = seen(view), view.embed_ND.tolist()
    per = given_.per_frame
    assume(per > 1)  # a token alone is no centre of anything: its distance to itself is noise
    by_frame = [tokens[f * per :][:per] for f in range(given_.frames)]
    assume(all(apart(statements.densities(some, neighbours)) for some in by_frame))
    assume(apart([score for some in by_frame for score in statements.peaks(some, neighbours)]))
    picked = chosen("density", {"tau": tau, "neighbours": neighbours}, view, keep)
    assert picked == statements.density(given_, tokens, keep, tau, neighbours)


@many
@given(view=views(all_alive=True), data=st.data())
def test_unique(view: View, data: st.DataObject) -> None:
    keep, tokens = data.draw(st.integers(1, len(view.alive_N))), view.embed_ND.tolist()
    assume(apart(statements.unusual(tokens, seen(view).per_frame)[1]))  # two tokens are as far from their mean
    assert chosen("unique", {}, view, keep) == statements.unique(seen(view), tokens, keep)


@many
@given(view=views(all_alive=True), data=st.data())
def test_uniform(view: View, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, len(view.alive_N)))
    assert chosen("uniform", {}, view, keep) == statements.evenly(keep, len(view.alive_N))


@many
@given(view=views(), data=st.data())
def test_random_is_a_function_of_content_and_seed(view: View, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, len(view.alive_N)))
    assert chosen("random", {"seed": 1}, view, keep) == chosen("random", {"seed": 1}, view, keep)


def test_random_takes_every_token_alike_and_differs_by_clip_and_seed() -> None:
    def draws(content: int, seed: int) -> list[int]:
        view = View((5, 4, 4), torch.arange(80), torch.zeros(80, 2), torch.zeros(5, 2), seed=content)
        return chosen("random", {"seed": seed}, view, 20)

    counts = torch.zeros(80)
    for content in range(2000):
        counts[draws(content, 0)] += 1
    assert abs(counts / 2000 - 0.25).max() < 0.05  # five standard deviations
    assert len({tuple(draws(c, s)) for c in range(30) for s in range(30)}) == 900


def groups_of(pick: Tensor | Merge) -> Groups:
    if isinstance(pick, Tensor):
        return [[(i, 1.0)] for i in pick.tolist()]
    out: Groups = [[] for _ in range(pick.count)]
    for i, (group, weight) in enumerate(zip(pick.group_N.tolist(), pick.weight_N.tolist(), strict=True)):
        out[group].append((i, weight))
    return out


def assert_same_groups(got: Groups, wanted: Groups) -> None:
    assert [[i for i, _ in group] for group in got] == [[i for i, _ in group] for group in wanted]
    for a, b in zip(got, wanted, strict=True):
        assert [w for _, w in a] == pytest.approx([w for _, w in b], abs=1e-6)


@many
@given(view=views(all_alive=True), data=st.data())
def test_pool(view: View, data: st.DataObject) -> None:
    small = data.draw(st.sampled_from(pool_ladder(*view.grid[1:])))
    keep = view.grid[0] * small[0] * small[1]
    pick = sound(make("pool").pick(view, keep), view, keep)
    assert_same_groups(groups_of(pick), statements.pooled(*view.grid, small))


@pytest.mark.parametrize("pool", ["argmax", "weighted", "mean"])
@pytest.mark.parametrize("tied", [False, True])
@many
@given(st.data())
def test_cells(pool: str, tied: bool, data: st.DataObject) -> None:
    view = data.draw(views(tied, all_alive=True))
    cell, tail = data.draw(st.sampled_from(CELLS)), data.draw(st.integers(0, 2 * view.grid[1] * view.grid[2]))
    heads = data.draw(st.sampled_from(["mean", "max"]))
    score = statements.one_score(seen(view).paid or [], heads)
    assume(tied or apart(score))
    wanted = statements.gridded(*view.grid, score, cell, tail, pool)
    view = View(**{**view.__dict__, "cell": cell, "tail": tail})
    pick = sound(Mlb(pool=pool, heads=heads).pick(view, len(wanted)), view, len(wanted))
    assert_same_groups(groups_of(pick), wanted)


@many
@given(view=views(tied=True, all_alive=True), data=st.data())
def test_segattn(view: View, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, len(view.alive_N)))
    view = View(**{**view.__dict__, "cell": (1, 1)})
    assert chosen("segattn", {}, view, keep) == statements.fastv(seen(view), keep)


# The arithmetic below the methods.


@many
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 60)), min_size=1, max_size=8),
    st.sampled_from([1, 2, 3]),
    st.data(),
)
def test_shares(parts: list[tuple[int, int]], boost: int, data: st.DataObject) -> None:
    assume(any(c for _, c in parts))
    weights = [w * (boost if data.draw(st.booleans()) else 2) if c else 0 for w, c in parts]
    capacity = [c for _, c in parts]
    total = data.draw(st.integers(sum(c > 0 for c in capacity), sum(capacity)))
    got = shares(torch.tensor(weights), torch.tensor(capacity), total).tolist()
    there = [i for i, c in enumerate(capacity) if c]
    of = statements.shares([Fraction(weights[i]) for i in there], [capacity[i] for i in there], total)
    assert [got[i] for i in there] == of and sum(got) == total
    assert all(min(1, c) <= g <= c for g, c in zip(got, capacity, strict=True))


def test_shares_by_hand() -> None:
    def of(weights: list[int], capacity: list[int], total: int) -> list[int]:
        return shares(torch.tensor(weights), torch.tensor(capacity), total).tolist()

    assert of([1, 1, 1], [9, 9, 9], 5) == [2, 2, 1]  # equal remainders go to the lower index
    assert of([1, 8], [9, 3], 10) == [7, 3]  # what the full one cannot take goes to the other
    assert of([5, 1, 1], [9, 9, 9], 3) == [1, 1, 1]  # one each comes first, whatever the weight
    assert of([3, 0, 1], [9, 0, 9], 4) == [3, 0, 1]  # without capacity there is nothing


@many
@given(st.integers(1, 60), st.data())
def test_spread(total: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, total))
    got = spread(count, total)
    assert got == statements.evenly(count, total) and len(set(got)) == count


@many
@given(view=views(), data=st.data())
def test_joining_segments(view: View, data: st.DataObject) -> None:
    segment_F = torch.tensor(statements.segments(view.feature_FD.tolist(), 0.9))
    at_most = data.draw(st.integers(1, 8))
    got = join_most_similar(segment_F, view.feature_FD, at_most).tolist()
    assert got == statements.joined(segment_F.tolist(), view.feature_FD.tolist(), at_most)
    assert max(got) + 1 == min(at_most, int(segment_F[-1]) + 1)


@many
@given(st.integers(1, 7), st.integers(1, 7), st.sampled_from(CELLS), st.data())
def test_counted_cells_are_the_cells_that_are_chosen_from(rows: int, cols: int, cell: tuple[int, int],
                                                          data: st.DataObject) -> None:  # fmt: skip
    tail = data.draw(st.integers(0, rows * cols))
    flat = [0.0] * rows * cols
    wanted = len(statements.gridded(1, rows, cols, flat, cell, tail, "mean")) - tail
    assert cells_before_tail(rows, cols, cell, tail) == wanted
    if tail == 0:
        assert cells_in(rows, cols, cell) == wanted


# Corner cases, by hand.


def small_view(paid: list[float], frames: int, features: list[list[float]], alive: list[int] | None = None) -> View:
    alive_N = torch.tensor(alive if alive is not None else range(len(paid)))
    per_frame = 2
    return View(
        grid=(frames, 1, per_frame), alive_N=alive_N, embed_ND=torch.zeros(len(paid), 2),
        feature_FD=torch.tensor(features), attention_HN=torch.tensor(paid)[None],
        null_HN=torch.ones(1, len(paid)), relevance_F=torch.arange(frames, dtype=torch.float32),
    )  # fmt: skip


UNLIKE = [[1.0, 0.0, 0.0, 0.1], [0.0, 1.0, 0.0, 0.1], [0.0, 0.0, 1.0, 0.1], [0.0, 0.1, 1.0, 0.1]]


def test_more_segments_than_tokens() -> None:
    """Four frames, three segments by tau, two tokens: the two likest neighbours are joined, and each gets one."""
    view = small_view([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], 4, UNLIKE)
    got = chosen("adatp", {"features": "paired", "tau": 0.98}, view, 2)
    assert got == statements.AdaTP("paired", tau=0.98).pick(seen(view), 2)
    assert len({i // 2 for i in got}) == 2


def test_a_segment_of_which_nothing_is_left_takes_no_share() -> None:
    """Three segments: of the first nothing is left; of three tokens the likelier last one gets two."""
    view = small_view([0.4, 0.3, 0.2, 0.1], 4, UNLIKE, alive=[2, 3, 6, 7])
    assert chosen("adatp", {"features": "paired"}, view, 3) == [0, 2, 3]


def test_ties_go_to_the_lower_index() -> None:
    view = small_view([0.5] * 8, 4, [[1.0, 1.0]] * 4)
    assert chosen("fastv", {}, view, 3) == [0, 1, 2]
    assert chosen("adatp", {"global": "none", "local": "none"}, view, 3) == [0, 1, 2]
    assert chosen("adatp", {"global": "none", "local": "dedup"}, view, 3) == [0, 1, 2]


def test_a_position_comes_twice_only_when_every_position_came_once() -> None:
    """One segment of four equal frames, two positions: the loud position does not take the second place."""
    view = small_view([0.9, 0.1, 0.8, 0.2, 0.7, 0.1, 0.6, 0.1], 4, [[1.0, 1.0]] * 4)
    assert chosen("fastv", {}, view, 2) == [0, 2]
    assert chosen("adatp", {"features": "paired"}, view, 2) == [0, 3]
    assert chosen("adatp", {"features": "paired"}, view, 3) == [0, 2, 3]


def test_cap_stops_where_a_clip_repeats_itself() -> None:
    view = small_view([0.9, 0.1, 0.8, 0.2, 0.7, 0.1, 0.6, 0.1], 4, [[1.0, 1.0]] * 4)
    assert chosen("adatp", {"features": "paired", "spend": "cap"}, view, 6) == [0, 3]
