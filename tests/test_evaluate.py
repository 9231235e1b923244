"""`mlb-batch evaluate`: scoring by hand-made cases, intervals by simulation, whole evaluations on a random model."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from loopback import Handler, Server
from models import Spec, folder

from mlb_batch.cli import app, ended
from mlb_batch.errors import BudgetError, InputError, JobError, OutputError, SpecError, UserError
from mlb_batch.evaluate.cells import Cell, cells, short_names
from mlb_batch.evaluate.intervals import Share, average, difference, proportion
from mlb_batch.evaluate.items import Item
from mlb_batch.evaluate.job import evaluate
from mlb_batch.evaluate.judge import Judge, Question, _grade
from mlb_batch.evaluate.results import Answers, results
from mlb_batch.evaluate.scoring import caption_facts, named, normalised, right
from mlb_batch.evaluate.spec import EvalSpec, JudgeSpec
from mlb_batch.evaluate.summary import Counting, _in_order, costs, estimates
from mlb_batch.evaluate.svg import HEIGHT, Curve, Heat, Point, chart, heat_maps
from mlb_batch.evaluate.tables import Evaluation, markdown
from mlb_batch.spec import JobSpec
from mlb_batch.storage import open_store
from mlb_batch.video.write import write_mp4

LETTERS = ("a man", "a dog", "a red ball", "nothing")
DEEP = Spec(layers=8, heads=2, kv_heads=1, tied=True, side=8)


# Scoring.


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("B", 1), ("(B)", 1), ("B.", 1), ("Answer: C", 2), ("The best answer is: D", 3), ("the answer is b", 1),
        ("The correct option is (A).", 0), ("a dog", 1), ("I would say (C), since it is red", 2), ("E", None),
        ("either (A) or (B)", None),
        ("", None), ("A cat", None), ("Best option: (D", 3), ("nothing", 3), ("Because", None),
        ("B.A dog runs", 1), ("B:A dog", 1), ("C)the ball", 2), ('"B"', 1), ("<B>", 1), ("`B`", 1), ("\\boxed{B}", 1),
        ("Therefore, the answer is B.", 1), ("I think the answer is B because it barks", 1), ("My answer is B", 1),
        ("The right answer is A.", 0), ("The video shows a dog. The answer is (B)", 1), ("The letter is A", 0),
        ("The answer is B. (A) is a man, (C) a ball.", 1), ("the final answer is: **B**", 1),
        ("The answer is A dog that runs", None), ("It is not the case that option A fits", None),
        ("If the answer is B, so be it; the answer is C.", None), ("C.D.s are shown", None), ("e.g. a cat", None),
        ("The answer is a secret", None), ("A.", 0), ("I think the answer is Zebra", None),
        ("The correct answer is option B", 1), ("**C**", 2), ("Answer: **B**", 1), ("**(D)** nothing", 3),
        ("C or D", None), ("A or B", None), ("c or d", None), ("B, C and D are wrong", None),
        ("The answer is C or D", None), ("The answer is A cat", None), ("A cat is there", None), ("A's", None),
        ("B is wrong", None), ("A isn't right", None), ("B, a dog", 1), ("C, since D is wrong", 2), ("B. A and B", 1),
        ("A man walks", None), ("I think so", None), ("A dogged man", None),
        ("(A) is wrong", None), ("(B) is incorrect.", None), ("B) is wrong", None), ("B. is not right", None),
        ("Option (B) is false.", None), ("It is not (B).", None), ("None of them, not even (A).", None),
        ("(B) is wrong; the answer is C.", 2), ("(B) because (A) is wrong", 1), ("C: not (A), not (B).", 2),
        ("\\boxed{A} or \\boxed{B}", None), ("So it is $\\boxed{\\text{C}}$, not (A).", 2),
    ],
)  # fmt: skip
def test_which_option_an_answer_names(said: str, number: int | None) -> None:
    assert named(said, LETTERS) == number


@pytest.mark.parametrize("said", [
    "{}\n\nExplanation: he is outside.", "{} - {option}", "{} {option}", "{} is correct.", "{} is the correct answer.",
    "Option {} is correct.", "The answer is {} because he is seen doing it.", "The answer is {} as shown.",
    "Based on the video, the correct answer is **{}**.", "It shows him. **Answer:** {}", "So we have $\\boxed{{{}}}$.",
    "<answer>{}</answer>", "<answer>{}", "He is outside. <answer>{}. {option}</answer>",
])  # fmt: skip
def test_an_answer_is_read_alike_for_every_letter(said: str) -> None:
    options = ("walking the dog", "playing the guitar", "cooking dinner", "riding a bicycle")
    told = [said.format(letter, option=option) for letter, option in zip("ABCD", options, strict=True)]
    assert [named(one, options) for one in told] == [0, 1, 2, 3]


def test_options_that_say_the_same_or_nothing_are_named_by_letters() -> None:
    assert named("B", ("x", "", "x")) == 1 and named("", ("x", "", "x")) is None
    assert named("C", ("x", "", "x")) == 2 and named("x", ("x", "", "x")) is None
    twice = Item("i", "v", "choice", "?", "x", ("x", "y", "x"))
    assert right(twice, "A") and right(twice, "C") and not right(twice, "B") and not right(twice, "")


def test_an_option_may_begin_as_an_answer_does() -> None:
    options = ("answer the phone", "answering a call", "option trading", "play")
    assert [named(option, options) for option in options] == [0, 1, 2, 3]
    assert named("The answer is: answer the phone.", options) == 0 and named("The answer is D", options) == 3


@pytest.mark.parametrize("said", ["B", "{}", "B {}", "B. {}", "(B) {}", "(B) {}.", "The answer is B {}"])
@pytest.mark.parametrize("own", ["is not moving", "was wrong", "or so", "and C"])
def test_an_option_may_say_what_would_deny_its_letter(said: str, own: str) -> None:
    assert named(said.format(own), ("is moving", own, "stands still")) == 1


@pytest.mark.parametrize(
    ("said", "answer", "is_right"),
    [
        ("The Red.", "red", True), ("a red circle", "red circle", True), ("red", "blue", False), ("3", "three", True),
        ("Yes, he does.", "yes", True), ("No", "yes", False), ("yesterday", "yes", False),
        ("Top left", "top left", True),
        ("red circle", "red", False), ("", "red", False), ("12", "twelve", False),
        ("", "a", False), ("A.", "a", True), ("the", "a", False), ("", "?", False),
        ("लड़की", "लड़का", False), ("लड़का।", "लड़का", True), ("cafe\u0301", "Caf\u00e9", True), ("👍", "👎", False),
    ],
)  # fmt: skip
def test_open_answers_match_but_for_form(said: str, answer: str, is_right: bool) -> None:
    assert right(Item("i", "v", "open", "?", answer), said) == is_right


def test_an_answer_of_endless_digits_is_wrong_and_no_end_of_it_all() -> None:
    """Python reads no number of more than 4,300 digits."""
    two = Item("i", "v", "open", "?", "two")
    assert not right(two, "2" * 5000) and right(two, "002") and normalised("1" * 5000) == "1" * 5000


def test_normalising_is_stable() -> None:
    for text in ("A red, red Ball!", "the 3 dogs", "  ", "Über-Maß 10", "👍 !", "लड़का"):
        assert normalised(normalised(text)) == normalised(text)


def test_facts_of_a_caption() -> None:
    truth = "A red ring moves left. A blue square stays at the top left. A red circle flashes at the top left."
    said = "A red ring moves left. A blue square stays at the top right. A red ring moves left."
    found = caption_facts(said, truth)
    assert (found.hits, found.said, found.true) == (1, 3, 3)
    assert sorted(found.invented) == ["a blue square stays at the top right", "a red ring moves left"]
    assert sorted(found.missed) == ["a blue square stays at the top left", "a red circle flashes at the top left"]
    assert caption_facts(truth, truth).hits == 3 and caption_facts("", truth).said == 0
    cut = caption_facts("A red ring moves left. A blue square st", truth, cut=True)
    assert (cut.hits, cut.said, cut.invented, len(cut.missed)) == (1, 1, (), 2)
    assert caption_facts("A red ri", truth, cut=True).said == 0


@pytest.mark.parametrize("said", ["A red ring moves left!", "a  RED ring\nmoves left", "\tA red ring moves left . . ."])
def test_a_fact_is_the_same_whatever_its_case_its_blanks_and_its_closing_mark(said: str) -> None:
    found = caption_facts(said, "A red ring moves left.")
    assert (found.hits, found.said, found.missed) == (1, 1, ())
    cut = caption_facts(f"{said}! A blue ri", "A red ring moves left.", cut=True)
    assert (cut.hits, cut.said) == (1, 1)


# Intervals.


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


# Results.


def job() -> JobSpec:
    return JobSpec.from_dict({"input": {"videos": "/nowhere"}, "output": "/nowhere/out",
                              "prompts": [{"id": "q", "kind": "qa", "text": "?"}]})  # fmt: skip


def cell(name: str, rule: str, ratio: float = 0.25) -> Cell:
    return Cell(name, "m", rule, rule, ratio, job())


def answered(texts: dict[str, str], finish_reason: str = "stop", **numbers: float) -> Answers:
    base = dict.fromkeys(("flops_executed", "flops_planned", "flops_vanilla", "flops_prefill", "flops_scoring",
                          "num_prompt_tokens", "num_new_tokens", "num_visual_tokens", "num_kept_tokens",
                          "frames_read"), 1) | {"read_s": 0.5, "model_s": 0.25} | numbers  # fmt: skip
    said = {item: {**base, "text": text, "finish_reason": finish_reason} for item, text in texts.items()}
    return Answers(said, {"lost": "not_found"})


ITEMS = [
    Item("a", "v1", "open", "?", "red", tags={"kind": "colour", "hangs_on": "early"}),
    Item("b", "v1", "choice", "?", "two", ("one", "two"), tags={"kind": "count", "hangs_on": "any"}),
    Item("c", "v2", "open", "?", "blue", tags={"kind": "colour", "hangs_on": "any"}),
    Item("lost", "v3", "open", "?", "x", tags={"kind": "colour", "hangs_on": "any"}),
    Item("told", "v2", "caption", "?", "A red ring moves left. A blue ring moves left."),
]


def compared(counting: Counting) -> dict[tuple[str, str, str], dict[str, Any]]:
    every = [cell("none", "none", 1.0), cell("rand", "random"), cell("ours", "adatp")]
    said = {
        "none": answered({"a": "red", "b": "B", "c": "blue", "told": "A red ring moves left."}, flops_prefill=100),
        "rand": answered({"a": "blue", "b": "B", "c": "green", "told": "nothing."}, flops_prefill=27, flops_scoring=0),
        "ours": answered({"a": "Red.", "b": "(B)", "c": "green", "told": "A red ring moves left."}, flops_prefill=26),
    }
    rows = {one.name: results("made", one, ITEMS, said[one.name], None) for one in every}
    found = estimates(rows, every, counting)
    spent = costs(rows["ours"], rows["none"])
    assert (spent["answered"], spent["unanswered"], spent["unanswered_by_class"]) == (4, 1, {"not_found": 1})
    assert spent["llm_flops_share"] == pytest.approx(4 * 27 / (4 * 101)) and spent["ungraded"] == 0
    return {(row["cell"], row["metric"], row["group"]): row for row in found}


def test_half_a_sentence_of_a_caption_that_was_cut_invents_nothing() -> None:
    said = {"told": "A red ring moves left. A blue ri"}
    whole, cut = (results("made", cell("none", "none", 1.0), [ITEMS[4]], answers, None)[0]
                  for answers in (answered(said), answered(said, finish_reason="length")))  # fmt: skip
    assert (whole["hits"], whole["facts_said"], whole["invented"]) == (1, 2, ["a blue ri"])
    assert (cut["hits"], cut["facts_said"], cut["invented"], cut["missed"]) == (1, 1, [], ["a blue ring moves left"])


def test_answers_know_which_questions_they_were_given_to() -> None:
    row = {"video_id": "i", "uri": "/old/out/videos/world-1/clip.mp4", "prompt": "what?", "text": "x"}
    answers, item = Answers({"i": row}, {}), Item("i", "clip.mp4", "open", "what?", "x")
    more = Item("new", "clip.mp4", "open", "when?", "x")
    assert not list(answers.to_others([item, more], True, "world-1")) and not list(answers.to_others([item], True, ""))
    for other, alone, clips in ((replace(item, prompt="who?"), True, ""), (item, False, ""), (item, True, "world-2"),
                                (replace(item, video="b.mp4"), True, "world-1")):  # fmt: skip
        assert list(answers.to_others([other], alone, clips)) == ["i"]
    assert not list(answers.to_others([replace(item, video="moved.mkv")], True, ""))


def test_estimates_are_what_one_counts_by_hand() -> None:
    found = compared(Counting())
    assert found["none", "accuracy", "all"]["value"] == 3 / 4 and found["none", "accuracy", "all"]["questions"] == 4
    assert found["rand", "accuracy", "all"]["value"] == 1 / 4
    ours = found["ours", "accuracy", "all"]
    assert ours["value"] == 2 / 4 and ours["minus_none"] == -1 / 4 and ours["minus_random"] == 1 / 4
    assert (ours["better_than_random"], ours["worse_than_random"], ours["worse_than_none"]) == (1, 0, 1)
    assert ours["clips"] == 3 and ours["low"] < ours["value"] < ours["high"]
    assert found["ours", "accuracy", "early"]["value"] == 1 and found["rand", "accuracy", "early"]["value"] == 0
    assert found["none", "accuracy", "colour"]["value"] == pytest.approx(2 / 3)
    assert (found["none", "recall", "all"]["value"], found["none", "precision", "all"]["value"]) == (1 / 2, 1)
    assert np.isnan(found["none", "accuracy", "all"]["minus_none"])


def test_results_are_grouped_by_the_length_of_videos_where_a_benchmark_says_it() -> None:
    items = [replace(item, tags={**item.tags, "duration": item.video}) for item in ITEMS[:3]]
    one = cell("none", "none", 1.0)
    marked = {"none": results("made", one, items, answered({"a": "red", "b": "A", "c": "blue"}), None)}
    found = estimates(marked, [one], Counting())
    assert {row["group"]: row["value"] for row in found if row["by"] == "duration"} == {"v1": 0.5, "v2": 1.0}
    lasting = [replace(item, tags={"duration": s}) for item, s in zip(ITEMS, ("600", "15", "3600"), strict=False)]
    marked = {"none": results("made", one, lasting, answered({"a": "red", "b": "A", "c": "blue"}), None)}
    groups = [row["group"] for row in estimates(marked, [one], Counting()) if row["by"] == "duration"]
    assert groups == ["15", "600", "3600"]
    assert sorted(["9" * 5000, "60 s", "600 s", "7"], key=_in_order) == ["7", "60 s", "600 s", "9" * 5000]


def test_unanswered_questions_count_as_the_benchmark_says() -> None:
    apart = compared(Counting(unanswered="apart"))["none", "accuracy", "all"]
    assert apart["value"] == 1 and apart["questions"] == 3
    every, told = [cell("rand", "random"), cell("ours", "adatp")], {"a": "red", "b": "B"}
    said = {"rand": answered(told), "ours": answered({**told, "c": "blue"})}
    rows = {one.name: results("made", one, ITEMS, said[one.name], None) for one in every}
    for unanswered, better in (("wrong", 1), ("apart", 0)):  # what random never answered it has not got wrong
        found = estimates(rows, every, Counting(unanswered=unanswered))
        ours = next(row for row in found if (row["cell"], row["metric"], row["group"]) == ("ours", "accuracy", "all"))
        assert ours["better_than_random"] == better
    by_kind = compared(Counting(average="kind"))["ours", "accuracy", "all"]
    assert by_kind["value"] == pytest.approx((1 / 3 + 1) / 2)


def shown(given: EvalSpec, **more: Any) -> Evaluation:
    nothing: dict[str, Any] = {"cells": [], "estimates": [], "costs": {}, "refused": {}, "facts": {}}
    return Evaluation(spec=given, title="made", note="", asked="3 questions", clips=2, **nothing | more)


def test_tables_keep_right_answers_and_a_judges_scores_apart(endpoint: Endpoint, tmp_path: Path) -> None:
    """A judge gives both, a choice has no score, and both are called by their names."""
    one = cell("c", "none", 1.0)
    told = answered({"a": "red", "b": "B", "c": "x"})
    marked = {"c": results("made", one, ITEMS[:3], told, judge(endpoint, tmp_path))}
    for over in ("question", "kind"):
        found = estimates(marked, [one], Counting(average=over))
        spent = {"c": {**costs(marked["c"], marked["c"]), "peak_memory_mb": 0}}
        given = spec(tmp_path, methods=["none"])
        text = markdown(shown(given, cells=[one], estimates=found, costs=spent, average=over))
        by_kind = {part.splitlines()[0]: part for part in text.split("## ") if part.startswith("By kind")}
        shares, scores = by_kind["By kind of question: m, budget 100 %"], by_kind[
            "By kind of question: m, budget 100 %, judge's score (0 to 5)"]  # fmt: skip
        assert "| colour | 2 | 50.0 [" in shares and "| count | 1 | 100.0 [" in shares
        assert "| colour | 2 | 2.50 [" in scores and "count" not in scores
        assert ("## Accuracy, the mean over kinds" in text) == (over == "kind")
        assert ("## Judge's score (0 to 5), the mean over kinds" in text) == (over == "kind")


def test_tables_hold_no_markup_of_models_files_and_endpoints() -> None:
    one, bad = cell("c", "none", 1.0), "![](http://evil/p.png) [x](javascript:y) <img>\n# Results: `100` | 9"
    items = [replace(item, tags={"kind": bad, "hangs_on": bad}) for item in ITEMS[:3]]
    marked = {"c": results("made", one, items, answered({"a": "red", "b": "B", "c": "x"}), None)}
    given = EvalSpec.from_dict({"methods": ["none"], "output": "/nowhere"})
    spent = {"c": {**costs(marked["c"], marked["c"]), "peak_memory_mb": 0}}
    found = estimates(marked, [one], Counting())
    text = markdown(shown(given, cells=[one], estimates=found, costs=spent, refused={"d": bad}, judges=(bad,)))
    assert text.count("evil") == 4 and "](" not in text.replace("]\\(", "") and "<img" not in text
    assert "\n# Results" not in text and "`100`" not in text


def test_tables_cut_no_list_of_facts_and_mark_what_they_do_cut() -> None:
    facts = Counter({f"a large {colour} ring moves slowly to the left|": 2 for colour in "abcdefgh"})
    given = EvalSpec.from_dict({"methods": ["none"], "output": "/nowhere"})
    text = markdown(shown(given, refused={"d": "why " * 100}, facts={"c": (facts, Counter())}))
    (said,) = (line for line in text.splitlines() if line.startswith("| c |"))
    assert said.count("to the left/ (2)") == 8 and said.count("|") == 4
    assert "- `d`: " + ("why " * 75) + "...\n" in text


@pytest.mark.parametrize(("unanswered", "recall"), [("wrong", 0.4), ("apart", 0.8)])
def test_captions_are_compared_where_both_were_made(unanswered: str, recall: float) -> None:
    """A cell that makes no caption of what is hard has no better ones."""
    truth = "A red ring moves left. A blue ring moves left."
    items = [Item(str(n), f"v{n}", "caption", "?", truth) for n in range(10)]
    every = [cell("none", "none", 1.0), cell("ours", "adatp")]
    easy = {str(n): truth if n < 4 else "" for n in range(5)}
    hard = {str(n): "A green star moves up." for n in range(5, 10)}
    said = {"none": answered(easy | hard), "ours": answered(easy)}
    rows = {one.name: results("made", one, items, said[one.name], None) for one in every}
    found = estimates(rows, every, Counting(unanswered=unanswered))
    by_metric = {row["metric"]: row for row in found if row["cell"] == "ours" and row["by"] == "all"}
    assert by_metric["precision"]["value"] == 1 and by_metric["recall"]["value"] == pytest.approx(recall)
    assert by_metric["precision"]["minus_none"] == by_metric["recall"]["minus_none"] == 0


def test_a_difference_is_counted_on_the_questions_that_both_answered() -> None:
    """Where a cell could not answer what is hard, it is not better for it."""
    items = [Item(str(n), f"v{n}", "open", "?", "yes", tags={"kind": "easy" if n < 5 else "hard"}) for n in range(10)]
    every = [cell("none", "none", 1.0), cell("ours", "adatp")]
    said = {"none": answered({str(n): "yes" if n < 5 else "no" for n in range(10)}),
            "ours": answered({str(n): "yes" for n in range(4)} | {"4": "no"})}  # fmt: skip
    rows = {one.name: results("made", one, items, said[one.name], None) for one in every}
    for over in ("question", "kind"):
        found = estimates(rows, every, Counting("apart", over))
        (ours,) = [row for row in found if (row["cell"], row["metric"], row["by"]) == ("ours", "accuracy", "all")]
        assert ours["value"] == pytest.approx(0.8) and ours["minus_none"] == pytest.approx(-0.2)
        assert (ours["better_than_none"], ours["worse_than_none"]) == (0, 1)


# The file.


def spec(tmp_path: Path, **more: Any) -> EvalSpec:
    return EvalSpec.from_dict({"methods": ["none", "random"], "output": str(tmp_path / "out"), **more})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mehtods": ["none"]}, "mehtods"), ({"benchmark": "wordl"}, "world"), ({"ratios": [1.5]}, "ratios"),
        ({"methods": ["adatp", "adatp"]}, "label"), ({"methods": []}, "methods"),
        ({"benchmark": "mlvu"}, "4_count.json"), ({"job": {"budget": {"ratio": 0.5}}}, "job.budget"),
        ({"job": {"prune": {"method": "adatp"}}}, "job.prune.method"),
        ({"benchmark": {"name": "world", "videos": "/x"}}, "neither"), ({"ratios": [0.5, 0.5]}, "twice"),
        ({"methods": [{"method": "adatp", "label": "../up"}]}, "label"),
        ({"job": {"prune": None}}, "job.prune: must be a mapping"), ({"job": {"prune": "adatp"}}, "job.prune"),
        ({"job": {"clips": {"every_s": 60}}}, "job.clips: a question is about its whole video"),
        ({"benchmark": {"name": "world", "world": {"frames": 16, "least_flash": 17}}}, "world: least_flash"),
        ({"benchmark": {"name": "world-image", "world": {"max_acts": 2}}}, "world.max_acts goes with world"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_is_said_in_a_line(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError, match=says.replace(".", r"\.")):
        spec(tmp_path, **change)


def test_what_is_told_of_an_evaluation_holds_no_webhook(tmp_path: Path) -> None:
    job = {"frames": {"count": 8}, "notify": {"webhook": "https://hooks.example.com/secret"}}
    told = spec(tmp_path, job=job).told()
    assert "secret" not in json.dumps(told) and told["job"]["frames"] == {"count": 8}
    assert told["methods"][0]["method"] == "none" and spec(tmp_path).told()["job"] == {}


def test_environment_variables_stand_for_places_as_in_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "/data")
    given = spec(
        tmp_path, benchmark={"name": "mlvu", "annotations": ["${DATA}/1_plotQA.json"], "videos": "${DATA}/videos"},
        models=["${DATA}/tiny", {"id": "${DATA}/other"}], judge={"url": "https://judge${DATA}", "model": "${DATA}"},
        methods=[{"method": "adatp", "feature_model": "${DATA}/pair"}],
    )  # fmt: skip
    assert (given.benchmark.annotations, given.benchmark.videos) == (("/data/1_plotQA.json",), "/data/videos")
    assert [one.id for one in given.models] == ["/data/tiny", "/data/other"]
    assert given.methods[0].feature_model == "/data/pair"
    assert given.judge and (given.judge.url, given.judge.model) == ("https://judge/data", "${DATA}")
    with pytest.raises(SpecError, match=r"benchmark\.videos: the environment variable ABSENT is not set"):
        spec(tmp_path, benchmark={"name": "mlvu", "annotations": "a.json", "videos": "${ABSENT}"})


def test_a_mistake_in_what_is_passed_through_is_found_before_anything_runs(tmp_path: Path) -> None:
    wrong = spec(tmp_path, job={"frames": {"count": "many"}})
    with pytest.raises(SpecError, match=r"job\.frames\.count"):
        cells(wrong, str(tmp_path), str(tmp_path))


def test_cells_are_models_times_methods_times_budgets(tmp_path: Path) -> None:
    given = spec(
        tmp_path, models=["embedded:tiny", "/models/tiny/"], ratios=[0.5, 0.1], asked="alone",
        methods=["none", "random", {"method": "adatp", "label": "plain", "options": {"global": "none"}}],
        job={"frames": {"count": 5}, "prune": {"selections": 0.5}},
    )  # fmt: skip
    every = cells(given, "/out", "/videos")
    assert len(every) == 2 * (1 + 2 * 2) and len({one.name for one in every}) == len(every)
    last = next(one for one in every if one.name == "tiny-2--plain--0.1")
    assert (last.rule, last.job.budget.ratio, last.job.frames.count) == ("adatp", 0.1, 5)
    assert last.job.prune.options == {"global": "none"} and last.job.prune.selections == 0.5
    assert last.over("/out/m.jsonl").job.input.manifest == "/out/m.jsonl" and last.job.input.allow == ("/videos",)
    assert last.job.output.uri == "/out/cells/tiny-2--plain--0.1"
    assert short_names(["a/b", "c/b", "embedded:tiny"]) == ["b-1", "b-2", "tiny"]


def test_no_two_cells_have_one_name(tmp_path: Path) -> None:
    assert short_names(["/m/b-1", "a/b", "c/b"]) == ["b-1", "b-2", "b-3"] and short_names(["/m/模型"]) == ["model"]
    near = spec(tmp_path, methods=["random"], ratios=[0.25, 0.2500001])
    with pytest.raises(SpecError, match=r"2 cells would be called tiny--random--0\.25; give other labels, or ratios"):
        cells(near, "/out", "/videos")


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("adatpp", r"^methods\.adatpp\.method: 'adatpp' is not a method; .*did you mean 'adatp'"),
        ({"method": "adatp", "label": "plain", "options": {"globl": "none"}}, r"^methods\.plain\.options.*globl"),
        (
            {"method": "adatp", "feature_model": "/nowhere"},
            r"^methods\.adatp\.feature_model: '/nowhere' is(?!.*(model\.id|prune\.))",
        ),
    ],
)
def test_a_method_that_is_none_is_said_before_any_cell_runs(tmp_path: Path, method: Any, says: str) -> None:
    annotate = Annotate()
    with pytest.raises(UserError, match=says):
        compare(small(tmp_path, methods=["none", method]), annotate)
    assert annotate.jobs == [] and not (tmp_path / "out").exists(), "no world was made for it"


def test_a_stopped_evaluation_says_so_and_writes_no_tables(tmp_path: Path) -> None:
    def stopped(job: JobSpec) -> dict[str, Any]:
        return {"fingerprint": "f", "stopped": "SIGTERM", "exit_code": 143, "rows_written": 0}

    found = evaluate(small(tmp_path), stopped, lambda text: None)
    assert (found["stopped"], found["exit_code"]) == ("SIGTERM", 143)
    assert not (tmp_path / "out" / "README.md").exists()


def test_what_a_running_evaluation_asks_is_not_changed_by_another(tmp_path: Path) -> None:
    asked: list[bytes] = []

    def stopped(job: JobSpec) -> dict[str, Any]:
        assert job.input.manifest
        asked.append(Path(job.input.manifest).read_bytes())
        return {"fingerprint": "f", "stopped": "SIGTERM", "exit_code": 143, "rows_written": 0}

    def meanwhile(job: JobSpec) -> dict[str, Any]:
        evaluate(small(tmp_path, asked="together"), stopped, lambda text: None)
        return stopped(job)

    for annotate in (stopped, meanwhile):
        evaluate(small(tmp_path), annotate, lambda text: None)
    assert asked[0] == asked[2] != asked[1]


EXAMPLES = sorted((Path(__file__).parents[1] / "jobs").glob("*.yaml"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_the_examples_are_good_files(file: Path) -> None:
    if file.stem.startswith("evaluate"):
        assert cells(EvalSpec.load(file), "/out", "/videos")
    else:
        assert JobSpec.load(file).prompts


def test_settings_step_into_short_forms() -> None:
    file = EXAMPLES[0].with_name("evaluate.yaml")
    given = EvalSpec.load(file, ["methods.4.options.schedule=steep", "methods.0.label=all", "models.0.dtype=float32"])
    assert (given.methods[4].method, given.methods[4].options) == ("adatp", {"schedule": "steep"})
    assert given.methods[0].name == "all" and given.methods[1].name == "random"
    assert (given.models[0].id, given.models[0].dtype) == ("embedded:tiny", "float32")
    alone = EvalSpec.load(file, ["models=a", "models.device=cpu", "benchmark=world-image", "benchmark.limit=2"])
    assert (alone.models[0].id, alone.models[0].device) == ("a", "cpu")
    assert (alone.benchmark.name, alone.benchmark.limit) == ("world-image", 2)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("ratios.0.x=1", r"--set ratios\.0\.x=1: ratios\.0 is a plain value, it has no keys below it"),
        ("methods.0.method.x=1", r"methods\.0\.method is a plain value"),
        ("methods.first.label=x", "first.label=x: methods is a list of 6: use a number from 0"),
    ],
)  # fmt: skip
def test_a_setting_below_a_plain_value_is_refused_in_a_line(setting: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        EvalSpec.load(EXAMPLES[0].with_name("evaluate.yaml"), [setting])


# Pictures.


def test_charts_are_xml_with_a_curve_and_a_name_for_each_method() -> None:
    curves = [Curve(name, tuple(Point(x, y, y - 0.1, y + 0.1) for x in (0.1, 0.5))) for name, y in
              (("adatp <&>", 0.8), ("random", 0.8))]  # fmt: skip
    root = ElementTree.fromstring(chart("t", "x", "y", curves, Point(1.0, 0.9, 0.88, 0.92)))
    texts = [one.text for one in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"adatp <&>", "random", "unpruned", "50 %"} <= set(texts)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}polyline"))) == 2
    names = [one for one in root.iter("{http://www.w3.org/2000/svg}text") if one.text in ("adatp <&>", "random")]
    assert abs(float(names[0].get("y", 0)) - float(names[1].get("y", 0))) >= 14, "names don't lie over each other"
    same = chart("one point", "x", "y", [Curve("a", (Point(0.5, 0.5, 0.5, 0.5),))])
    assert "NaN" not in same and ElementTree.fromstring(same) is not None


def test_the_names_of_many_curves_that_end_alike_stay_in_the_picture() -> None:
    for value in (0.1, 0.9):
        curves = [Curve(f"m{n}", (Point(0.3, value, 0.0, 1.0),)) for n in range(13)]
        texts = ElementTree.fromstring(chart("t", "x", "y", curves)).iter("{http://www.w3.org/2000/svg}text")
        names = sorted(float(one.get("y", 0)) for one in texts if (one.text or "").startswith("m"))
        assert len(names) == 13 and names[0] > 0 and names[-1] < HEIGHT - 5
        assert all(below - above >= 14 for above, below in pairwise(names))


def test_the_longest_name_that_a_method_may_have_is_not_cut_off() -> None:
    label = "plain-adatp.with_a-quite-long-label_of.60-signs-0123456789ab"
    root = ElementTree.fromstring(chart("t", "x", "y", [Curve(label, (Point(0.3, 0.5, 0.4, 0.6),))]))
    (name,) = (one for one in root.iter("{http://www.w3.org/2000/svg}text") if one.text == label)
    assert len(label) == 60 and float(root.get("width", 0)) - float(name.get("x", 0)) >= 60 * 7


def test_heat_maps_are_white_where_even() -> None:
    root = ElementTree.fromstring(heat_maps("t", [Heat("h", [[1.0, 4.0, 0.25]], ["layer 1"])], neutral=1.0))
    cells_drawn = [one.get("fill") for one in root.iter("{http://www.w3.org/2000/svg}rect")][1:]
    assert cells_drawn == ["#ffffff", "#b2182b", "#2166ac"]


# The judge: a real server on this machine.


class Endpoint(Server):
    """An OpenAI-compatible endpoint that finds an answer right when it holds the truth."""

    def __init__(self) -> None:
        super().__init__(_Chat)
        self.url = f"http://localhost:{self.port}/v1"
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.fail_first, self.fail_with = 0, 503
        self.closed = threading.Event()

    def reply(self, body: dict[str, Any]) -> tuple[int, Any]:
        if self.fail_first:
            self.fail_first -= 1
            return self.fail_with, {}
        if body["model"] == "none":
            return 404, {"error": "no model none"}
        told = dict(line.split(": ", 1) for line in body["messages"][1]["content"].splitlines() if ": " in line)
        if told["Predicted answer"] == "rude":
            return 400, {"error": "content policy"}
        if told["Predicted answer"] == "unpaid":
            return 402, {"error": "no credit left"}
        if told["Predicted answer"] == "deep":
            return 200, b"[" * 100_000
        if told["Predicted answer"] == "stop":
            os.kill(os.getpid(), signal.SIGTERM)
        if told["Predicted answer"] == "babble" or body["model"] == "mute":
            return 200, {"choices": [{"message": {"content": "I can't say."}}]}
        is_right = told["Correct answer"] in told["Predicted answer"]
        said = f"{{'pred': '{'yes' if is_right else 'no'}', 'score': {4 if is_right else 1}}}"
        model = "\ud800" if told["Predicted answer"] == "x by half a sign" else "judge-2026-01"
        return 200, {"model": model, "choices": [{"message": {"content": said}}]}

    def blanks_before(self, body: dict[str, Any]) -> int:
        return 20 if "Predicted answer: x by and by" in body["messages"][1]["content"] else 0

    def __exit__(self, *raised: object) -> None:
        self.closed.set()
        super().__exit__(*raised)


class _Chat(Handler):
    server: Endpoint

    def do_POST(self) -> None:
        endpoint, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        endpoint.asked.append(body)
        endpoint.keys.append(self.headers.get("Authorization", ""))
        status, answer = endpoint.reply(body)
        self.send_response(status)
        self.end_headers()
        with suppress(ConnectionError):  # who asked may have left
            for _ in range(endpoint.blanks_before(body)):
                self.wfile.write(b" ")
                endpoint.closed.wait(0.1)
            self.wfile.write(answer if isinstance(answer, bytes) else json.dumps(answer).encode())


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint() as one:
        yield one


def judge(endpoint: Endpoint, tmp_path: Path, **more: Any) -> Judge:
    return Judge(JudgeSpec(url=endpoint.url, model="judge", **more), open_store(str(tmp_path)))


def test_a_verdict_is_asked_for_once_and_says_who_gave_it(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret\n")  # read from a file, it ends with its line
    good, bad = Question("who?", "a man", "it is a man", "match"), Question("who?", "a man", "a dog", "match")
    given = judge(endpoint, tmp_path, key_env="JUDGE_KEY").verdicts([good, bad, good])
    assert (given[good.key].right, given[good.key].score, given[bad.key].right) == (True, 4.0, False)
    assert len(endpoint.asked) == 2 and set(endpoint.keys) == {"Bearer secret"}
    assert endpoint.asked[0]["model"] == "judge" and endpoint.asked[0]["temperature"] == 0
    again = judge(endpoint, tmp_path)
    assert again.verdicts([good, bad]) == given and len(endpoint.asked) == 2
    assert again.names() == (f"judge (judge-2026-01) at {endpoint.url}",)
    assert b"secret" not in (tmp_path / "verdicts.parquet").read_bytes()
    (tmp_path / "verdicts.parquet").write_bytes(b"PAR1")
    with pytest.raises(OutputError, match=r"verdicts\.parquet is damaged .*: delete it"):
        judge(endpoint, tmp_path)


@pytest.mark.parametrize("status", [408, 409, 425, 429, 503])
def test_an_endpoint_that_hiccups_is_asked_again_and_one_that_babbles_gives_no_verdict(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr("mlb_batch.evaluate.judge.PAUSE_S", 0.01)
    endpoint.fail_first, endpoint.fail_with = 1, status
    good, babble = Question("?", "x", "x", "match"), Question("?", "x", "babble", "match")
    given = judge(endpoint, tmp_path).verdicts([good, babble])
    assert given[good.key].right and babble.key not in given and len(endpoint.asked) == 3


def test_an_answer_is_waited_for_as_long_as_is_said_whatever_it_sends_meanwhile(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy keeps a connection open with a blank now and then: the silence between two is never long."""
    monkeypatch.setattr("mlb_batch.evaluate.judge.PAUSE_S", 0.0)
    good, slow = Question("?", "x", "x", "match"), Question("?", "x", "x by and by", "match")
    assert judge(endpoint, tmp_path).verdicts([good])[good.key].right  # with all the time that it may want
    given = judge(endpoint, tmp_path, timeout_s=0.5).verdicts([good, slow])
    assert good.key in given and slow.key not in given and len(endpoint.asked) == 1 + 3
    with pytest.raises(JobError, match=r"\(no whole answer within judge\.timeout_s, 0\.5 s\)"):
        judge(endpoint, tmp_path / "new", timeout_s=0.5).verdicts([slow])


