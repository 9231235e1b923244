"""JobSpec: what a job file may say, of the parts in spec_parts.py, and the rules between them.

A mistake is one line: the key's path, what is wrong, and what to do. Several mistakes are listed one a line.
A method's own options are checked by `plan`, which knows the methods.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import Field, PrivateAttr, ValidationError, model_validator
from yaml.representer import RepresenterError

from mlb_batch import spec_text
from mlb_batch.errors import SpecError
from mlb_batch.spec_parts import (
    BUDGET_KINDS,
    BudgetSpec,
    CanarySpec,
    ClipsSpec,
    ClusterSpec,
    FramesSpec,
    GenerateSpec,
    InputSpec,
    LimitsSpec,
    ModelSpec,
    NotifySpec,
    OutputSpec,
    Part,
    PromptSpec,
    PruneSpec,
    RetrySpec,
)
from mlb_batch.spec_types import Name

DEFAULT_RATIO = 0.273


class JobSpec(Part):
    """A whole job file, checked."""

    name: Name = "annotations"
    """For reports and metrics."""
    input: InputSpec
    clips: ClipsSpec | None = None
    prompts: Annotated[tuple[PromptSpec, ...], Field(strict=False, json_schema_extra={"minItems": 1})]
    model: ModelSpec = ModelSpec()
    frames: FramesSpec = FramesSpec()
    prune: PruneSpec = PruneSpec()
    budget: BudgetSpec = BudgetSpec(ratio=DEFAULT_RATIO)
    canary: CanarySpec = CanarySpec()
    generate: GenerateSpec = GenerateSpec()
    retry: RetrySpec = RetrySpec()
    limits: LimitsSpec = LimitsSpec()
    output: OutputSpec
    notify: NotifySpec = NotifySpec()
    cluster: ClusterSpec = ClusterSpec()

    _as_written: str = PrivateAttr(default="")

    @classmethod
    def load(cls, path: str | Path, sets: Iterable[str] = ()) -> JobSpec:
        """The job of a YAML file, with `key.sub=value` settings applied over it."""
        return cls.from_dict(spec_text.read(Path(path), sets))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> JobSpec:
        if not isinstance(data, Mapping):
            raise SpecError(f"{data!r} is no mapping of a job's keys; JobSpec.load reads a file")
        try:
            written = spec_text.dump_yaml(dict(data))
        except RepresenterError as error:
            raise SpecError(f"{error.args[-1]!r} is no plain value; write it as a text or a number") from None
        plain = spec_text.expand_environment(yaml.safe_load(written))
        try:
            spec = cls.model_validate(plain)
        except ValidationError as error:
            raise SpecError(spec_text.explain(error, cls)) from None
        spec._as_written = written
        return spec

    @property
    def canary_rivals(self) -> tuple[str, ...]:
        """Whatever its options are, a method is not held against itself."""
        return tuple(name for name in self.canary.against if name != self.prune.method)

    def as_written(self) -> str:
        """The job as YAML, with ${ENV} still unexpanded: what a run keeps of it holds no secret. Once its input is
        anchored, so it is here: whoever follows it later stands in another folder.
        """
        places = self.input.model_dump(mode="json", include={"manifest", "videos", "allow"})
        return spec_text.without_webhook(spec_text.with_places(self._written(), places))

    def changed(self, **parts: Any) -> JobSpec:
        """The same job with some of its top-level keys replaced."""
        return self.from_dict({**yaml.safe_load(self._written()), **parts})

    def _written(self) -> str:
        """One that its constructor made, and no file, is written by its values."""
        return self._as_written or spec_text.dump_yaml(self.model_dump(mode="json"))

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        alternatives = {
            "BudgetSpec": BUDGET_KINDS,
            "InputSpec": ("manifest", "videos"),
            "PromptSpec": ("text", "column"),
        }
        return spec_text.published_schema(cls.model_json_schema(), alternatives)

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, data: Any) -> Any:
        """`output: URI`, `model: ID`, and the ratio that a job without a budget gets."""
        if not isinstance(data, Mapping):
            return data
        data = spec_text.long_forms(data, {"output": "uri", "model": "id"})
        budget = data.get("budget") or {}
        if isinstance(budget, Mapping) and all(budget.get(kind) is None for kind in BUDGET_KINDS):
            prune = data.get("prune")
            unpruned = isinstance(prune, Mapping) and prune.get("method") == "none"
            data["budget"] = {**budget, "ratio": 1.0 if unpruned else DEFAULT_RATIO}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.prompts:
            raise ValueError("prompts: give at least one prompt, like {id: caption, kind: caption, text: Describe it.}")
        ids = [prompt.id for prompt in self.prompts]
        twice = sorted({one for one in ids if ids.count(one) > 1})
        if twice:
            raise ValueError(f"prompts: the id {twice[0]!r} is used twice")
        if self.prune.method == "none" and self.budget.ratio is not None and self.budget.ratio < 1:
            raise ValueError(
                f"budget.ratio: {self.budget.ratio} can't be met by prune.method none, which drops nothing; "
                "choose a method, or set ratio to 1"
            )
        if self.model.device == "cuda" and self.cluster.caption.num_gpus == 0:
            raise ValueError(
                "model.device: cuda needs a GPU, and cluster.caption.num_gpus is 0; set model.device to auto for the "
                "CPU, or num_gpus to 1"
            )
        problems = [line for n, prompt in enumerate(self.prompts) for line in self._prompt_problems(n, prompt)]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _prompt_problems(self, n: int, prompt: PromptSpec) -> Iterable[str]:
        if prompt.column is not None and self.input.manifest is None:
            yield f"prompts[{n}].column: only a manifest has columns; use input.manifest, or give text"
        if prompt.text is None:
            return
        try:
            names = spec_text.template_names(prompt.text)
        except ValueError as error:
            yield f"prompts[{n}].text: {error}"
            return
        for name in names:
            if name not in self.input.columns:
                hint = spec_text.did_you_mean(name, self.input.columns)
                remedy = f"add it there, or write {{{{{name}}}}}"
                yield f"prompts[{n}].text: {{{name}}} is not in input.columns{hint}; {remedy}"


if __name__ == "__main__":
    print(json.dumps(JobSpec.json_schema(), indent=2))
