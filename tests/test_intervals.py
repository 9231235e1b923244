"""Intervals hold the truth as often as they say: by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from mlb_batch.evaluate.intervals import Share, average, difference, proportion


def clips_of(rng: np.random.Generator, p: float, clips: int, each: int, alike: float) -> Share:
    """Questions of a clip are right together: each clip has a chance of its own around p."""
    a = max(1e-3, (1 - alike) / alike)
    chance_C = rng.beta(p * a, (1 - p) * a, clips)
    return Share(rng.binomial(each, chance_C).astype(float), np.full(clips, float(each)))


@pytest.mark.parametrize(("p", "alike"), [(0.5, 0.4), (0.85, 0.3), (0.97, 0.2)])
def test_intervals_of_a_proportion_cover_the_truth_about_95_times_in_100(p: float, alike: float) -> None:
    rng = np.random.default_rng(1)
    inside, naive = 0, 0
    for _ in range(600):
        share = clips_of(rng, p, clips=150, each=5, alike=alike)
        found = proportion(share)
        inside += found.low <= p <= found.high
        half = 1.96 * np.sqrt(found.value * (1 - found.value) / 750)
        naive += abs(found.value - p) <= half
    assert 0.92 <= inside / 600 <= 0.98
    assert naive / 600 < 0.92, "as if the questions of a clip were independent, it would cover less"


def differing(
    rng: np.random.Generator, clips: int, each: int, won: float, lost: float, alike: float
) -> tuple[Share, Share]:  # fmt: skip
    """Two cells' answers to the same questions; in some clips (`alike`) all differ in the same way, or none does."""
    chance = rng.random((clips, each))
    together = rng.random(clips) < alike
    chance[together] = chance[together][:, :1]
    of_C, right_C = np.full(clips, float(each)), rng.integers(0, 2, clips)  # what both have right is all one to a pair
    one_C, other_C = (chance < won).sum(1), ((chance >= won) & (chance < won + lost)).sum(1)
    return Share(1.0 * (right_C + one_C), of_C), Share(1.0 * (right_C + other_C), of_C)


@pytest.mark.parametrize(
    ("clips", "each", "won", "lost", "alike"),
    [
        (60, 4, 0.004, 0.02, 0.5), (60, 4, 0.004, 0.02, 1), (100, 4, 0.003, 0.01, 0.5), (100, 4, 0.002, 0.01, 0),
        (200, 4, 0.002, 0.006, 0.5), (12, 4, 0.02, 0.1, 0.5), (12, 4, 0.05, 0.15, 1), (500, 4, 0.01, 0.03, 0.3),
        (30, 1, 0.05, 0.1, 0), (20, 1, 0, 0.02, 0), (2500, 4, 0.005, 0.01, 0.3),
    ],
)  # fmt: skip
def test_paired_differences_cover_the_truth_however_few_differ(
    clips: int, each: int, won: float, lost: float, alike: float
) -> None:
    rng, inside = np.random.default_rng(2), 0
    for _ in range(400):
        found = difference([(pair := differing(rng, clips, each, won, lost, alike))[0]], [pair[1]])
        inside += found.low <= won - lost <= found.high
    assert inside / 400 >= 0.93
    assert clips * each * lost < 5 or inside / 400 <= 0.99, "where enough differ, it is no wider than it need be"


def test_paired_differences_are_narrower_than_unpaired_ones() -> None:
    rng = np.random.default_rng(2)
    one = clips_of(rng, 0.9, 120, 4, 0.3)
    other = Share(one.reached_C - rng.binomial(one.reached_C.astype(int), 0.05), one.of_C)
    found, apart = difference([other], [one]), [proportion(one), proportion(other)]
    assert found.high - found.low < 0.7 * sum((i.high - i.low) ** 2 for i in apart) ** 0.5
    assert found.value == other.value - one.value and found.high - found.low < 0.05


@pytest.mark.parametrize("kinds", [1, 4])
def test_averages_and_their_differences_cover_the_truth(kinds: int) -> None:
    """Of scores up to 5, and of shares that don't count the same questions: a caption states what it likes."""
    rng, inside, apart, clips = np.random.default_rng(4), 0, 0, 40
    for _ in range(400):
        clip_C = rng.normal(0, 0.5, clips)  # what its questions have in common
        of = [np.full(clips, 3.0)] * kinds
        scores = [Share(rng.binomial(15, 1 / (1 + np.exp(-1 - clip_C))).astype(float), of_C) for of_C in of]
        mean = average(scores, 5.0)
        inside += mean.low <= 5 * TRUE_MEAN <= mean.high
        said_C = rng.integers(1, 9, clips).astype(float)
        one = [Share(rng.binomial(said_C.astype(int), 0.8).astype(float), said_C) for _ in of]
        other = [Share(rng.binomial(3, 0.7, clips).astype(float), of_C) for of_C in of]
        found = difference(one, other)
        apart += found.low <= 0.1 <= found.high
    assert 0.92 <= inside / 400 <= 0.985 and 0.92 <= apart / 400 <= 0.985


# The mean of 1 / (1 + exp(-1 - x)) over the normal clips above.
TRUE_MEAN = float(np.mean(1 / (1 + np.exp(-1 - np.random.default_rng(0).normal(0, 0.5, 1_000_000)))))


def test_an_interval_is_never_nothing_at_the_ends() -> None:
    perfect = proportion(Share(np.full(20, 5.0), np.full(20, 5.0)))
    assert perfect.value == perfect.high == 1 and 0.8 < perfect.low < 0.9  # 20 clips, whatever the questions
    none = proportion(Share(np.zeros(20), np.full(20, 5.0)))
    assert (none.value, none.low) == (0, 0) and none.high == pytest.approx(1 - perfect.low)


def test_a_difference_that_no_clip_shows_may_still_be_there() -> None:
    """Two answers that agree on a handful of clips are not known to be the same, and a right one is not all of them."""
    rng, before = np.random.default_rng(3), 2.0
    for clips in (1, 2, 12, 100, 2500):
        same = Share(1.0 * rng.integers(0, 2, clips), np.ones(clips))
        found = difference([same], [same])
        assert found.value == 0 and found.high == -found.low and 1 / (clips + 3) < found.high < before
        lost = difference([Share(same.of_C - (np.arange(clips) == 0), same.of_C)], [Share(same.of_C, same.of_C)])
        assert clips <= 2 or lost.high - lost.low >= found.high - found.low, "one that differs makes nothing surer"
        before = found.high
        for most in (1.0, 5.0):
            whole = average([Share(most * same.of_C, same.of_C)] * 2, most)
            assert whole.value == whole.high == most and 0 <= whole.low < most * clips / (clips + 1)


def test_an_average_over_kinds_weighs_each_kind_alike() -> None:
    many, few = Share(np.array([90.0, 0]), np.array([100.0, 0])), Share(np.array([0.0, 1]), np.array([0.0, 10]))
    assert average([many, few]).value == pytest.approx(0.5)