@pytest.mark.parametrize(("last", "ends"), [("unpaid", SpecError), ("stop", SystemExit)])
def test_verdicts_that_were_given_are_kept_however_the_rest_ends(
    endpoint: Endpoint, tmp_path: Path, last: str, ends: type[BaseException]
) -> None:
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as in the command
    given = [Question("?", "x", f"x {number}", "match") for number in range(9)]
    try:
        with pytest.raises(ends):
            judge(endpoint, tmp_path, at_once=1).verdicts([*given, Question("?", "x", last, "match")])
    finally:
        signal.signal(signal.SIGTERM, before)
    endpoint.asked.clear()
    assert len(judge(endpoint, tmp_path).verdicts(given)) == 9 and endpoint.asked == []


def test_a_reply_that_is_nested_too_deep_or_half_a_sign_costs_no_other_verdict(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlb_batch.evaluate.judge.PAUSE_S", 0.0)
    good, deep, half = (Question("?", "x", said, "match") for said in ("x", "deep", "x by half a sign"))
    given = judge(endpoint, tmp_path).verdicts([deep, good, half])
    assert given[good.key].right and deep.key not in given and given[half.key].version == "?"
    assert judge(endpoint, tmp_path).verdicts([good, half]) == given


def test_a_question_that_the_endpoint_refuses_stays_ungraded_and_only_where_it_refuses_all_is_it_a_mistake(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    good, rude = Question("?", "x", "x", "match"), Question("?", "x", "rude", "match")
    with pytest.raises(SpecError, match=r"grades nothing: HTTP 400: .*content policy"):
        judge(endpoint, tmp_path).verdicts([rude])
    given = judge(endpoint, tmp_path).verdicts([rude, good])
    assert given[good.key].right and rude.key not in given


@pytest.mark.parametrize(
    ("said", "grade"),
    [
        ('{"pred": "yes", "score": 4}', (True, 4.0)), ("{'pred': 'no', 'score': 0}", (False, 0.0)),
        ('```json\n{"pred": "no",\n "score": 1.5}\n```', (False, 1.5)), ("**Pred:** yes. **Score:** 5/5", (True, 5.0)),
        ("pred is no, score is 2", (False, 2.0)), ("Pred yes, score 3", (True, 3.0)), ("a score of 2", (False, 2.0)),
        ("Score (0-5): 4", (True, 4.0)), ('{"score": 2}', (False, 2.0)),
        ('<think>I am to reply like {"pred": "yes", "score": 4}.</think>\n{"pred": "no", "score": 0}', (False, 0.0)),
        ('I am to reply like {"pred": "yes", "score": 4}; so: {"pred": "no", "score": 1}', (False, 1.0)),
        ('<think>I am to reply like {"pred": "yes", "score": 4}', None), ('{"pred": "yes", "score": -1}', None),
        ('{"pred": "yes", "score": 45}', None), ('{"pred": "yes"}', None), ("", None), ("It scored highly.", None),
    ],
)  # fmt: skip
def test_a_grade_is_read_as_it_is_said_last(said: str, grade: tuple[bool, float] | None) -> None:
    assert _grade(said) == grade


def test_a_grade_is_found_however_much_is_said_around_it() -> None:
    """In one pass: behind "score" a reply may go on without end, and a verdict may be explained at length."""
    for endless in ("score" + " " * 20_000, "score" + "(" * 20_000, "score(" * 20_000, "pred is" + "\n" * 20_000):
        begun_s = time.process_time()
        assert _grade(endless) is None and _grade(f'{{"pred": "yes", "score": 4}} {endless}') == (True, 4.0)
        assert time.process_time() - begun_s < 1


def test_an_endpoint_that_is_gone_ends_the_evaluation_and_is_not_waited_for_answer_by_answer(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlb_batch.evaluate.judge.PAUSE_S", 0.0)
    one = judge(endpoint, tmp_path, at_once=2)
    one.greet()
    known = len(endpoint.asked)
    endpoint.fail_first = 10**6
    many = [Question("?", "x", f"x {number}", "match") for number in range(60)]
    with pytest.raises(JobError, match=r"gives no verdict any more \(HTTP 503.*run the same command again"):
        one.verdicts(many)
    assert len(endpoint.asked) - known <= 3 * 6, "of those that were on their way when it was given up"
    endpoint.fail_first = 0
    again = judge(endpoint, tmp_path, at_once=2)
    again.greet()
    assert endpoint.asked[-1]["messages"][1] != endpoint.asked[0]["messages"][1], "it is greeted once"
    assert all(question.key in again.verdicts(many) for question in many)


def test_a_judge_that_cannot_grade_is_found_before_anything_is_answered(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlb_batch.evaluate.judge.PAUSE_S", 0.0)
    annotate, given = Annotate(), {"url": endpoint.url, "model": "none"}
    with pytest.raises(SpecError, match=r"HTTP 404: .*no model none.*; check judge\.model and its key"):
        compare(small(tmp_path, judge=given), annotate)
    with pytest.raises(SpecError, match="grades nothing: it said I can't say"):
        compare(small(tmp_path, judge={**given, "model": "mute"}), annotate)
    gone = Endpoint()
    gone.server_close()
    with pytest.raises(JobError, match=r"gives no verdict any more \(.*onnect"):
        compare(small(tmp_path, judge={**given, "url": gone.url}), annotate)
    assert annotate.jobs == [] and not list((tmp_path / "out").glob("manifest*"))


@pytest.mark.parametrize("url", ["ftp://host/v1", "http://user:pw@host/v1", "https://host/../v1", "file:///etc"])
def test_a_judge_lives_at_a_plain_web_address(tmp_path: Path, url: str) -> None:
    with pytest.raises(SpecError, match=r"judge\.url"):
        given = spec(tmp_path, judge={"url": url, "model": "m"}).judge
        assert given
        Judge(given, open_store(str(tmp_path)))


def test_judged_answers_have_a_row_an_aspect_and_twins_are_graded_once(endpoint: Endpoint, tmp_path: Path) -> None:
    tags = {"aspects": "consistency"}
    items = [
        Item("g", "v", "judged", "what?", "a dog", tags={"aspects": "correctness,detail"}),
        Item("t.1", "v", "judged", "is it?", "a dog", tags={**tags, "twin": "t.2"}),
        Item("t.2", "v", "judged", "which?", "a dog", tags={**tags, "twin": "t.1"}),
        Item("o", "v", "open", "who?", "man"), Item("n", "v", "open", "who?", "babble"),
    ]  # fmt: skip
    said = answered({"g": "a dog runs", "t.1": "a dog", "t.2": "a cat", "o": "it is a man", "n": "babble"})
    rows = results("made", cell("c", "none"), items, said, judge(endpoint, tmp_path))
    marks = [(row["item"], row["task"], row["points"], row["score"]) for row in rows]
    assert marks == [("g", "correctness", 1, 4), ("g", "detail", 1, 4), ("t.1", "consistency", 1, 4),
                     ("t.2", "consistency", -1, -1), ("o", "open", 1, 4), ("n", "open", -1, -1)]  # fmt: skip
    assert sum(row["first"] for row in rows) == 5
    assert costs(rows, None)["ungraded"] == 1, "the babbled one: what was graded with its twin is graded"
    twin = next(body for body in endpoint.asked if "consistency" in body["messages"][0]["content"])
    assert "a dog" in twin["messages"][1]["content"] and "a cat" in twin["messages"][1]["content"]
    missing = results("made", cell("c", "none"), [*items, Item("lost", "w", "judged", "?", "x", tags={
        "aspects": "detail"})], said, judge(endpoint, tmp_path))  # fmt: skip
    for unanswered, mean in (("apart", 4.0), ("wrong", 3.2)):
        (score,) = [row for row in estimates({"c": missing}, [cell("c", "none")], Counting(unanswered))
                    if (row["metric"], row["by"]) == ("score", "all")]  # fmt: skip
        assert score["value"] == pytest.approx(mean)
    plain = results("made", cell("c", "none"), items, said, None)
    assert [row["points"] for row in plain] == [-1, -1, -1, -1, 0, 1], "without a judge, by match"


# Whole evaluations.


class Annotate:
    """`run`, and how often it was called; it can fail like a job whose storage went away."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.jobs: list[str] = []
        self._fail_at = fail_at

    def __call__(self, job: JobSpec) -> dict[str, Any]:
        from mlb_batch.run import run

        self.jobs.append(job.name)
        if len(self.jobs) == self._fail_at:
            raise JobError("the storage is gone")
        return run(job)


def small(tmp_path: Path, **more: Any) -> EvalSpec:
    given: dict[str, Any] = {
        "benchmark": {"name": "world", "world": {"clips": 3, "frames": 8, "questions": 2}},
        "models": [{"id": str(folder(DEEP)), "device": "cpu"}],
        "methods": ["none", "random", {"method": "adatp", "feature_model": None}],
        "ratios": [0.6],
        "job": {"frames": {"count": 8}, "generate": {"max_new_tokens": 4}, "prune": {"selections": 1.0}},
        "output": str(tmp_path / "out"),
    }
    return EvalSpec.from_dict({**given, **more})


def compare(given: EvalSpec, annotate: Annotate) -> dict[str, Any]:
    return evaluate(given, annotate, lambda text: None)


def rows(tmp_path: Path) -> list[dict[str, Any]]:
    return pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()


def said(tmp_path: Path) -> dict[tuple[str, str], str]:
    return {(row["method"], row["item"]): row["said"] for row in rows(tmp_path)}


def test_an_evaluation_from_the_file_to_the_tables_and_the_second_does_nothing(
    ray_cluster: None, tmp_path: Path
) -> None:
    given, first = small(tmp_path, bias={"clips": 2}), Annotate()
    found = compare(given, first)
    assert (found["exit_code"], found["cells"], found["rows_written"], len(first.jobs)) == (0, 3, 27, 3)
    out = tmp_path / "out"
    results_before, text = rows(tmp_path), (out / "README.md").read_text()
    assert len(results_before) == 27 and all(row["answered"] for row in results_before)
    assert "6 questions and 3 captions on 3 clips" in text
    by_cell = {row["cell"]: row for row in json.loads((out / "summary.json").read_text())["estimates"]
               if (row["metric"], row["by"]) == ("accuracy", "all")}  # fmt: skip
    for name, row in by_cell.items():
        own = [one["points"] for one in results_before if one["cell"] == name and one["kind"] != "caption"]
        assert row["value"] == pytest.approx(sum(own) / 6) and row["questions"] == 6 and f"| {row['method']} |" in text
    told = json.loads((out / "summary.json").read_text())["costs"]
    shares = {name: cost["llm_flops_share"] for name, cost in told.items()}
    model = next(iter(by_cell)).partition("--")[0]
    assert shares[f"{model}--none"] == 1 and all(0.4 < shares[f"{model}--{m}--0.6"] <= 0.6 for m in ("random", "adatp"))
    assert all(cost["peak_memory_mb"] > 50 for cost in told.values()), "Ray runs under this process here"
    for name in (f"accuracy-{model}.svg", f"bias-{model}.svg", f"bias-{model}-places.svg", f"kept-{model}.svg"):
        ElementTree.fromstring((out / name).read_text())
        assert f"({name})" in text
    assert "grey" in text and (out / "bias.parquet").exists() and (out / "summary.parquet").exists()
    drawn = (out / f"kept-{model}.svg").read_text()
    assert "adatp at 60 % (9 answers)" in drawn and "random at 60 %" in drawn and "plain top" in drawn
    again = Annotate()
    assert compare(given, again)["rows_written"] == 0 and again.jobs == []
    assert rows(tmp_path) == results_before and (out / "README.md").read_text() == text
    world = {"clips": 3, "frames": 8, "questions": 2}
    for change in ({"seed": 1}, {"max_acts": 1}):  # its clips would be scored by these clips' answers
        with pytest.raises(OutputError, match=r"holds answers to other questions.*'000000-0'.*an output of its own"):
            compare(small(tmp_path, benchmark={"name": "world", "world": {**world, **change}}), again)
    with pytest.raises(OutputError, match="asked in another way"):
        compare(small(tmp_path, asked="together"), again)
    assert again.jobs == [] and len(list(out.glob("manifest*"))) == 1, "what was refused left no questions behind"
    fewer = compare(small(tmp_path, benchmark={"name": "world", "world": {**world, "clips": 2}}), again)
    assert (fewer["answers"], fewer["errors"]) == (18, 0), "of what was asked now"
    (out / "memory.json").write_text("[1")
    with pytest.raises(OutputError, match=r"memory\.json is damaged .*: delete it"):
        compare(given, again)


@pytest.mark.slow
def test_an_evaluation_that_broke_off_goes_on_where_it_was(ray_cluster: None, tmp_path: Path) -> None:
    two = {"methods": ["none", "random"]}
    with pytest.raises(JobError):
        compare(small(tmp_path, **two), Annotate(fail_at=2))
    second = Annotate()
    found = compare(small(tmp_path, **two), second)
    assert len(second.jobs) == 1 and found["exit_code"] == 0 and found["rows_written"] == 9
    more, world = Annotate(), {"clips": 4, "frames": 8, "questions": 2}
    grown = compare(small(tmp_path, methods=["none"], benchmark={"name": "world", "world": world}), more)
    assert grown["rows_written"] == 3 and len(more.jobs) == 1, "more clips add only their own answers"


@pytest.mark.slow
def test_asked_together_or_alone_the_unpruned_model_says_the_same(ray_cluster: None, tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    compare(small(alone, methods=["none"]), Annotate())
    compare(small(together, methods=["none"], asked="together"), Annotate())
    assert said(alone) == said(together) and len(said(alone)) == 9


@pytest.mark.slow
def test_videos_that_are_missing_are_unanswered_and_counted_apart(ray_cluster: None, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    write_mp4(videos / "v_here.mkv", np.zeros((6, 16, 16, 3), np.uint8), fps=4)
    asked = [{"video_name": name, "question": "is it?", "question_id": name, "answer": "yes", "type": 3}
             for name in ("here", "gone")]  # fmt: skip
    (tmp_path / "qa.json").write_text(json.dumps(asked))
    given = {"name": "activitynetqa", "annotations": str(tmp_path / "qa.json"), "videos": str(videos)}
    found = compare(small(tmp_path, benchmark=given, methods=["none"]), Annotate())
    assert (found["exit_code"], found["answers"], found["errors"]) == (3, 1, 1)
    by_item = {row["item"]: row for row in rows(tmp_path)}
    assert "2 questions on 2 clips" in (tmp_path / "out/README.md").read_text()
    assert by_item["here"]["answered"] and not by_item["gone"]["answered"]
    assert by_item["gone"]["error_class"] == "not_found" and "not_found 1" in (tmp_path / "out/README.md").read_text()
    (row,) = [one for one in json.loads((tmp_path / "out" / "summary.json").read_text())["estimates"]
              if one["by"] == "all"]  # fmt: skip
    assert row["questions"] == 1, "this benchmark scores what was answered"
    again = Annotate()
    assert compare(small(tmp_path, benchmark=given, methods=["none"]), again)["exit_code"] == 3
    write_mp4(videos / "v_gone.mp4", np.zeros((6, 16, 16, 3), np.uint8), fps=4)
    found = compare(small(tmp_path, benchmark=given, methods=["none"]), again)
    assert (found["exit_code"], found["answers"], found["rows_written"]) == (0, 2, 1), "it came after all"
    job = {"limits": {"max_error_share": 0.5}, **small(tmp_path).job}
    (videos / "v_gone.mp4").unlink()
    allowed = small(tmp_path / "allowed", benchmark=given, methods=["none"], job=job)
    assert compare(allowed, Annotate())["exit_code"] == 0


def test_bias_is_measured_last_and_on_videos_that_are_there(tmp_path: Path) -> None:
    """What can't be measured keeps no table of what was answered from being written."""
    (tmp_path / "videos").mkdir()
    write_mp4(tmp_path / "videos" / "v_7.mp4", np.zeros((4, 16, 16, 3), np.uint8), fps=4)
    asked = [{"video_name": str(n), "question": "is it?", "question_id": str(n), "answer": "yes", "type": 3}
             for n in range(20)]  # fmt: skip
    (tmp_path / "qa.json").write_text(json.dumps(asked))
    benchmark = {"name": "activitynetqa", "annotations": str(tmp_path / "qa.json"), "videos": str(tmp_path / "videos")}
    given = small(tmp_path, benchmark=benchmark, methods=["none"], bias={"clips": 2})

    def nothing(job: JobSpec) -> dict[str, Any]:
        return {"fingerprint": "0123456789abcdef", "stopped": "", "exit_code": 3, "rows_written": 0}

    evaluate(given, nothing, lambda text: None)
    read = tmp_path / "out" / "README.md"
    assert "| 0 | 20 (not_run 20) |" in read.read_text() and "nan" not in read.read_text()
    assert "20 questions" in read.read_text() and "## Where text looks" in read.read_text()
    assert pq.read_table(tmp_path / "out" / "bias.parquet")["clips"].unique().to_pylist() == [1]
    (tmp_path / "videos" / "v_7.mp4").write_bytes(b"nothing")
    read.unlink()
    with pytest.raises(InputError, match="none of the 1 videos that it is measured on can be read"):
        evaluate(given, nothing, lambda text: None)
    assert "20 questions" in read.read_text() and "## Where text looks" not in read.read_text()


@pytest.mark.slow
def test_a_budget_that_a_method_cannot_meet_is_said_and_the_rest_goes_on(ray_cluster: None, tmp_path: Path) -> None:
    given = small(tmp_path, methods=["none", "random"], ratios=[0.0001])
    found = compare(given, Annotate())
    ((name, why),) = found["cells_not_run"].items()
    assert name.endswith("--random--0.0001") and "floor" in why and found["cells"] == 1
    assert name in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(BudgetError, match="no cell can be run"):
        compare(small(tmp_path, methods=["random"], ratios=[0.0001]), Annotate())


@pytest.mark.parametrize(
    ("raised", "told"), [(KeyboardInterrupt(), ("SIGINT", 130)), (SystemExit(143), ("SIGTERM", 143))]
)
def test_a_signal_outside_a_cell_is_answered_as_within_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], raised: BaseException,
    told: tuple[str, int],
) -> None:  # fmt: skip
    def signalled(*_: object) -> None:
        raise raised

    monkeypatch.setattr("mlb_batch.evaluate.manifest.write_world", signalled)
    (tmp_path / "eval.yaml").write_text(f"methods: [none]\noutput: {tmp_path}/out\n")
    assert ended(lambda: app(["evaluate", str(tmp_path / "eval.yaml")])) == told[1]
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["stopped"], last["exit_code"]) == told and last["output"] == f"{tmp_path}/out"


def test_the_command_says_a_mistake_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "eval.yaml"
    path.write_text("methods: [none]\nmodel: x\noutput: out\n")
    assert ended(lambda: app(["evaluate", str(path)])) == 2
    assert "model: unknown key (did you mean models?)" in " ".join(capsys.readouterr().err.split()).replace("'", "")
