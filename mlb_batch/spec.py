"""JobSpec: what a job file may say, with every default and every rule that can be checked without the data.

A mistake is one line: the key's path, what is wrong, and what to do. Several mistakes are listed one a line.
A method's own options are checked by `plan`, which knows the methods.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from mlb_batch import spec_text
from mlb_batch.errors import SpecError
from mlb_batch.spec_types import Bounds, BoundsOrAuto, Count, CountOrAuto, Name, Output, Positive, Share, Texts, Uri
from mlb_batch.storage import local_path

DEFAULT_RATIO = 0.273
MOST_CHOICES = 26  # answered by a letter
UNPACKED = "working_dir_files"  # where Ray unpacks what `ray job submit --working-dir` ships, until it needs the room
BUDGET_KINDS = ("ratio", "pflops", "pflops_per_hour_of_video", "gpu_hours")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class InputSpec(_Part):
    manifest: Uri | None = None
    videos: Uri | None = None
    uri_column: Name = "uri"
    id_column: Name | None = None
    start_column: Name | None = None
    end_column: Name | None = None
    columns: Texts = ()
    changed: Literal["version", "never"] = "version"
    allow: Annotated[tuple[Uri, ...], Field(strict=False)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.manifest is None) == (self.videos is None):
            raise ValueError("give exactly one of manifest (.parquet, .jsonl, .csv) and videos (a glob or a prefix)")
        if self.manifest is not None and not self.manifest.endswith((".parquet", ".jsonl", ".csv")):
            raise ValueError(f"manifest must end in .parquet, .jsonl or .csv, got {self.manifest!r}")
        if self.videos is not None:
            given = [key for key in ("id_column", "start_column", "end_column", "columns") if getattr(self, key)]
            if given:
                raise ValueError(f"{', '.join(given)}: only a manifest has columns; use manifest instead of videos")
        if len(set(self.columns)) < len(self.columns):
            raise ValueError("columns names a column twice")
        return self


class ClipsSpec(_Part):
    every_s: Positive
    overlap_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0

    @model_validator(mode="after")
    def _moves_on(self) -> Self:
        if self.overlap_s >= self.every_s:
            raise ValueError("overlap_s must be less than every_s")
        return self


class PromptSpec(_Part):
    id: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9_.\-]+$")]
    kind: Literal["caption", "qa", "choice"]
    text: Annotated[str, Field(min_length=1, max_length=16_000)] | None = None
    column: Name | None = None
    choices: Texts = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.text is None) == (self.column is None):
            raise ValueError("give exactly one of text and column")
        if self.kind != "choice" and self.choices:
            raise ValueError(f"choices belong to kind choice, not {self.kind}")
        wanted = self.choices or (self.kind == "choice" and self.text is not None)
        if wanted and not 2 <= len(self.choices) <= MOST_CHOICES:
            raise ValueError(f"kind choice needs 2 to {MOST_CHOICES} choices")
        if len(set(self.choices)) < len(self.choices):
            raise ValueError("choices holds the same choice twice")
        return self


class ModelSpec(_Part):
    id: Uri = "embedded:tiny"
    revision: Name = "main"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: Name = "auto"


class FramesSpec(_Part):
    count: Annotated[int, Field(ge=1, le=4096)] = 32
    strategy: Literal["uniform", "fps", "keyframes"] = "uniform"
    fps: Positive | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.strategy == "fps") != (self.fps is not None):
            raise ValueError("fps goes with strategy fps and only with it, like {strategy: fps, fps: 1, count: 64}")
        return self


class PruneSpec(_Part):
    method: Name = "adatp"
    options: dict[str, Any] = {}
    select: Literal["per_prompt", "per_video"] = "per_prompt"
    feature_model: Uri | None = "auto"
    compact_cache: bool = False
    selections: Share = 0.0  # the share of rows whose selection is recorded


class BudgetSpec(_Part):
    """Exactly one kind is set once JobSpec has filled the default in."""

    ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    pflops: Positive | None = None
    pflops_per_hour_of_video: Positive | None = None
    gpu_hours: Positive | None = None
    scope: Literal["llm", "total"] = "llm"
    convention: Literal["exact", "paper"] = "exact"
    allocation: Literal["equal", "content"] = "equal"

    @property
    def kind(self) -> str:
        return next(kind for kind in BUDGET_KINDS if getattr(self, kind) is not None)

    @property
    def amount(self) -> float:
        return float(getattr(self, self.kind))

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        given = [kind for kind in BUDGET_KINDS if getattr(self, kind) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are both set; keep one, and set the others to null")
        return self


class CanarySpec(_Part):
    share: Share = 0.0
    against: Texts = ("none", "random")
    least_agreement: Share | None = None  # with the unpruned answers; below it the job stops

    @model_validator(mode="after")
    def _can_stop(self) -> Self:
        if self.least_agreement is not None and "none" not in self.against:
            raise ValueError("least_agreement is measured against the unpruned answers: add none to against")
        return self


class GenerateSpec(_Part):
    max_new_tokens: Annotated[int, Field(ge=1, le=65_536)] = 128
    expected_new_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if 0 < self.temperature < 1e-3:
            raise ValueError("a temperature so near to 0 draws nothing; give 0 for the likeliest token")
        if self.expected_new_tokens is not None and self.expected_new_tokens > self.max_new_tokens:
            raise ValueError("expected_new_tokens is above max_new_tokens")
        return self


class RetrySpec(_Part):
    attempts: Count = 3
    errors: bool = False


class LimitsSpec(_Part):
    video_s: Positive = 60.0
    model_s: Positive = 3600.0  # a captioning process at work for longer on one batch hangs, and is ended
    deadline_h: Positive | None = None
    max_error_share: Share | None = None
    price_per_gpu_hour: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None


class OutputSpec(_Part):
    uri: Output
    target_file_mb: Count = 256  # no Parquet file grows beyond this
    commit_rows: Count = 256  # how many finished rows a kill can cost

    @model_validator(mode="after")
    def _outlasts_the_job(self) -> Self:
        path = local_path(self.uri)
        if path and UNPACKED in path.parts:
            raise ValueError(f"{self.uri} would lie in Ray's copy of the working directory, and be deleted with it "
                             "some time after the job; give a uri or an absolute path")  # fmt: skip
        return self


class NotifySpec(_Part):
    """Its path is often a secret: give it as ${ENV}. It is never printed, and what a run keeps of the job hides it."""

    webhook: Annotated[str | None, Field(repr=False)] = None

    @model_validator(mode="after")
    def _a_web_address(self) -> Self:
        if self.webhook is not None and not spec_text.is_web_address(self.webhook):
            raise ValueError("webhook must be http:// or https:// with a host and no user name, like ${WEBHOOK_URL}")
        return self


class ReadPool(_Part):
    num_cpus: Positive = 1.0
    concurrency: Bounds = (1, 8)


class CaptionPool(_Part):
    num_gpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    concurrency: BoundsOrAuto = "auto"
    batch_videos: CountOrAuto = "auto"


class ClusterSpec(_Part):
    read: ReadPool = ReadPool()
    caption: CaptionPool = CaptionPool()


class JobSpec(_Part):
    """A whole job file, checked."""

    name: Name = "annotations"
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
        data = spec_text.read_yaml(Path(path))
        for setting in sets:
            spec_text.apply_setting(data, setting)
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> JobSpec:
        written = spec_text.dump_yaml(dict(data))
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
        return spec_text.without_webhook(spec_text.with_places(self._as_written, places))

    def changed(self, **parts: Any) -> JobSpec:
        """The same job with some of its top-level keys replaced."""
        written = yaml.safe_load(self._as_written) if self._as_written else self.model_dump(mode="json")
        return self.from_dict({**written, **parts})

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
