"""Drills: whatever a lesson says of a clip beyond its questions follows from the clip's truth too."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from mlb_batch.tiny.train.drills import answered_first, of_acts, of_flashes
from mlb_batch.tiny.train.lessons import last_talk
from mlb_batch.tiny.train.packing import Dialogue
from mlb_batch.tiny.words import NUMBERS
from mlb_batch.tiny.world import Clip, make_clip
from mlb_batch.vlm.choices import LETTERS


def full_clip(seed: int) -> Clip:
    """The first clip from this seed on that has several acts."""
    return next(clip for clip in (make_clip(one, 24) for one in range(seed, seed + 50)) if len(clip.truth.acts) > 1)


def acts_drills(clip: Clip, seed: int) -> dict[str, list[str]]:
    return {talk.kind: sentences(talk) for talk in of_acts(clip.truth, np.random.default_rng(seed))}


def sentences(talk: Dialogue) -> list[str]:
    assert talk.answer.endswith(".")
    return talk.answer.removesuffix(".").split(". ")


@pytest.mark.parametrize("seed", range(0, 500, 100))
def test_the_acts_are_told_backwards_and_each_with_its_neighbours(seed: int):
    clip = full_clip(seed)
    names = [act.name for act in clip.truth.acts]
    drills = acts_drills(clip, seed)
    assert drills["backwards"] == names[::-1]
    after = {f"after {one} {two}" for one, two in pairwise(names)}
    before = {f"before {two} {one}" for one, two in pairwise(names)}
    assert sorted(drills["neighbours"]) == sorted(after | before)


@pytest.mark.parametrize("seed", range(0, 500, 100))
def test_which_act_came_first_is_told_right_and_both_ways(seed: int):
    clip = full_clip(seed)
    start = {act.name: act.start for act in clip.truth.acts}
    told = [line for again in range(8) for line in acts_drills(clip, again)["orders"]]
    for line in told:
        pair, verdict = line.rsplit(" ", 1)
        one, other = pair.split(" before ")
        assert verdict == ("yes" if start[one] < start[other] else "no")
    assert {line.rsplit(" ", 1)[1] for line in told} == {"yes", "no"}


@pytest.mark.parametrize("seed", range(0, 500, 100))
def test_flashes_are_counted_and_told_by_their_place(seed: int):
    truth = make_clip(seed, 24).truth
    count, *told = sentences(of_flashes(truth))
    assert count == NUMBERS[len(truth.flashes)]
    assert told == [f"{flash.place} {flash.colour} {flash.shape}" for flash in truth.flashes]


def test_an_answer_before_its_letter_is_the_option_of_that_letter():
    for question in full_clip(7).questions:
        if question.choices:
            answer, letter = answered_first(question).answer.rsplit(" ", 1)
            assert question.choices[LETTERS.index(letter)] == answer and letter == question.answer


def test_the_last_lesson_asks_hard_kinds_more_often_and_drills_little_at_a_time():
    talks = [last_talk(full_clip(seed), np.random.default_rng(seed)) for seed in range(40)]
    kinds = [talk.kind for one in talks for talk in one]
    assert kinds.count("before") > kinds.count("first_colour") and kinds.count("after") > kinds.count("last_shape")
    drills = {"backwards", "neighbours", "orders", "flashes", "lettered"}
    assert {kind for kind in kinds if kind in drills} == drills
    assert all(sum(talk.kind in drills for talk in one) == 1 for one in talks)
