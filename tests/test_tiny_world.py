"""The procedural world: seeds decide everything, pixels agree with the truth, and every answer follows from it."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from mlb_batch.evaluate.scoring import facts
from mlb_batch.tiny.clips import write_sample_clips
from mlb_batch.tiny.questions import KINDS, Question, caption, with_choices
from mlb_batch.tiny.render import RGB
from mlb_batch.tiny.truth import Truth
from mlb_batch.tiny.words import COLOURS, SHAPES
from mlb_batch.tiny.world import HELD_OUT_FROM, make_clip
from mlb_batch.vlm.choices import CHOICE_INSTRUCTION, LETTERS

SEEDS = range(60)


def pixels_of(frame_HWC, colour):
    """Where a frame shows a colour, up to noise."""
    distance_HW = np.abs(frame_HWC.astype(int) - np.array(RGB[colour])).max(-1)
    return np.argwhere(distance_HW < 12)


def centre_of(frame_HWC, colour):
    return pixels_of(frame_HWC, colour).mean(0)[::-1] / len(frame_HWC)


def unshared(truth: Truth, colour: str) -> bool:
    return [thing.colour for thing in (*truth.acts, *truth.flashes)].count(colour) == 1


@pytest.mark.parametrize("frames", [8, 16, 64])
def test_the_same_seed_gives_the_same_clip(frames):
    one, two, other = make_clip(7, frames), make_clip(7, frames), make_clip(8, frames)
    assert np.array_equal(one.pixels_FHWC, two.pixels_FHWC)
    assert (one.truth, one.caption, one.questions) == (two.truth, two.caption, two.questions)
    assert not np.array_equal(one.pixels_FHWC, other.pixels_FHWC)
    assert one.pixels_FHWC.shape == (frames, 64, 64, 3) and one.pixels_FHWC.dtype == np.uint8


def test_acts_fill_the_clip_and_show_their_colour_only_while_they_last():
    checked = 0
    for seed in SEEDS:
        clip = make_clip(seed, 16)
        edges = [edge for act in clip.truth.acts for edge in (act.start, act.end)]
        assert edges[0] == 0 and edges[-1] == 16 and edges[1:-1:2] == edges[2::2]
        for act in clip.truth.acts:
            if unshared(clip.truth, act.colour):
                shown = {f for f in range(16) if len(pixels_of(clip.pixels_FHWC[f], act.colour)) >= 12}
                assert shown == set(range(act.start, act.end)), (seed, act)
                checked += 1
    assert checked > 60


def test_movers_move_where_the_truth_says_and_stayers_stay_there():
    moved: Counter[str] = Counter()
    for seed in SEEDS:
        clip = make_clip(seed, 16)
        for act in clip.truth.acts:
            if not unshared(clip.truth, act.colour):
                continue
            first, last = (centre_of(clip.pixels_FHWC[f], act.colour) for f in (act.start, act.end - 1))
            if act.direction:
                axis, sign = {"left": (0, -1), "right": (0, 1), "up": (1, -1), "down": (1, 1)}[act.direction]
                assert (last - first)[axis] * sign > 0.25
                assert abs((last - first)[1 - axis]) < 0.08
                moved[act.direction] += 1
            else:
                assert act.place == f"{'top' if first[1] < 0.5 else 'bottom'} {'left' if first[0] < 0.5 else 'right'}"
                assert np.abs(last - first).max() < 0.05
    assert min(moved.values()) >= 5 and len(moved) == 4


def test_flashes_show_where_and_only_when_the_truth_says():
    checked = 0
    for seed in SEEDS:
        clip = make_clip(seed, 32)
        for flash in clip.truth.flashes:
            assert flash.end - flash.start <= 2
            if unshared(clip.truth, flash.colour):
                shown = [f for f in range(32) if len(pixels_of(clip.pixels_FHWC[f], flash.colour)) >= 8]
                assert shown == list(range(flash.start, flash.end)), (seed, flash)
                x, y = centre_of(clip.pixels_FHWC[flash.start], flash.colour)
                assert flash.place == f"{'top' if y < 0.5 else 'bottom'} {'left' if x < 0.5 else 'right'}"
                checked += 1
    assert checked > 20


def test_the_flicker_is_grey_stays_put_and_is_never_asked_for():
    with_flicker = [clip for clip in (make_clip(seed, 16) for seed in SEEDS) if clip.truth.flicker]
    assert 15 < len(with_flicker) < 45
    assert not any("flicker" in question.text.lower() for clip in with_flicker for question in clip.questions)
    assert not any("flicker" in clip.caption for clip in with_flicker)


def test_cuts_change_the_background():
    cuts = 0
    for seed in SEEDS:
        clip = make_clip(seed, 16)
        usual = [np.median(frame_HWC.reshape(-1, 3), 0) for frame_HWC in clip.pixels_FHWC]
        for frame in range(1, 16):
            if frame not in clip.truth.cuts:
                assert np.abs(usual[frame] - usual[frame - 1]).max() <= 1.5
        cuts += len(clip.truth.cuts)
    assert cuts > 20


def answer_from(truth: Truth, text: str) -> str:
    """A second way from truth to answer, written against the question's words alone."""
    acts = {act.name: act for act in truth.acts}
    named = re.findall(rf"(?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})", text)
    thirds = ("start", "middle", "end")
    if "before the" in text and text.startswith("Does"):
        return "yes" if acts[named[0]].start < acts[named[1]].start else "no"
    if "comes before" in text:
        return next(act.name for act in truth.acts if act.end == acts[named[0]].start)
    if "comes after" in text:
        return next(act.name for act in truth.acts if act.start == acts[named[0]].end)
    if text.startswith("Is there"):
        return "yes" if named[0] in acts else "no"
    if text == "How many shapes move or stay?":
        return ("", "one", "two", "three", "four")[len(acts)]
    if text == "How many flashes are there?":
        return ("zero", "one", "two", "three")[len(truth.flashes)]
    thing = (
        acts[named[0]] if named else truth.flashes[0] if "flash" in text else truth.acts[0 if "first" in text else -1]
    )
    if text.startswith("When"):
        return thirds[int(3 * (thing.start + thing.end) / 2 / truth.frames)]
    field = next(
        f
        for word, f in [("direction", "direction"), ("Where", "place"), ("colour", "colour"), ("shape", "shape")]
        if word in text
    )
    return getattr(thing, field)


