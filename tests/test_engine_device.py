"""The engine on a CUDA device, a pretended one: it says what the CPU says, and does not wait inside its layers.

What a GPU alone can tell is in test_engine_attention.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from engine_runs import pruning
from models import FAMILIES, Spec, checkpoint, pair_checkpoint, pixels
from pretend_cuda import CUDA, Device, pretend

from mlb_batch.bench import bed, ceilings
from mlb_batch.bench.options import Options
from mlb_batch.bench.run import runner
from mlb_batch.bench.suite import ON_A_SHAPE
from mlb_batch.vlm import captioner, load, replay
from mlb_batch.vlm.attention import packs
from mlb_batch.vlm.captioner import Answer, Ask, Captioner, Clip, Settings

NEW_TOKENS = 8
CPU = torch.device("cpu")
METHODS = ("none", "adatp", "fastv", "segattn", "mlb-g", "mlb", "random", "frames", "pool", "density", "unique")


@pytest.fixture(autouse=True)
def a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (load, captioner):
        monkeypatch.setattr(module, "pick_device", lambda name: CUDA if name == "cuda" else CPU)
    monkeypatch.setitem(load._DTYPES, "float64", torch.float64)


def clips(spec: Spec) -> list[Clip]:
    """Unlike ones, one of them with two prompts that part."""
    both = (Ask("a", "qa", "What is it?"), Ask("b", "qa", "Why is the ball red"))
    return [Clip(pixels(spec, 2, 2), both[:1]), Clip(pixels(spec, 5, 5), both)]


def said(spec: Spec, name: str, device: str, dtype: str = "float32", options: dict[str, Any] | None = None,
         new_tokens: int = NEW_TOKENS, selections: float = 1.0, **how: Any) -> list[Answer]:  # fmt: skip
    pair = pair_checkpoint() if (options or {}).get("features") == "paired" else None
    given = Settings(
        pruning(name, options, **how), 400_000, new_tokens, device=device, dtype=dtype, selections=selections,
        feature_model=pair,
    )  # fmt: skip
    answers = [one for some in Captioner(checkpoint(spec), given).annotate(clips(spec)) for one in some]
    assert all(isinstance(one, Answer) for one in answers)
    return [one for one in answers if isinstance(one, Answer)]


def alike(ours: list[Answer], theirs: list[Answer]) -> None:
    assert [(a.text, a.num_kept_tokens, a.bill) for a in ours] == [(a.text, a.num_kept_tokens, a.bill) for a in theirs]
    assert [[row["kept"] for row in a.selections] for a in ours] == [
        [row["kept"] for row in a.selections] for a in theirs
    ]


@pytest.mark.parametrize("spec", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("name", METHODS)
def test_a_device_says_what_the_cpu_says(name: str, spec: Spec) -> None:
    cpu = said(spec, name, "cpu")
    with pretend():
        alike(said(spec, name, "cuda"), cpu)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("adatp", {"options": {"features": "paired"}}),
        ("adatp", {"options": {"global": "both", "local": "suppress", "spend": "cap"}}),
        ("adatp", {"select": "per_video", "compact": True}),
        ("mlb", {"options": {"expand": "refeed"}}),
    ],
)
def test_so_it_does_in_other_ways_of_a_method(name: str, how: dict[str, Any]) -> None:
    spec = FAMILIES["onevision"]
    cpu = said(spec, name, "cpu", **how)
    with pretend():
        alike(said(spec, name, "cuda", **how), cpu)


@pytest.mark.parametrize("name", ["none", "adatp", "mlb"])
def test_with_little_memory_left_it_says_the_same_in_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = FAMILIES["onevision"]
    cpu, parts = said(spec, name, "cpu"), joined(monkeypatch)
    for left, wanted in ((2**40, [(2, 0)]), (300_000, [(1, 0), (1, 1)]), (1000, [(1, 0), (1, 0)])):
        with pretend() as device:
            device.free_bytes = left
            alike(said(spec, name, "cuda"), cpu)
        assert parts == wanted, left
        parts.clear()


def test_on_a_part_of_a_device_only_that_part_is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with `cluster.caption.num_gpus` below one: the others that stand on it have as much."""
    parts, spec = joined(monkeypatch), FAMILIES["onevision"]
    given = Settings(pruning("adatp"), 400_000, NEW_TOKENS, device="cuda", dtype="float32")
    with pretend() as device:
        device.free_bytes = 600_000
        for share, wanted in ((1.0, [(2, 0)]), (0.5, [(1, 0), (1, 1)])):
            Captioner(checkpoint(spec), replace(given, device_share=share)).annotate(clips(spec))
            assert (device.share, parts) == (share, wanted)
            parts.clear()


