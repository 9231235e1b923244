"""Options of methods: what is refused before a job starts, in one line that says what to do."""

from __future__ import annotations

import re
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cost_cases import LLAVA_NEXT_7B, ONEVISION_7B, clip_shapes
from hypothesis import given
from hypothesis import settings as example
from hypothesis import strategies as st

from mlb_batch import prune
from mlb_batch.cost.schedule import WHOLE, ClipShape, keep_count
from mlb_batch.errors import SpecError
from mlb_batch.prune import METHODS, make
from mlb_batch.prune.adatp import cut_layers

CLIP = ClipShape(32, 14, 14, prefix=14, trailer=1, suffixes=(32,))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("fastvv", {}, "did you mean 'fastv'"),
        ("fastv", {"att": 1}, "did you mean 'at'"),
        ("uniform", {"at": 1}, "it has none"),
        ("fastv", {"at": 0}, "at least 1"),
        ("fastv", {"at": -1}, "at least 1"),
        ("fastv", {"at": 2.5}, "is not a int"),
        ("fastv", {"at": True}, "is not a int"),
        ("fastv", {"heads": "median"}, "one of mean, max"),
        ("fastv", {"heads": ["mean"]}, "one of mean, max"),
        ("adatp", {"features": ["attention"]}, "one of paired, attention"),
        ("adatp", {"features": "paired"}, r"needs prune\.feature_model"),
        ("adatp", {"tau": "high"}, "is not a float"),
        ("adatp", {"boost": 0}, r"at least 1\.0"),
        ("adatp", {"boost": 1e30}, r"at most 1000\.0"),
        ("adatp", {"boost": float("inf")}, "is not a float"),
        ("adatp", {"tau": float("nan")}, "is not a float"),
        ("adatp", {"schedule": [0.9, 0.1]}, "rise from 0 to 1"),
        ("adatp", {"schedule": [0.5, 1.5]}, "rise from 0 to 1"),
        ("adatp", {"schedule": [0.5, "x"]}, "rise from 0 to 1"),
        ("adatp", {"schedule": "cosine"}, "one of geometric"),
        ("mlb", {"segment": 0}, "at least 1"),
        ("mlb", {"layer": 0}, "at least 1"),
        ("mlb", {"tail": -4}, "at least 0"),
        ("mlb", {"grid": 1}, "is not a bool"),
        ("density", {"neighbours": 0}, "at least 1"),
    ],
)
def test_refused_with_what_to_do(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        make(name, options)


@pytest.mark.parametrize("debias", ["position", "none"])
def test_a_pair_that_would_not_be_looked_through_is_not_asked_for(debias: str) -> None:
    assert make("adatp", {"features": "paired", "global": debias}) == make("adatp", {"global": debias})


@pytest.mark.parametrize("room", [0, 300, 3_000])
def test_what_is_joined_and_an_answer_stay_within_twice_the_context(room: int) -> None:
    """Whatever room the options leave: the longest answer has its own."""
    clip, context = ClipShape(50, 24, 24, prefix=40, trailer=0, suffixes=(30, 10)), LLAVA_NEXT_7B.decoder.context
    made = make("segattn", {"room": room}, new_tokens=2_048)
    joined = clip.longest_text + made.schedule(LLAVA_NEXT_7B, clip, WHOLE).kept(clip)
    assert joined + max(room, 2_048) == 2 * context


@pytest.mark.parametrize("steps", [[0.5, 1.0], [0.05 * i for i in range(15)], []])
def test_listed_steps_fit_the_cuts_of_the_model(steps: list[float]) -> None:
    method = make("adatp", {"schedule": steps})
    with pytest.raises(SpecError, match="list 15 steps"):
        method.schedule(ONEVISION_7B, CLIP, 250_000)


def test_listed_steps_are_the_shares_that_have_left() -> None:
    """Of what leaves, so much has left behind each cut: 15 cuts, before layers 2 to 16 of 28."""
    steps = [*(i / 20 for i in range(14)), 1.0]
    cuts = make("adatp", {"schedule": steps}).schedule(ONEVISION_7B, CLIP, 250_000).cuts
    assert [c.at for c in cuts] == list(range(2, 17))
    assert [c.keep for c in cuts] == [round(6272 - (6272 - 1568) * s) for s in steps]


def test_a_steep_fall_is_nearly_over_at_the_second_cut() -> None:
    left = [c.keep - 1568 for c in make("adatp", {"schedule": "steep"}).schedule(ONEVISION_7B, CLIP, 250_000).cuts]
    assert left[0] == (6272 - 1568) / 2 and 0.09 < left[1] / (6272 - 1568) < 0.1 and left[-1] == 0
    assert {a - b for a, b in pairwise(left[1:])} <= {33, 34}


@pytest.mark.parametrize(
    ("layers", "first", "last"), [(28, 2, 16), (32, 2, 18), (60, 4, 34), (8, 1, 5), (2, 1, 1), (3, 1, 2)]
)
def test_layers_of_the_cuts(layers: int, first: int, last: int) -> None:
    assert cut_layers(layers) == list(range(first, last + 1))


@pytest.mark.parametrize("schedule", ["geometric", "linear", "one_shot", "steep"])
@example(max_examples=100, deadline=None)
@given(clip=clip_shapes(), keep=st.integers(0, WHOLE))
def test_the_keep_never_rises_over_the_cuts(schedule: str, clip: ClipShape, keep: int) -> None:
    cuts = make("adatp", {"schedule": schedule}).schedule(ONEVISION_7B, clip, keep).cuts
    counts = [c.keep for c in cuts]
    assert counts == sorted(counts, reverse=True) and clip.visual >= counts[0]
    assert counts[-1] == keep_count(clip.visual, keep)
    assert len(cuts) == (1 if schedule == "one_shot" else 15)


@pytest.mark.parametrize("name", METHODS)
def test_every_option_and_what_it_may_be_stands_in_provenance(name: str) -> None:
    told = (Path(prune.__file__).parent / "PROVENANCE.md").read_text(encoding="utf-8")
    for option in fields(METHODS[name]):
        called = option.metadata.get("option", option.name)
        assert re.search(rf"`{called}(: [^`]*)?`", told), called
        for value in option.metadata.get("one_of", ()):
            assert f"`{called}: {value}`" in told or f"`{value}`" in told, f"{called}: {value}"


def test_every_method_is_made_with_its_defaults() -> None:
    for name in METHODS:
        made = make(name)
        assert made.name == name and made.schedule(ONEVISION_7B, CLIP, 300_000).frames <= 32