@pytest.mark.parametrize("frames", [8, 16, 32])
def test_every_answer_follows_from_the_truth(frames):
    kinds: Counter[str] = Counter()
    for seed in SEEDS:
        clip = make_clip(seed, frames)
        for question in clip.questions:
            expected = answer_from(clip.truth, question.text)
            if question.choices:
                assert question.kind == "choice"
                assert question.choices[LETTERS.index(question.answer)] == expected
                assert len(set(question.choices)) == len(question.choices) >= 2
            else:
                assert question.answer.lower() == expected, (seed, question)
            kinds[question.kind] += 1
    assert set(kinds) == set(KINDS)


def test_questions_that_hang_on_early_frames_lose_their_answer_without_them():
    for seed in SEEDS:
        clip = make_clip(seed, 16)
        for question in clip.questions:
            assert question.hangs_on in ("early", "few", "any")
            if question.hangs_on == "early":
                assert len(clip.truth.acts) > 1
                if question.kind == "order":
                    assert clip.truth.acts[0].name in question.text
            if question.hangs_on == "few":
                assert "flash" in question.text


def test_a_name_means_one_act_and_no_other_option_is_nearly_right():
    for seed in range(400):
        clip = make_clip(seed, 32, size=16)
        acts = {act.name for act in clip.truth.acts}
        assert len(acts) == len(clip.truth.acts)
        assert not acts & {f"{flash.colour} {flash.shape}" for flash in clip.truth.flashes}
        for question in clip.questions:
            if "comes after the" in question.text or "comes before the" in question.text:
                assert len(acts & {*question.choices}) <= 1


def test_where_all_options_that_were_drawn_are_true_another_is_found_and_later_questions_stay():
    asked = Question("after", "What comes after the blue ring?", "Red ring", "any")
    others = {f"{colour} {shape}" for colour in COLOURS for shape in SHAPES} - {"red ring", "cyan cross"}
    rng = np.random.default_rng(1)
    assert {*with_choices(asked, rng, others).choices} == {"red ring", "cyan cross"}
    assert round(rng.random(), 6) == 0.423326, "as it was when the answer was the only option"


def test_a_question_with_choices_is_put_in_the_documented_shape():
    question = next(question for question in make_clip(3, 16).questions if len(question.choices) == 3)
    one, two, three = question.choices
    assert question.prompt == f"{question.text}\nA. {one}\nB. {two}\nC. {three}\n{CHOICE_INSTRUCTION}"


def test_answers_are_not_given_away_by_their_frequency():
    answers: dict[str, Counter[str]] = {}
    for seed in range(300):
        for question in make_clip(seed, 16, size=16).questions:
            answers.setdefault(question.kind, Counter())[question.answer] += 1
    for kind, counts in answers.items():
        assert counts.most_common(1)[0][1] / counts.total() < (0.75 if kind == "order" else 0.65), (kind, counts)


def test_captions_say_every_fact_and_nothing_else():
    for seed in SEEDS:
        clip = make_clip(seed, 32)
        said = facts(clip.caption)
        assert len(said) == len(clip.truth.acts) + len(clip.truth.flashes)
        for act, fact in zip(clip.truth.acts, said, strict=False):
            assert act.name in fact and (act.direction or act.place) in fact
        for flash, fact in zip(clip.truth.flashes, said[len(clip.truth.acts) :], strict=True):
            assert f"{flash.colour} {flash.shape} flashes" in fact and flash.place in fact
        without = dataclasses.replace(clip.truth, flashes=())
        assert facts(caption(without)) == said[: len(clip.truth.acts)]


def test_sample_clips_are_real_videos_of_held_out_clips(tmp_path: Path):
    import json

    rows = [json.loads(line) for line in write_sample_clips(tmp_path, 2, seed=3).read_text().splitlines()]
    assert len({row["video_id"] for row in rows}) == 2
    for row in rows:
        assert row["truth"]["seed"] >= HELD_OUT_FROM
        clip = make_clip(row["truth"]["seed"], 32, least_flash=2)
        assert row["truth"]["caption"] == clip.caption
        assert set(row["truth"]["answers"]) == {question["id"] for question in row["questions"]}
        with av.open(row["uri"]) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        small = np.stack(frames).reshape(32, 64, 4, 64, 4, 3).mean((2, 4))
        assert np.abs(small - clip.pixels_FHWC).mean() < 4
