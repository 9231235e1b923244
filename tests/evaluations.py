"""Small evaluations for the tests: their files, and cells, items and answers that nobody has asked a model for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models import Spec, folder

from mlb_batch.errors import JobError
from mlb_batch.evaluate.cells import Cell
from mlb_batch.evaluate.items import Item
from mlb_batch.evaluate.job import evaluate
from mlb_batch.evaluate.results import Answers
from mlb_batch.evaluate.spec import EvalSpec
from mlb_batch.evaluate.tables import Evaluation
from mlb_batch.spec import JobSpec

DEEP = Spec(layers=8, heads=2, kv_heads=1, tied=True, side=8)
ITEMS = [
    Item("a", "v1", "open", "?", "red", tags={"kind": "colour", "hangs_on": "early"}),
    Item("b", "v1", "choice", "?", "two", ("one", "two"), tags={"kind": "count", "hangs_on": "any"}),
    Item("c", "v2", "open", "?", "blue", tags={"kind": "colour", "hangs_on": "any"}),
    Item("lost", "v3", "open", "?", "x", tags={"kind": "colour", "hangs_on": "any"}),
    Item("told", "v2", "caption", "?", "A red ring moves left. A blue ring moves left."),
]


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


def shown(given: EvalSpec, **more: Any) -> Evaluation:
    nothing: dict[str, Any] = {"cells": [], "estimates": [], "costs": {}, "refused": {}, "facts": {}}
    return Evaluation(spec=given, title="made", note="", asked="3 questions", clips=2, **nothing | more)


def spec(tmp_path: Path, **more: Any) -> EvalSpec:
    return EvalSpec.from_dict({"methods": ["none", "random"], "output": str(tmp_path / "out"), **more})


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
