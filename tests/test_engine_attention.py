"""The attention kernels: rows that are the last of a sequence, the scores of query rows, and the packed CUDA call."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_runs import Case, model, pruning, settings
from hypothesis import given
from hypothesis import settings as example
from hypothesis import strategies as st
from models import FAMILIES, Spec, checkpoint, folder, pixels
from torch import Tensor

from mlb_batch.cost.shapes import model_shape
from mlb_batch.errors import ModelError
from mlb_batch.vlm import prepare, replay
from mlb_batch.vlm.attention import Lengths, attend_last, attend_varlen, attention_rows
from mlb_batch.vlm.captioner import Answer, Ask, Captioner, Clip, Settings
from mlb_batch.vlm.checkpoint import resolve
from mlb_batch.vlm.decoder import Decoder
from mlb_batch.vlm.load import load
from mlb_batch.vlm.rope import Rope
from mlb_batch.vlm.trees import Forest, Tree

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def by_hand(q_HQd: Tensor, k_hSd: Tensor, v_hSd: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Token by token: query i of the last Q sees every key up to its own place; heads share keys in groups."""
    heads, rows, _ = q_HQd.shape
    keys, shared = k_hSd.shape[1], heads // len(k_hSd)
    out, paid = torch.zeros(heads, rows, v_hSd.shape[-1]), torch.zeros(heads, rows, keys)
    for h in range(heads):
        for i in range(rows):
            seen = keys - rows + i + 1
            weights = torch.softmax(k_hSd[h // shared, :seen] @ q_HQd[h, i] * scale, dim=0)
            out[h, i], paid[h, i, :seen] = weights @ v_hSd[h // shared, :seen], weights
    return out, paid


@st.composite
def sequences(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, float]:
    shared, groups, rows = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 6))
    keys = rows + draw(st.integers(0, 9))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    sizes = ((shared * groups, rows), (shared, keys), (shared, keys))
    q, k, v = (torch.randn(heads, length, 8, generator=random) for heads, length in sizes)
    return q, k, v, draw(st.sampled_from([8**-0.5, 0.1]))


@example(max_examples=100, deadline=None)
@given(sequences())
def test_the_last_rows_of_a_sequence(parts: tuple[Tensor, Tensor, Tensor, float]) -> None:
    q, k, v, scale = parts
    out, paid = by_hand(q, k, v, scale)
    torch.testing.assert_close(attend_last(q, k, v, scale), out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(attention_rows(q, k, scale), paid, atol=1e-6, rtol=1e-5)


def a_forest(device: str = "cpu") -> Forest:
    """A lone sequence, and a trunk with two branches."""
    trees = [
        Tree(0, 0, (0,), 2, torch.arange(5, device=device), 1, (4,), span=5),
        Tree(1, 0, (0, 1), 3, torch.tensor([0, 2, 7], device=device), 0, (2, 5), span=9),
    ]
    return Forest(trees)


def test_a_forest_is_its_sequences() -> None:
    """Packed attention over trunk and branches is that of each whole sequence alone; positions keep their gaps."""
    forest = a_forest()
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(n, forest.length, 8, generator=random) for n in (4, 2, 2))
    packed = forest.attend(0, q, k, v, 0.3)
    for tree, branches in ((0, 1), (1, 2)):
        for branch in range(branches):
            of = [forest.sequence(x, tree, branch) for x in (q, k, v)]
            alone, _ = by_hand(*of, 0.3)
            torch.testing.assert_close(forest.sequence(packed, tree, branch), alone, atol=1e-5, rtol=1e-5)
    assert forest.trees[1].positions.tolist() == [0, 1, 2, 3, 5, 10, 12, 13, 12, 13, 14, 15, 16]
    assert forest.calls(1) == [(6, 6), (2, 8), (5, 11)]


@example(max_examples=50, deadline=None)
@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 2**16))
def test_turning_a_key_back_and_on_is_turning_it_there(old: int, new: int, seed: int) -> None:
    spec = FAMILIES["next"]
    rope = Rope.of(model(spec).model.language_model.rotary_emb, spec.context)
    x_hTd = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(seed))
    there, here = torch.arange(new, new + 3), torch.arange(old, old + 3)
    moved = rope.rotate(rope.unrotate(rope.rotate(x_hTd, here), here), there)
    torch.testing.assert_close(moved, rope.rotate(x_hTd, there), atol=1e-5, rtol=1e-5)


_STRETCHED = {"factor": 8.0, "original_max_position_embeddings": 512}
ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": _STRETCHED,
    "llama3": {**_STRETCHED, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
}


@pytest.mark.parametrize("kind", ROPES)
def test_up_to_the_context_positions_are_transformers_own(kind: str, tmp_path: Path) -> None:
    """The context is the whole one that the plan reckons with, not the one before `yarn` or `llama3` stretched it."""
    spec, place = FAMILIES["llava"], tmp_path / "model"
    shutil.copytree(folder(spec), place)
    config = json.loads((place / "config.json").read_text())
    config["text_config"]["rope_parameters"] = {"rope_type": kind, "rope_theta": 10_000.0, **ROPES[kind]}
    (place / "config.json").write_text(json.dumps(config))
    found = resolve(str(place))
    reach = 4 * spec.context if kind == "linear" else spec.context  # such a config gives what the scaling begins with
    loaded, position_T = load(found, torch.device("cpu"), torch.float32), torch.arange(reach)
    rope = Decoder.of(loaded, found.shape).rope
    assert rope.context == found.shape.decoder.context == reach
    ours = rope.scaled(reach).cos_sin(position_T, torch.float32)
    theirs = loaded.model.language_model.rotary_emb(torch.zeros(1), position_T[None])
    for mine_Td, theirs_1Td in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine_Td, theirs_1Td[0])


