"""What a prompt gets depends on its clip and itself: not on neighbours, order, process, or what ran before it."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import draws
import oracles
import pytest
import torch
from engine_runs import Case, RanClip, model, prefilled, prepared, pruning, run, settings
from hypothesis import strategies as st
from models import DEEP, FAMILIES, Spec, checkpoint, folder, pixels
from torch import Tensor

import mlb_batch
from mlb_batch.cost.schedule import ClipShape, Cut, Schedule
from mlb_batch.cost.shapes import ModelShape
from mlb_batch.prune import Pruning
from mlb_batch.prune.scores import spread
from mlb_batch.prune.view import View
from mlb_batch.vlm.meter import Meter
from mlb_batch.vlm.sequence import Prefilled

TEXTS = ("What is it?", "And who is walking there in the end, and why?", "Why", "A man is there. Is he?")
METHODS: dict[str, dict[str, Any]] = {
    "none": {},
    "adatp": {"global": "both", "local": "suppress"},
    "fastv": {},
    "random": {},
    "frames": {},
    "density": {},
    "unique": {},
    "pool": {},
    "segattn": {},
    "mlb-g": {"pool": "weighted"},
    "mlb": {"tail": 5, "expand": "refeed", "segment": 3},
}


@dataclass(frozen=True)
class Fixed:
    """Cuts in the middle whose picks look at nothing: tokens evenly spaced. Also: all that a new method needs."""

    def schedule(self, shape: ModelShape, clip: ClipShape, keep: int) -> Schedule:
        cuts = (Cut(1, max(1, clip.visual // 2)), Cut(3, max(1, clip.visual // 5)))
        return Schedule(clip.frames, cuts, rows="last", fork=True)

    def pick(self, view: View, keep: int) -> Tensor:
        return torch.tensor(spread(keep, len(view.alive_N)))


# Causality.


def states_of(spec: Spec, method: Pruning, last_token: int | None) -> list[Prefilled]:
    """One clip with three prompts; the first prompt's last token may be another one."""
    case, given = Case(pixels(spec, 4, 1), TEXTS[:3]), settings(method, 300_000)
    meters = [Meter(checkpoint(spec).shape)]
    with torch.inference_mode():
        decoder, (one,), _ = prepared(spec, given, [case], meters)
        if last_token is not None:
            changed = one.suffixes_SD[0].clone()
            changed[-1] = decoder.embed([last_token])[0]
            one = replace(one, suffixes_SD=(changed, *one.suffixes_SD[1:]))
        return prefilled(decoder, given, [one], meters)[0]


def furthest(a: Prefilled, b: Prefilled, layers: range, without_last: bool) -> float:
    stop = -1 if without_last else None
    return max(
        float((x[layer][:, :stop] - y[layer][:, :stop]).abs().max())
        for layer in layers
        for x, y in ((a.keys, b.keys), (a.values, b.values))
    )


@pytest.mark.parametrize("spec", [*FAMILIES.values(), DEEP], ids=[*FAMILIES, "deep"])
def test_the_last_token_moves_nothing_before_it_where_picks_are_fixed(spec: Spec) -> None:
    method = Pruning("fixed", Fixed())
    before, after = states_of(spec, method, None), states_of(spec, method, last_token=7)
    everywhere = range(spec.layers)
    assert furthest(before[0], after[0], everywhere, without_last=True) < 1e-5
    assert furthest(before[0], after[0], everywhere, without_last=False) > 1e-2
    for neighbour in (1, 2):  # and nothing at all in the clip's other prompts
        assert furthest(before[neighbour], after[neighbour], everywhere, without_last=False) < 1e-5


@pytest.mark.parametrize("spec", [*FAMILIES.values(), DEEP], ids=[*FAMILIES, "deep"])
@pytest.mark.parametrize("name", ["fastv", "adatp"])
def test_the_last_token_moves_nothing_before_it_up_to_the_first_cut(name: str, spec: Spec) -> None:
    before, after = states_of(spec, pruning(name), None), states_of(spec, pruning(name), last_token=7)
    lengths = [keys.shape[1] for keys in before[0].keys]
    uncut = range(sum(n == lengths[0] for n in lengths))
    assert 0 < len(uncut) < spec.layers
    assert furthest(before[0], after[0], uncut, without_last=True) < 1e-5
    assert furthest(before[0], after[0], uncut, without_last=False) > 1e-2


