"""EvalSpec: what an evaluation file may say. Its cells are ordinary jobs; what they share is passed through to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from mlb_batch import spec_text
from mlb_batch.errors import SpecError
from mlb_batch.evaluate.benchmarks import BENCHMARKS, WORLDS
from mlb_batch.spec_parts import MOST_FRAMES, ModelSpec, Part
from mlb_batch.spec_types import Count, Name, Output, Positive, Uri

Label = Annotated[str, Field(min_length=1, max_length=60, pattern=r"^[A-Za-z0-9_.\-]+$")]
Ratio = Annotated[float, Field(gt=0, lt=1)]
MOST_CLIPS = 100_000  # a world's seeds are apart by this
URI_KEYS = (  # where ${ENV} means something; what is passed through to jobs is expanded there
    ("benchmark", "annotations"),
    ("benchmark", "videos"),
    ("benchmark", "allow"),
    ("models",),
    ("models", "id"),
    ("methods", "feature_model"),
    ("judge", "url"),
    ("output",),
    ("output", "uri"),
)
OF_MOVING_CLIPS = ("captions", "max_acts", "max_flashes", "least_flash")
SET_BY_EVALUATE = ("name", "input", "prompts", "model", "budget", "canary", "output")


class WorldSpec(Part):
    """How much of the procedural world; all of its clips are held out from training."""

    clips: Annotated[int, Field(ge=2, le=MOST_CLIPS)] = 200
    """So many clips, all held out from training."""
    seed: Annotated[int, Field(ge=0, lt=1000)] = 0
    """Another number for other clips and questions."""
    frames: Annotated[int, Field(ge=4, le=MOST_FRAMES)] = 16
    """Of each clip."""
    questions: Count = 4
    """Of each clip, of different kinds as far as it has so many."""
    captions: bool = True
    """A caption of each clip too, where the world has one."""
    max_acts: Annotated[int, Field(ge=1, le=4)] = 4
    """At most so many shapes that move or stay."""
    max_flashes: Annotated[int, Field(ge=0, le=3)] = 3
    """At most so many that appear briefly."""
    least_flash: Count = 1
    """So many frames at least a flash lasts."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.least_flash > self.frames:
            raise ValueError(f"least_flash: {self.least_flash} frames are longer than a clip of {self.frames}")
        return self


