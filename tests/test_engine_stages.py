"""The two-stage and merging methods against their direct run in plain PyTorch, to 1e-4 in every logit of ten tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import draws
import oracles
import pytest
import statements
import torch
from engine_runs import Case, RanClip, prompter, pruning, run, settings
from hypothesis import strategies as st
from models import FAMILIES, Spec, eager, pixels
from oracles import Agreement
from statements import Groups
from torch import Tensor
from two_stages import Parts, TwoStages, pooled_run

from mlb_batch.cost.schedule import WHOLE, Scan
from mlb_batch.prune import Pruning

TEXTS = ("What is it?", "And who is walking there in the end?", "Why")
SPECS = {
    **FAMILIES,
    "crowded": Spec("llava_next", "llama", layers=6, kv_heads=2, context=160, seed=8),  # joined sequences outgrow it
    "thin": Spec("llava", "mistral", layers=2, heads=2, kv_heads=1, side=4, seed=9),
}
OPTIONS = {
    "pool": st.sampled_from(["argmax", "weighted", "mean"]),
    "tail": st.sampled_from([0, 3, 24, 40, 400]),
    "layer": st.integers(1, 4),
    "segment": st.integers(1, 5),
    "expand": st.sampled_from(["carry", "refeed"]),
    "question": st.sampled_from(["last", "mean"]),
    "heads": st.sampled_from(["mean", "max"]),
}


def parts_of(spec: Spec, case: Case, ran: RanClip) -> Parts:
    visual_ND, trailer_RD = oracles.visual_tokens(spec, case.pixels_FHWC)
    embed = eager(spec).get_input_embeddings()
    frames = statements.evenly(ran.given.schedule.frames, len(case.pixels_FHWC))
    used = visual_ND.unflatten(0, (len(case.pixels_FHWC), -1))[frames].flatten(0, 1)
    suffixes = [embed(torch.tensor(s)) for s in ran.suffixes]
    return Parts(embed(torch.tensor(prompter(spec).prefix)), used, trailer_RD, suffixes)


class Picker:
    """What the statement chooses from each segment's attention."""

    def __init__(self, spec: Spec, scan: Scan, options: dict[str, Any]) -> None:
        self.scan, self.options, self.side = scan, options, round(spec.tokens_per_frame**0.5)
        self.closest_call = 1.0
        self.kept: list[int] = []  # the first token of everything that goes on, numbered through the segments

    def __call__(self, s: int, paid_HQN: Tensor) -> Groups:
        score = statements.one_score(paid_HQN.tolist(), self.options.get("heads", "mean"))
        gaps = [b - a for a, b in zip(sorted(score), sorted(score)[1:], strict=False)]
        self.closest_call = min([self.closest_call, *gaps])
        groups = self._groups(s, score)
        before = sum(self.scan.segments[:s]) * self.side**2
        self.kept += [before + min(i for i, _ in group) for group in groups]
        return groups

    def _groups(self, s: int, score: list[float]) -> Groups:
        scan, pool = self.scan, self.options.get("pool", "argmax")
        if not self.options.get("grid", True):
            tail = min(scan.tail, scan.kept[s])
            body = len(score) - tail
            chosen = [*statements.best(score[:body], scan.kept[s] - tail), *range(body, len(score))]
            return [[(i, 1.0)] for i in chosen]
        groups = statements.gridded(scan.segments[s], self.side, self.side, score, scan.cells[s], scan.tail, pool)
        assert len(groups) == scan.kept[s]
        return groups


def check_scan(spec: Spec, method: Pruning, keep: int, options: dict[str, Any], clips: list[Case],
               agreement: Agreement) -> None:  # fmt: skip
    for case, ran in zip(clips, run(spec, settings(method, keep), clips), strict=True):
        scan, everyone = ran.given.schedule.scan, range(len(ran.prompts))
        assert scan
        sizes = tuple(f * spec.tokens_per_frame for f in scan.segments)
        refeed, question = options.get("expand") == "refeed", options.get("question", "last")
        stages = TwoStages(sizes, scan.layers, refeed, question, room=10)
        for prompts in [list(everyone)] if method.select == "per_video" else [[p] for p in everyone]:
            check_group(spec, case, ran, stages, prompts, Picker(spec, scan, options), agreement)


def check_group(spec: Spec, case: Case, ran: RanClip, stages: TwoStages, prompts: list[int], picker: Picker,
                agreement: Agreement) -> None:  # fmt: skip
    said = [ran.prompts[p].tokens for p in prompts]
    oracle = stages.run(spec, parts_of(spec, case, ran), prompts, picker, said)
    for p, tokens, oracle_SV in zip(prompts, said, oracle, strict=True):
        kept = ran.given.place_N[picker.kept].tolist()
        if ran.prompts[p].prefilled.kept_N.tolist() == kept:
            agreement.check(tokens, ran.prompts[p].logits_SV, oracle_SV)
        else:
            assert picker.closest_call < 1e-6, "another selection, and no near-tie to excuse it"
            agreement.near_ties += 1


@st.composite
def clips_of(draw: st.DrawFn, spec: Spec, most: int = 8) -> list[Case]:
    out = []
    for _ in range(draw(st.integers(1, 2))):
        texts = draw(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=3, unique=True))
        out.append(Case(pixels(spec, draw(st.integers(1, most)), draw(st.integers(0, 10**6))), tuple(texts)))
    return out