# Batches.


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("options", [{}, {"global": "position"}, {"global": "both"}], ids=str)
def test_a_clip_that_stands_still_is_pruned_alike_beside_any_other(name: str, options: dict[str, Any]) -> None:
    """All its tokens are paid what their position is paid without content: rounding must not choose among them."""
    spec, method, came_apart = FAMILIES[name], pruning("adatp", options), []
    for i in range(8):
        still, other = Case(pixels(spec, 1, i).repeat(6, 0), TEXTS[:1]), Case(pixels(spec, 3, 50 + i), TEXTS[2:3])
        ((alone,),) = (one.prompts for one in run(spec, settings(method, 400_000), [still]))
        ((beside,),) = (one.prompts for one in run(spec, settings(method, 400_000), [other, still])[1:])
        if picks(alone.prefilled) != picks(beside.prefilled):
            came_apart.append(i)
    assert not came_apart


@dataclass
class Spread:
    """How far the same prompts came apart in two batches."""

    prompts: int = 0
    near_ties: int = 0
    worst: float = 0.0

    def compare(self, one: RanClip, other: RanClip) -> None:
        for a, b in zip(one.prompts, other.prompts, strict=True):
            self.prompts += 1
            if picks(a.prefilled) != picks(b.prefilled) or a.tokens != b.tokens:
                self.near_ties += 1
                continue
            self.worst = max(self.worst, float((a.prefilled.last_D - b.prefilled.last_D).abs().max()))

    def report(self) -> None:
        print(f"prompts {self.prompts}, worst hidden difference {self.worst:.1e}, near-ties {self.near_ties}")


def picks(state: Prefilled) -> list[Any]:
    return [state.kept_N.tolist(), *((t.layer, t.kept_K.tolist()) for t in state.trace)]


def batches(data: st.DataObject, spec: Spec, method: Pruning, apart: Spread,
            dtype: torch.dtype = torch.float32) -> None:  # fmt: skip
    """Some clips alone, and the same in one batch in another order."""
    clips = [
        Case(pixels(spec, data.draw(st.integers(1, 7)), data.draw(st.integers(0, 10**6))), TEXTS[:n])
        for n in data.draw(st.lists(st.integers(1, 4), min_size=2, max_size=5))
    ]
    order = data.draw(st.permutations(range(len(clips))))
    given = settings(method, data.draw(st.sampled_from([150_000, 400_000, 800_000])))
    together = run(spec, given, [clips[i] for i in order], dtype)
    for i, ran in zip(order, together, strict=True):
        (alone,) = run(spec, given, [clips[i]], dtype)
        apart.compare(alone, ran)
        assert alone.bill == ran.bill and alone.paper_macs == ran.paper_macs


@pytest.mark.parametrize("name", METHODS)
def test_a_prompt_gets_the_same_in_any_batch(name: str) -> None:
    apart = Spread()
    for spec in FAMILIES.values():
        draws.each(3, name, lambda data, spec=spec: batches(data, spec, pruning(name, METHODS[name]), apart))
    apart.report()
    assert apart.worst < 1e-5 and apart.near_ties == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_prompt_gets_the_same_in_any_batch_many_times(name: str) -> None:
    apart = Spread()
    for spec in [*FAMILIES.values(), DEEP]:
        for select in ("per_prompt", "per_video"):
            method = pruning(name, METHODS[name], select)
            draws.each(12, None, lambda data, spec=spec, method=method: batches(data, spec, method, apart))
    apart.report()
    assert apart.worst < 2e-5 and apart.near_ties <= 0.01 * apart.prompts


@pytest.mark.slow
def test_how_often_bfloat16_answers_differently_by_batch() -> None:
    """No promise is made for half precision; the rate is reported, and fp32 on the same draws differs nowhere."""
    half, full = Spread(), Spread()
    for name in ("none", "adatp", "mlb"):
        for dtype, apart in ((torch.bfloat16, half), (torch.float32, full)):
            given = (FAMILIES["onevision"], pruning(name, METHODS[name]), apart, dtype)
            draws.each(30, name, lambda data, given=given: batches(data, *given))
    print(f"bfloat16: {half.near_ties} of {half.prompts} prompts differ in picks or tokens by batch")
    print(f"float32: {full.near_ties} of {full.prompts}; hidden apart by {half.worst:.1e} and {full.worst:.1e}")
    assert full.near_ties == 0 and half.prompts == full.prompts


# Runs and processes.