def test_frequencies_that_change_with_the_length_are_refused() -> None:
    for rope in ({"rope_parameters": {"rope_type": "longrope"}}, {"rope_scaling": {"type": "longrope"}}):
        with pytest.raises(ModelError, match="longrope"):
            model_shape({"model_type": "llava", "text_config": rope})


# On a GPU. Half precision: the packed kernel takes no other.


@on_cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_packed_kernel_is_the_loop_over_sequences(dtype: torch.dtype) -> None:
    """Rows that are fewer than keys stand at the end of them (bottom right), for grouped heads and any scale."""
    random = torch.Generator("cuda").manual_seed(0)
    rows, keys = [7, 1, 300, 4], [7, 12, 300, 130]
    q, k, v = (
        torch.randn(n, sum(of), 64, generator=random, device="cuda", dtype=dtype)
        for n, of in ((8, rows), (2, keys), (2, keys))
    )
    packed = attend_varlen(q, k, v, Lengths.of(rows, keys, q.device), 0.2)
    for i in range(len(rows)):
        row, key = slice(sum(rows[:i]), sum(rows[: i + 1])), slice(sum(keys[:i]), sum(keys[: i + 1]))
        alone, _ = by_hand(q[:, row].float().cpu(), k[:, key].float().cpu(), v[:, key].float().cpu(), 0.2)
        torch.testing.assert_close(packed[:, row].float().cpu(), alone, atol=2e-2, rtol=2e-2)


@on_cuda
def test_a_packed_forest_is_its_sequences() -> None:
    forest = a_forest("cuda")
    random = torch.Generator("cuda").manual_seed(0)
    q, k, v = (
        torch.randn(n, forest.length, 64, generator=random, device="cuda", dtype=torch.bfloat16) for n in (4, 2, 2)
    )
    packed = forest.attend(0, q, k, v, 0.3)
    for tree, branch in ((0, 0), (1, 0), (1, 1)):
        of = [forest.sequence(x, tree, branch).float().cpu() for x in (q, k, v)]
        alone, _ = by_hand(*of, 0.3)
        torch.testing.assert_close(forest.sequence(packed, tree, branch).float().cpu(), alone, atol=2e-2, rtol=2e-2)


@on_cuda
@pytest.mark.parametrize("spec", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("name", ["none", "adatp", "mlb"])
def test_a_gpu_in_fp32_says_what_a_cpu_says(name: str, spec: Spec) -> None:
    clips = [Clip(pixels(spec, n, n), (Ask(f"{n}", "qa", "What is it?"), Ask(f"{n}b", "qa", "Why"))) for n in (2, 5)]
    said = []
    for device in ("cpu", "cuda"):
        made = Captioner(checkpoint(spec), Settings(pruning(name), 400_000, 8, device=device, dtype="float32"))
        said.append([[(a.text, a.bill) for a in some if isinstance(a, Answer)] for some in made.annotate(clips)])
    assert said[0] == said[1]


@on_cuda
@pytest.mark.parametrize("name", ["none", "adatp", "mlb"])
def test_a_gpu_in_bfloat16_answers_every_prompt(name: str) -> None:
    spec = FAMILIES["onevision"]
    given = settings(pruning(name), 400_000)
    case = Case(pixels(spec, 4, 1), ("What is it?", "Why"))
    made = Captioner(checkpoint(spec), Settings(given.method, given.keep, 8, device="cuda"))
    (some,) = made.annotate([Clip(case.pixels_FHWC, tuple(Ask(t, "qa", t) for t in case.texts))])
    assert all(isinstance(a, Answer) and a.bill.executed.llm == a.bill.planned.llm for a in some)


@on_cuda
@pytest.mark.parametrize("name", ["none", "adatp"])
def test_a_recorded_step_on_a_gpu_is_the_plain_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, said = FAMILIES["onevision"], []
    asks = tuple(Ask(text, "qa", text) for text in ("What is it?", "Why", "Where is the red ball"))
    for plain_turns in (2, 100):
        monkeypatch.setattr(replay, "PLAIN_TURNS", plain_turns)
        made = Captioner(checkpoint(spec), Settings(pruning(name), 400_000, 32, device="cuda"))
        (some,) = made.annotate([Clip(pixels(spec, 4, 1), asks)])
        said.append([a.text for a in some if isinstance(a, Answer)])
    assert said[0] == said[1] and len(said[0]) == len(asks)


@on_cuda
@pytest.mark.parametrize("name", ["none", "adatp", "mlb"])
def test_a_gpu_holds_no_more_than_it_has_room_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of clips large enough to weigh; what the tower holds at once is no clip's and is left beside it."""
    spec, room = Spec("llava_next", "llama", layers=8, side=24, context=32_768), 64 * 2**20
    made = Captioner(checkpoint(spec), Settings(pruning(name), 400_000, 8, device="cuda"))
    clips = [Clip(pixels(spec, 32, n), (Ask(f"{n}", "qa", "What is it?"),)) for n in range(6)]
    made.annotate(clips[:1])
    for left in (2**40, room):
        monkeypatch.setattr(prepare, "room_bytes", lambda _, left=left: left)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        assert all(isinstance(a, Answer) for some in made.annotate(clips) for a in some)
        most = torch.cuda.max_memory_allocated() - before
        print(f"{most / 2**20:.0f} MiB")
    assert most <= room + 32 * 2**20