def joined(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Of each group of clips how many they are, and how many answers were still generated when they came."""
    parts: list[tuple[int, int]] = []
    begin = Captioner._begin

    def noting(made: Captioner, group: Any, meters: Any, together: Any) -> Any:
        parts.append((len(group), len(together._running)))
        return begin(made, group, meters, together)

    monkeypatch.setattr(Captioner, "_begin", noting)
    return parts


@pytest.mark.parametrize("plain_turns", [1, 100])
@pytest.mark.parametrize("name", ["none", "adatp", "mlb"])
def test_those_that_wait_go_in_when_others_have_ended(name: str, plain_turns: int,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """On a device when half have: to record a step anew for every one that ends would cost more than it gains."""
    spec = FAMILIES["onevision"]
    monkeypatch.setattr(replay, "PLAIN_TURNS", plain_turns)
    waiting = [Clip(pixels(spec, 3, i), (Ask(str(i), "qa", "Why"),)) for i in range(14)]

    def captioned(device: str) -> list[list[Any]]:
        given = Settings(pruning(name), 400_000, 24, device=device, dtype="float64", temperature=2.0)
        made = Captioner(checkpoint(spec), given)
        made._stop = frozenset(range(0, made.shape.decoder.vocab, 7))
        return [[one.text if isinstance(one, Answer) else one for one in some] for some in made.annotate(waiting)]

    cpu, parts = captioned("cpu"), joined(monkeypatch)
    with pretend() as device:
        device.free_bytes = 1_500_000
        assert captioned("cuda") == cpu
    first, *later = parts
    assert first[1] == 0 and any(running for _, running in later), parts
    assert sum(clips for clips, _ in parts) == len(waiting)


@pytest.mark.parametrize("spec", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("name", ["none", "adatp", "mlb"])
def test_the_packed_kernels_are_the_loop_over_sequences(name: str, spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "PLAIN_TURNS", NEW_TOKENS)  # what is replayed is not counted
    cpu = said(spec, name, "cpu", "float64")
    with pretend() as device:
        alike(said(spec, name, "cuda", "float64"), cpu)
    calls, once = device.calls["aten._flash_attention_forward.default"], checkpoint(spec).shape.decoder.layers
    assert calls >= NEW_TOKENS * once
    if name == "none":
        assert calls == NEW_TOKENS * once, "one a layer: of the prefill, and of every token but the first"


@pytest.mark.parametrize("name", ["none", "adatp", "mlb"])
def test_where_there_is_no_such_kernel_sequences_go_one_by_one(name: str) -> None:
    spec = FAMILIES["onevision"]
    cpu = said(spec, name, "cpu", "float64")
    with pretend() as device:
        device.capability = (7, 5)
        alike(said(spec, name, "cuda", "float64"), cpu)
    assert not device.calls["aten._flash_attention_forward.default"]


def test_which_heads_the_packed_kernel_takes() -> None:
    with pretend() as device:

        def taken(width: int, dtype: torch.dtype = torch.bfloat16) -> bool:
            return packs(torch.empty(2, 3, width, dtype=dtype, device=CUDA))

        assert [width for width in (8, 12, 64, 80, 128, 250, 256, 264) if taken(width)] == [8, 64, 80, 128, 256]
        assert not taken(64, torch.float32)
        device.capability = (7, 5)
        assert not taken(64)
    assert not packs(torch.empty(2, 3, 64, dtype=torch.bfloat16))


@pytest.mark.parametrize("name", ["none", "adatp", "mlb"])
def test_a_recorded_step_says_what_a_plain_one_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever has ended before the others: a graph is recorded anew only where half of them have."""
    spec = FAMILIES["onevision"]
    cpu = said(spec, name, "cpu", "float64", new_tokens=24)
    for plain_turns in (1, 3, 100):
        monkeypatch.setattr(replay, "PLAIN_TURNS", plain_turns)
        with pretend():
            alike(said(spec, name, "cuda", "float64", new_tokens=24), cpu)


def test_where_nothing_can_be_recorded_it_goes_on_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = FAMILIES["onevision"]
    cpu = said(spec, "none", "cpu", "float64")
    monkeypatch.setattr(replay, "PLAIN_TURNS", 2)
    with pretend(), pytest.warns(UserWarning, match="not recorded as a graph, and slower: no graphs here"):
        monkeypatch.setattr(torch.cuda, "graph", no_graphs)
        alike(said(spec, "none", "cuda", "float64"), cpu)


def no_graphs(_: object) -> None:
    raise RuntimeError("no graphs here")


@pytest.fixture
def device() -> Iterator[Device]:
    with pretend() as found:
        yield found


@pytest.mark.parametrize("name", ["none", "adatp", "mlb"])
def test_no_layer_waits_for_the_device(name: str, device: Device) -> None:
    said(FAMILIES["onevision"], name, "cuda", "bfloat16")
    inside = [stack for stack in device.waits if "decoder.py:layer" in stack]
    assert not inside, Counter(inside)
    steps = Counter(stack[-1] for stack in device.waits if any(one.startswith("generate.py:") for one in stack))
    assert 0 < steps["generate.py:_taken"] <= NEW_TOKENS and steps["decoder.py:embed"] <= NEW_TOKENS, steps
    assert sum(steps.values()) <= 2 * NEW_TOKENS + 5, steps


@pytest.mark.parametrize("name", ["none", "adatp", "fastv", "density", "unique"])
def test_no_cut_waits_for_the_device(name: str, device: Device) -> None:
    """However many there are; what is asked at the end is whether all of them were sound, and how many segments."""
    said(FAMILIES["onevision"], name, "cuda", "bfloat16", selections=0.0)
    inside = Counter(stack[-1] for stack in device.waits if "prefill.py:prefill" in stack)
    parts = 2  # at most, where prompts part
    assert set(inside) <= {"view.py:all_in_order", "prefill.py:_segments"} and max(inside.values()) <= parts, inside


@pytest.mark.parametrize("name", ON_A_SHAPE)
def test_the_benchmarks_of_the_engine_run_on_a_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides; what they would measure is nothing here, but for the counts."""
    made = bed.random_model
    monkeypatch.setattr(bed, "pick_device", lambda _: CUDA)
    monkeypatch.setattr(bed, "random_model", lambda wanted, _, dtype: made(wanted, CPU, dtype).to(CUDA))
    for part, stand_in in (("synchronize", None), ("reset_peak_memory_stats", None), ("max_memory_allocated", 7)):
        monkeypatch.setattr(torch.cuda, part, lambda _, given=stand_in: given)
    monkeypatch.setitem(ceilings._EDGE, "cuda", 64)
    monkeypatch.setitem(ceilings._BYTES, "cuda", 2**16)
    with pretend():
        found = runner(Options(frames=8, new_tokens=2, ratio=0.5, batch=1))(name)
    figures = found["vision_and_prefill"] if name == "prefill" else found
    assert figures["ratios"] and (name == "vision" or set(figures["peak_bytes"].values()) == {7})


# The pretence.


def test_what_the_device_does_is_strict_and_its_waits_are_known(device: Device) -> None:
    here, there = torch.ones(3, 4), torch.arange(12.0, device=CUDA).view(3, 4)
    assert there.is_cuda and not device.waits
    for mixed in (lambda: here + there, lambda: torch.cat([here, there]), lambda: there @ here.T):
        with pytest.raises(RuntimeError, match="on the CPU and on the device"):
            mixed()
    assert (there + torch.tensor(1.0)).is_cuda, "a lone number may come along"
    there[1:2] = 7.0
    view = there.view(2, 6)
    view += 1
    assert not device.waits
    assert there.tolist() == [[1, 2, 3, 4], [8, 8, 8, 8], [9, 10, 11, 12]] and len(device.waits) == 1
    reads = (
        lambda: here.to(CUDA), lambda: there.cpu(), lambda: bool(there.any()), lambda: there[there > 3],
        lambda: there.sum().item(), lambda: (there > 3).nonzero(), lambda: torch.tensor([1], device=CUDA),
    )  # fmt: skip
    for n, read in enumerate(reads, 2):
        read()
        assert len(device.waits) == n
