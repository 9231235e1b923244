"""The cells of an evaluation: every model with every method at every budget, each one an ordinary job."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from mlb_batch.errors import ModelError, SpecError
from mlb_batch.evaluate.spec import EvalSpec, MethodSpec
from mlb_batch.planning.setup import Setup, setup
from mlb_batch.spec import JobSpec
from mlb_batch.spec_parts import ModelSpec
from mlb_batch.storage import join

PROMPTS = [
    {"id": "asked", "kind": "qa", "column": "questions"},
    {"id": "described", "kind": "caption", "column": "captions"},
]
_SET = ("models.", "methods.")  # in an evaluation, of what are parts of a job


@dataclass(frozen=True)
class Cell:
    name: str
    model: str
    method: str  # as tables call it
    rule: str  # the method's own name
    ratio: float  # 1.0 for none
    job: JobSpec

    def over(self, manifest: str) -> Cell:
        """Asking what stands there: questions are gathered, and written, once every cell is known to be sound."""
        asked = {**self.job.input.model_dump(mode="json"), "manifest": manifest}
        return replace(self, job=self.job.changed(input=asked))


def cells(spec: EvalSpec, output: str, videos: str) -> list[Cell]:
    """All of them, checked before the first one runs; what they ask is still to be said, with `over`."""
    asked = {
        "manifest": join(output, "manifest.jsonl"),
        "id_column": "id",
        "changed": "never",
        "allow": spec.benchmark.allowed(videos),
    }
    shared = {**spec.job, "input": asked, "prompts": PROMPTS, "budget": {"scope": spec.scope}, "output": output}
    every = [
        _cell(shared, model, short, method, ratio)
        for model, short in zip(spec.models, short_names([model.id for model in spec.models]), strict=True)
        for method in spec.methods
        for ratio in ((1.0,) if method.method == "none" else spec.ratios)
    ]
    name, times = Counter(cell.name for cell in every).most_common(1)[0] if every else ("", 1)
    if times > 1:
        raise SpecError(f"{times} cells would be called {name}; give other labels, or ratios that are further apart")
    return every


def short_names(ids: list[str]) -> list[str]:
    """Names for folders and tables: the last part of each id, numbered where that is not enough."""
    last = [re.sub(r"[^A-Za-z0-9_.\-]+", "-", re.split(r"[/:]", one.rstrip("/"))[-1]).strip("-") for one in ids]
    return list(_apart([name or "model" for name in last]))


def _apart(names: list[str]) -> Iterator[str]:
    taken = {name for name in names if names.count(name) == 1}
    for name in names:
        if names.count(name) > 1:
            name = next(one for number in count(1) if (one := f"{name}-{number}") not in taken)
            taken.add(name)
        yield name


def _cell(shared: Mapping[str, Any], model: ModelSpec, short: str, method: MethodSpec, ratio: float) -> Cell:
    """`shared`: the job, as far as it is that of all cells."""
    name = f"{short}--{method.name}" + ("" if method.method == "none" else f"--{ratio:g}")
    job = {
        **shared,
        "name": name,
        "model": model.model_dump(),
        "prune": {**shared.get("prune", {}), **method.model_dump(exclude={"label"})},
        "budget": {**shared["budget"], "ratio": ratio},
        "output": join(shared["output"], f"cells/{name}"),
    }
    return Cell(name, short, method.name, method.method, ratio, _checked(job, method.name))


def _checked(job: Mapping[str, Any], method: str) -> JobSpec:
    try:
        return JobSpec.from_dict(job)
    except SpecError as error:
        lines = (_in_its_words(line, method) for line in str(error).splitlines())
        raise SpecError("\n".join(line if line.startswith(_SET) else f"job.{line}" for line in lines)) from None


def means_of(cell: Cell) -> Setup:
    """Its model and method, resolved."""
    try:
        return setup(cell.job)
    except (SpecError, ModelError) as error:
        raise type(error)(_in_its_words(str(error), cell.method)) from None


def _in_its_words(said: str, method: str) -> str:
    """A mistake in a cell's job, by the keys of the evaluation where those set it."""
    said = re.sub(r"^model\.", "models.", said)
    return re.sub(r"^prune\.(?=(method|options|select|feature_model)\b)", f"methods.{method}.", said)