def scanned(data: st.DataObject, spec: Spec, name: str, agreement: Agreement) -> None:
    options = data.draw(st.fixed_dictionaries({"room": st.just(16)}, optional=OPTIONS))
    method = pruning(name, options, data.draw(st.sampled_from(["per_prompt", "per_video"])))
    keep = data.draw(st.sampled_from([20_000, 150_000, 300_000, 600_000, WHOLE]))
    plain = {"grid": name != "segattn", **options}
    check_scan(spec, method, keep, plain, data.draw(clips_of(spec)), agreement)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", ["segattn", "mlb-g", "mlb"])
def test_two_stages_equal_their_direct_run(name: str, spec: str) -> None:
    agreement = Agreement()
    draws.each(8, f"{name} {spec}", lambda data: scanned(data, SPECS[spec], name, agreement))
    agreement.report()


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", ["segattn", "mlb-g", "mlb"])
def test_two_stages_equal_their_direct_run_many_times(name: str, spec: str) -> None:
    agreement = Agreement()
    draws.each(40, None, lambda data: scanned(data, SPECS[spec], name, agreement))
    agreement.report()


@pytest.mark.parametrize("expand", ["carry", "refeed"])
@pytest.mark.parametrize("select", ["per_prompt", "per_video"])
def test_a_joined_sequence_beyond_the_context_is_scaled(expand: str, select: str) -> None:
    """Twelve frames of 25 tokens where 160 fit: what is joined is longer than that, and at most twice as long."""
    spec, agreement = SPECS["crowded"], Agreement()
    options = {"expand": expand, "room": 16, "segment": 4}
    method = pruning("segattn", options, select)
    clips = [Case(pixels(spec, 12, 1), TEXTS), Case(pixels(spec, 2, 2), TEXTS[:1])]
    long, short = run(spec, settings(method, 800_000), clips)
    assert spec.context < len(long.prompts[0].prefilled.kept_N) <= 2 * spec.context
    base = short.prompts[0].prefilled.rope
    assert not torch.equal(long.prompts[0].prefilled.rope.frequency_d, base.frequency_d)
    check_scan(spec, method, 800_000, {"grid": False, **options}, clips, agreement)
    agreement.report()


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_pooling_equals_a_shorter_clip(spec: Spec) -> None:
    agreement, side = Agreement(), round(spec.tokens_per_frame**0.5)
    for keep in (0, 200_000, 500_000, WHOLE):
        clips = [Case(pixels(spec, 3, 1), TEXTS), Case(pixels(spec, 5, 2), TEXTS[1:2])]
        for case, ran in zip(clips, run(spec, settings(pruning("pool"), keep), clips), strict=True):
            fitting = [g for g in _ladder(side) if g * g * WHOLE <= side * side * keep]
            cells = len(ran.prompts[0].prefilled.kept_N) // len(case.pixels_FHWC)
            assert cells >= max(fitting, default=1) ** 2 and (cells == 1 or cells * WHOLE <= side * side * keep)
            small = next((r, c) for r in range(1, side + 1) for c in (r, r + 1, r - 1) if r * c == cells)
            groups = statements.pooled(len(case.pixels_FHWC), side, side, small)
            for p, prompt in enumerate(ran.prompts):
                oracle_SV = pooled_run(spec, parts_of(spec, case, ran), groups, p, prompt.tokens)
                agreement.check(prompt.tokens, prompt.logits_SV, oracle_SV)
    agreement.report()


def _ladder(side: int) -> list[int]:
    return list(range(1, side + 1))


def test_the_plain_model_is_the_model() -> None:
    """The direct run stands on a layer of its own; here it is held to transformers' model."""
    for spec in SPECS.values():
        case = Case(pixels(spec, 3, 1), TEXTS[:1])
        (ran,) = run(spec, settings(pruning("none")), [case])
        everything: Groups = [[(i, 1.0)] for i in range(3 * spec.tokens_per_frame)]
        parts = parts_of(spec, case, ran)
        whole = torch.cat([parts.prefix_PD, parts.visual_ND, parts.trailer_RD, *parts.suffixes_SD])
        with torch.inference_mode():
            theirs_V = eager(spec)(inputs_embeds=whole[None]).logits[0, -1]
        ours_SV = pooled_run(spec, parts, everything, 0, ran.prompts[0].tokens)
        assert float((ours_SV[0] - theirs_V).abs().max()) < 1e-4


def test_kept_tokens_are_numbered_in_the_clip_also_where_frames_were_left_out() -> None:
    """Under the coarsest grid fewer frames are encoded; what is kept still says which of the clip's it is."""
    spec = SPECS["next"]
    (ran,) = run(spec, settings(pruning("mlb-g"), 20_000), [Case(pixels(spec, 8, 1), TEXTS[:1])])
    frames = statements.evenly(ran.given.schedule.frames, 8)
    assert len(frames) < 8
    assert sorted({int(i) // spec.tokens_per_frame for i in ran.prompts[0].prefilled.kept_N}) == frames


def test_a_shared_scan_is_one_selection_and_a_forked_one_is_as_if_alone() -> None:
    spec = SPECS["next"]
    case = Case(pixels(spec, 6, 4), TEXTS)
    shared = run(spec, settings(pruning("mlb", {"tail": 5}, "per_video"), 300_000), [case])[0]
    assert len({tuple(p.prefilled.kept_N.tolist()) for p in shared.prompts}) == 1
    forked = run(spec, settings(pruning("mlb", {"tail": 5}), 300_000), [case])[0]
    for i, text in enumerate(TEXTS):
        (alone,) = run(spec, settings(pruning("mlb", {"tail": 5}), 300_000), [replace(case, texts=(text,))])
        same = alone.prompts[0].prefilled.kept_N
        # One prompt decides at its own length how many tokens fit: equal here, because none is near the context.
        assert forked.prompts[i].prefilled.kept_N.tolist() == same.tolist()
        assert forked.prompts[i].tokens == alone.prompts[0].tokens
