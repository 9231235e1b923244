"""Executed operations: what the engine counts is what torch counts on the same pass, and what was planned."""

from __future__ import annotations

from typing import Any

import draws
import pytest
from engine_runs import Case, Dense, RanClip, paired, pruning, run, settings
from hypothesis import strategies as st
from models import FAMILIES, Spec, checkpoint, pixels
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mlb_batch.cost import flops, paper
from mlb_batch.cost.budget import feature_price
from mlb_batch.cost.schedule import WHOLE
from mlb_batch.vlm.meter import Meter

TEXTS = ("What is it?", "And who is walking there in the end, and why?", "Why")
SPECS = {**FAMILIES, "two layers": Spec(layers=2, kv_heads=1, seed=4)}
METHODS: dict[str, dict[str, Any]] = {
    "none": {},
    "adatp": {"global": "both", "score": "question"},
    "adatp paired": {"features": "paired"},
    "adatp cap": {"spend": "cap", "global": "none"},
    "fastv": {"at": 1},
    "random": {},
    "uniform": {},
    "frames": {},
    "pool": {},
    "density": {},
    "unique": {},
    "segattn": {"layer": 2},
    "mlb-g": {"expand": "refeed", "segment": 3},
    "mlb": {"tail": 7, "pool": "weighted"},
}


def not_seen_by_torch(spec: Spec, name: str, ran: RanClip) -> int:
    """Priced work that is no matrix product: the pooling of frames, and likeness to a mean."""
    shape, frames = checkpoint(spec).shape, ran.given.schedule.frames
    pooling = 8 * frames * shape.tokens_per_frame * shape.decoder.hidden if shape.pooled else 0
    compared = flops.compare(shape.decoder, ran.given.schedule.compared) if name == "unique" else 0
    return pooling + compared


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("select", ["per_prompt", "per_video"])
@pytest.mark.parametrize(
    ("name", "keep"), [*((name, 300_000) for name in METHODS), ("density", WHOLE), ("unique", WHOLE), ("fastv", WHOLE)]
)
def test_counted_is_what_torch_counts(name: str, keep: int, select: str, spec: Spec) -> None:
    """Vision, prefill, scoring and generation together; in its dense form, because torch counts whole rectangles."""
    method = pruning(name.split()[0], METHODS[name], select)
    clips = [Case(pixels(spec, 4, 1), TEXTS), Case(pixels(spec, 6, 2), TEXTS[:1])]
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        ran = run(spec, settings(method, keep, new_tokens=4), clips, counting=Dense)
    counted = sum(one.bill.total - not_seen_by_torch(spec, name, one) for one in ran)
    assert counted == counter.get_total_flops()


def check_price(data: st.DataObject, spec: Spec, name: str) -> None:
    select, compact = data.draw(st.sampled_from(["per_prompt", "per_video"])), data.draw(st.booleans())
    method = pruning(name.split()[0], METHODS[name], select, compact)
    clips = [
        Case(pixels(spec, data.draw(st.integers(1, 7)), seed), TEXTS[:n])
        for seed, n in enumerate(data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    ]
    keep, new = data.draw(st.integers(0, WHOLE)), data.draw(st.integers(1, 5))
    shape = checkpoint(spec).shape
    for ran in run(spec, settings(method, keep, new_tokens=new), clips):
        clip, schedule = ran.given.shape, ran.given.schedule
        features = feature_price(paired().shape, clip, schedule)
        planned = flops.price(shape, clip, schedule, (new,) * len(ran.suffixes), features)
        if method.traits.exact:
            assert ran.bill == planned
            assert ran.paper_macs == paper.macs(shape, clip, schedule)
        else:
            assert ran.bill.vision == planned.vision
            assert ran.bill.prefill <= planned.prefill and ran.bill.scoring <= planned.scoring
            assert ran.bill.generate <= planned.generate and ran.paper_macs <= paper.macs(shape, clip, schedule)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", METHODS)
def test_executed_is_what_was_planned(name: str, spec: str) -> None:
    draws.each(5, f"{name} {spec}", lambda data: check_price(data, SPECS[spec], name))


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", METHODS)
def test_executed_is_what_was_planned_many_times(name: str, spec: str) -> None:
    draws.each(40, None, lambda data: check_price(data, SPECS[spec], name))


def test_cap_spends_less_on_a_clip_that_repeats_itself() -> None:
    """Six times the same frame: one token a position is all there is to see."""
    spec = FAMILIES["onevision"]
    case = Case(pixels(spec, 1, 1).repeat(6, axis=0), TEXTS[:1])
    spent = {}
    for spend in ("exact", "cap"):
        method = pruning("adatp", {"spend": spend, "schedule": "one_shot"})
        (ran,) = run(spec, settings(method, 700_000), [case])
        spent[spend] = ran.bill.llm
        assert (len(ran.prompts[0].prefilled.kept_N) == spec.tokens_per_frame) == (spend == "cap")
    assert spent["cap"] < spent["exact"]


def test_dense_counts_the_rectangle_and_causal_the_triangle() -> None:
    spec = FAMILIES["next"]
    case, given = Case(pixels(spec, 2, 1), TEXTS[:1]), settings(pruning("none"), new_tokens=1)
    (dense,), (causal,) = (run(spec, given, [case], counting=one) for one in (Dense, Meter))
    d, n = checkpoint(spec).shape.decoder, dense.given.shape.prefix + 50 + dense.given.shape.suffixes[0]
    assert dense.bill.prefill - causal.bill.prefill == d.layers * flops.attend(d.q_dim, n * n - n * (n + 1) // 2)