def fingerprint(spec: Spec, name: str) -> str:
    """Of every bit that a run ends with."""
    clips = [Case(pixels(spec, 4, 1), TEXTS[:2]), Case(pixels(spec, 6, 2), TEXTS[:1])]
    digest = hashlib.sha256()
    for ran in run(spec, settings(pruning(name, METHODS[name]), 300_000), clips):
        for prompt in ran.prompts:
            digest.update(json.dumps([picks(prompt.prefilled), prompt.tokens]).encode())
            digest.update(prompt.logits_SV.numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("spec", FAMILIES.values(), ids=FAMILIES)
def test_twice_the_same_to_the_bit(spec: Spec) -> None:
    for name in METHODS:
        assert fingerprint(spec, name) == fingerprint(spec, name), name


def test_another_process_gives_the_same_bits() -> None:
    """Its own interpreter, its own hash seed, its own copy of the weights."""
    script = (
        "import json, test_engine_invariance as t\n"
        "print(json.dumps({n: t.fingerprint(t.FAMILIES['onevision'], n) for n in t.METHODS}))"
    )
    here = {name: fingerprint(FAMILIES["onevision"], name) for name in METHODS}
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "MKL_NUM_THREADS": str(torch.get_num_threads())}
    env = {**os.environ, **threads, "PYTHONHASHSEED": "1"}
    out = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parent, env=env, capture_output=True, text=True, check=True
    )
    assert json.loads(out.stdout.splitlines()[-1]) == here


# One model, many methods.


def modules_state(built: Any) -> list[Any]:
    """Everything that hangs on every module, down to the identity of each value; and the weights' bytes."""
    state = []
    for name, module in built.named_modules():
        for key, value in vars(module).items():
            inner = sorted((k, id(v)) for k, v in value.items()) if isinstance(value, dict) else repr(value)[:200]
            state.append((name, type(module), key, inner))
    return [*state, json.dumps(built.config.to_dict(), sort_keys=True, default=str)]


@pytest.mark.parametrize("spec", FAMILIES.values(), ids=FAMILIES)
def test_methods_and_generate_take_turns_on_one_model(spec: Spec) -> None:
    built, case = model(spec), Case(pixels(spec, 4, 1), TEXTS[:2])

    def transformers_says() -> list[int]:
        one = oracles.lane(spec, [1, 2, 3], case.pixels_FHWC, [4, 5, 6])
        out = built.generate(inputs_embeds=one.embeds_TD[None], max_new_tokens=8, do_sample=False, eos_token_id=None)
        return out[0].tolist()

    def engine_says(name: str) -> Callable[[], list[Any]]:
        given = settings(pruning(name, METHODS[name]), 300_000)
        return lambda: [(picks(p.prefilled), p.tokens) for ran in run(spec, given, [case]) for p in ran.prompts]

    turns = {"generate": transformers_says} | {name: engine_says(name) for name in ("none", "adatp", "mlb", "fastv")}
    before = modules_state(built)
    alone = {name: turn() for name, turn in turns.items()}
    for name in ("mlb", "generate", "none", "adatp", "generate", "none", "fastv", "mlb", "adatp", "generate"):
        assert turns[name]() == alone[name], name
    assert modules_state(built) == before
    assert alone["generate"] == eager_says(spec, case)


def eager_says(spec: Spec, case: Case) -> list[int]:
    """The same on transformers' eager attention: registering ours changed nothing for anyone else."""
    one = oracles.lane(spec, [1, 2, 3], case.pixels_FHWC, [4, 5, 6])
    out = oracles.eager(spec).generate(
        inputs_embeds=one.embeds_TD[None], max_new_tokens=8, do_sample=False, eos_token_id=None
    )
    return out[0].tolist()


def engine_sources() -> list[Path]:
    root = Path(mlb_batch.__file__).parent
    return [path for part in ("cost", "prune", "vlm") for path in sorted((root / part).glob("*.py"))]


def test_no_attention_is_asked_for_and_no_environment_is_a_setting() -> None:
    """`output_attentions` drops the causal mask under SDPA. Of the environment, only where a cache lies is read."""
    for path in engine_sources():
        tree = ast.parse(path.read_text())
        names = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        keywords = [node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword)]
        assert "output_attentions" not in names + keywords, path
        assert not {"register_forward_hook", "register_forward_pre_hook", "getenv"} & set(names), path
        if "environ" in names:
            calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
            asked = [ast.literal_eval(c.args[0]) for c in calls if ast.unparse(c.func).startswith("os.environ")]
            assert set(asked) == {"XDG_CACHE_HOME"}, (path, asked)


def test_the_checkpoint_folder_is_not_written_to() -> None:
    spec = FAMILIES["onevision"]
    before = {p.name: p.stat().st_mtime_ns for p in folder(spec).iterdir()}
    run(spec, settings(pruning("adatp"), 300_000), [Case(pixels(spec, 2, 1), TEXTS[:1])])
    assert {p.name: p.stat().st_mtime_ns for p in folder(spec).iterdir()} == before