class BenchmarkSpec(Part):
    name: str = "world"
    """`world`, `world-image`, or a public benchmark (the README has them)."""
    annotations: Annotated[tuple[Uri, ...], Field(strict=False)] = ()
    """Its own files, one or a list."""
    videos: Uri | None = None
    """The folder that the video files of the annotations lie in."""
    allow: Annotated[tuple[Uri, ...], Field(strict=False)] = ()
    """Where links in that folder may lead out of it, as in a download's cache."""
    limit: Count | None = None
    """Only so many videos, those that are there first, chosen by chance and always the same."""
    world: WorldSpec = WorldSpec()

    @model_validator(mode="before")
    @classmethod
    def _one_file(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and isinstance(data.get("annotations"), str):
            return {**data, "annotations": [data["annotations"]]}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.name not in BENCHMARKS and self.name not in WORLDS:
            known = [*WORLDS, *BENCHMARKS]
            hint = spec_text.did_you_mean(self.name, known)
            raise ValueError(f"{self.name!r} is not a benchmark{hint}; one of {', '.join(known)}")
        if self.name in BENCHMARKS and not (self.annotations and self.videos):
            files = ", ".join(BENCHMARKS[self.name].files)
            raise ValueError(f"{self.name} needs annotations ({files}) and videos (the folder of its video files)")
        if self.name in BENCHMARKS and "world" in self.model_fields_set:
            raise ValueError(f"world goes with {' and '.join(WORLDS)}, not with {self.name}")
        if self.name == "world-image" and (given := self.world.model_fields_set.intersection(OF_MOVING_CLIPS)):
            raise ValueError(f"world.{min(given)} goes with world; world-image shows still scenes and has none")
        if self.name in WORLDS and (self.annotations or self.videos or self.allow):
            raise ValueError(f"{self.name} makes its own videos: it has neither annotations nor videos nor allow")
        return self

    def allowed(self, videos: str) -> tuple[str, ...]:
        """What may be opened, where the videos lie in this folder."""
        return (videos, *self.allow)


class MethodSpec(Part):
    method: Name
    """`none`, or one of the methods."""
    label: Label | None = None
    """How it is called in tables; needed where one method stands twice."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The method's own; `mlb_batch/prune/PROVENANCE.md` has them."""
    select: Literal["per_prompt", "per_video"] = "per_prompt"
    """As in a job."""
    feature_model: Uri | None = "auto"
    """As in a job."""

    @property
    def name(self) -> str:
        return self.label or self.method


class JudgeSpec(Part):
    """An OpenAI-compatible endpoint that says whether an open answer is right."""

    url: Uri
    """Its base, like `https://judge.example.com/v1`."""
    model: Name
    """As the endpoint calls it; each verdict is kept with the model that gave it."""
    key_env: Name | None = None
    """The environment variable with its key."""
    timeout_s: Positive = 60.0
    """Of one request."""
    at_once: Count = 8
    """So many requests are under way together."""


class BiasSpec(Part):
    clips: Count = 20
    """Where text looks in frozen models is measured on so many clips, as they are, grey, repeated and reversed."""


class OutputSpec(Part):
    uri: Output
    """A folder, `s3://`, `gs://` or `az://`; other questions to the same models want one of their own."""


class EvalSpec(Part):
    """A whole evaluation file, checked."""

    name: Name = "evaluation"
    """For its title and its jobs."""
    benchmark: BenchmarkSpec = BenchmarkSpec()
    models: Annotated[tuple[ModelSpec, ...], Field(strict=False, min_length=1)] = (ModelSpec(),)
    methods: Annotated[tuple[MethodSpec, ...], Field(strict=False)] = ()
    ratios: Annotated[tuple[Ratio, ...], Field(strict=False)] = (0.273,)
    """The budgets; `none` is run once."""
    scope: Literal["llm", "total"] = "llm"
    """What they are shares of, as in a job."""
    asked: Literal["alone", "together"] = "alone"
    """`together`: the questions of a clip share its layers, as in a job."""
    job: dict[str, Any] = Field(default_factory=dict)
    """Passed through to every cell: frames, generate, limits, cluster, retry, prune.selections, prune.compact_cache,
    and notify (one POST a cell)."""
    bias: BiasSpec | None = None
    judge: JudgeSpec | None = None
    output: OutputSpec

    @classmethod
    def load(cls, path: str | Path, sets: Iterable[str] = ()) -> EvalSpec:
        return cls.from_dict(spec_text.read(Path(path), sets, "an evaluation file"))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EvalSpec:
        try:
            return cls.model_validate(spec_text.expand_environment(dict(data), URI_KEYS))
        except ValidationError as error:
            raise SpecError(spec_text.explain(error, cls)) from None

    def told(self) -> dict[str, Any]:
        """As JSON, for what is written about it: without the path of a webhook that is given in the open."""
        job = yaml.safe_load(spec_text.without_webhook(yaml.safe_dump(self.job)))
        return {**self.model_dump(mode="json"), "job": job}

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, data: Any) -> Any:
        """`output: URI`, `benchmark: NAME`, a model or a method by its name, one of them alone."""
        if not isinstance(data, Mapping):
            return data
        data = spec_text.long_forms(data, {"output": "uri", "benchmark": "name"})
        for key, field in (("models", "id"), ("methods", "method")):
            given = data.get(key)
            if isinstance(given, str | Mapping):
                given = [given]
            if isinstance(given, list | tuple):
                data[key] = [{field: one} if isinstance(one, str) else one for one in given]
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [method.name for method in self.methods]
        twice = sorted({one for one in names if names.count(one) > 1})
        if twice:
            raise ValueError(f"methods: {twice[0]!r} stands twice; give each a label of its own")
        if not self.methods and self.bias is None:
            raise ValueError("methods: name at least one, or measure bias")
        if len(set(self.ratios)) < len(self.ratios):
            raise ValueError("ratios: a ratio stands twice")
        if any(method.method != "none" for method in self.methods) and not self.ratios:
            raise ValueError("ratios: give at least one; only none has no budget")
        for key in SET_BY_EVALUATE:
            if key in self.job:
                raise ValueError(f"job.{key}: evaluate sets it; the keys of the evaluation itself say what it shall be")
        if self.job.get("clips") is not None:
            raise ValueError("job.clips: a question is about its whole video and has one answer; leave clips out")
        prune = self.job.get("prune", {})
        if not isinstance(prune, Mapping):
            raise ValueError(f"job.prune: must be a mapping, like {{selections: 0.1}}, got {prune!r}")
        wrong = [key for key in prune if key not in ("selections", "compact_cache")]
        if wrong:
            raise ValueError(f"job.prune.{wrong[0]}: say it in methods")
        return self
