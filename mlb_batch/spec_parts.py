"""The parts of a job file: every key with its default, what it says, and each rule that needs no other part.

The words below a key are its description: in the published schema, and in jobs/README.md.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mlb_batch import spec_text
from mlb_batch.spec_types import (
    Bounds,
    BoundsOrAuto,
    Count,
    CountOrAuto,
    Cpus,
    GpuShare,
    Name,
    Output,
    Positive,
    Seconds,
    Share,
    Texts,
    Uri,
)
from mlb_batch.storage import local_path

MOST_CHOICES = 26  # answered by a letter
MOST_FRAMES = 4096  # of a clip
_UNPACKED = "working_dir_files"  # where Ray unpacks what `ray job submit --working-dir` ships, until it needs the room
BUDGET_KINDS = ("ratio", "pflops", "pflops_per_hour_of_video", "gpu_hours")


def is_shipped(uri: str) -> bool:
    """Whether it lies in Ray's copy of a working directory: its path and its times change with every submission, and
    it goes when Ray needs the room.
    """
    path = local_path(uri)
    return path is not None and _UNPACKED in path.parts


class Part(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, protected_namespaces=(), use_attribute_docstrings=True
    )


class InputSpec(Part):
    manifest: Uri | None = None
    """A table with one row a video: `.parquet`, `.jsonl` or `.csv`."""
    videos: Uri | None = None
    """Instead of a manifest: a glob (`s3://bucket/videos/**/*.mp4`), or a prefix whose videos are all taken."""
    uri_column: Name = "uri"
    """The manifest's column with the address of the video; a relative one is below the manifest's folder."""
    id_column: Name | None = None
    """The column whose value is `video_id` in every row; left out, the uri is."""
    start_column: Name | None = None
    """The column with the second at which the part to annotate begins."""
    end_column: Name | None = None
    """The column with the second before which it ends."""
    columns: Texts = ()
    """Columns that pass through to the output, and may stand in prompts as `{column}`."""
    changed: Literal["version", "never"] = "version"
    """What makes a video a new one. `version`: its etag, or its size and time of change. `never`: only another id."""
    allow: Annotated[tuple[Uri, ...], Field(strict=False)] | None = None
    """Prefixes that a manifest's addresses, and links on a disk, may lead into; by default its own bucket or folder."""

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


class ClipsSpec(Part):
    every_s: Positive
    """Long videos become clips of so many seconds, and each is annotated for itself."""
    overlap_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """So many seconds of a clip are in the one before it too."""

    @model_validator(mode="after")
    def _moves_on(self) -> Self:
        if self.overlap_s >= self.every_s:
            raise ValueError("overlap_s must be less than every_s")
        return self


class PromptSpec(Part):
    id: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9_.\-]+$")]
    """`prompt_id` in the rows."""
    kind: Literal["caption", "qa", "choice"]
    """`caption` and `qa` are answered by text; `choice` by one of its choices, with the score of each."""
    text: Annotated[str, Field(min_length=1, max_length=16_000)] | None = None
    """The prompt; `{title}` stands for the column of that name, `{{` and `}}` for braces."""
    column: Name | None = None
    """Instead of a text: the manifest's column with a question, a list of questions, or a list of `{id, question,
    choices}`.
    """
    choices: Texts = ()
    """2 to 26 of them, for kind `choice`."""

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


class ModelSpec(Part):
    id: Uri = "embedded:tiny"
    """`embedded:tiny` or `embedded:tiny-image`, a local folder, an fsspec uri, or a hub id."""
    revision: Name = "main"
    """Of a hub id: a branch, a tag or a commit. It is resolved to a commit when the job is planned."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: bfloat16 on a GPU, float32 on a CPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: the GPU that Ray gives a captioner, or the CPU where it gives none. Which one of a node's, Ray says."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.id.startswith("hf://") and self.revision != "main":
            raise ValueError("revision belongs to a hub id: write id as owner/name, or as hf://owner/name@revision")
        return self


class FramesSpec(Part):
    count: Annotated[int, Field(ge=1, le=MOST_FRAMES)] = 32
    """So many frames of a clip; with `fps` and `keyframes` at most so many."""
    strategy: Literal["uniform", "fps", "keyframes"] = "uniform"
    """`uniform`: evenly among the clip's frames. `fps`: evenly in time. `keyframes`: those that need no others."""
    fps: Positive | None = None
    """Frames a second, for strategy `fps`."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.strategy == "fps") != (self.fps is not None):
            raise ValueError("fps goes with strategy fps and only with it, like {strategy: fps, fps: 1, count: 64}")
        return self


class PruneSpec(Part):
    method: Name = "adatp"
    """`none`, or one of the methods (the README has them)."""
    options: dict[str, Any] = {}
    """The method's own; `mlb_batch/prune/PROVENANCE.md` has them."""
    select: Literal["per_prompt", "per_video"] = "per_prompt"
    """`per_prompt`: each prompt keeps tokens of its own. `per_video`: one selection for all prompts of a clip, which
    is cheaper.
    """
    feature_model: Uri | None = "auto"
    """The paired text/vision model of `adatp`. `auto`: the one that goes with the model, where there is one. `null`:
    none.
    """
    compact_cache: bool = False
    """The caches of all layers keep only what the last cut kept: less memory, faster answers, and other texts."""
    selections: Share = 0.0
    """Of this share of the answers OUTPUT/selections/ records which tokens were kept."""


class BudgetSpec(Part):
    """Exactly one kind is set once JobSpec has filled the default in."""

    ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    """A share of what the unpruned model would compute; 0.273 where no budget is given."""
    pflops: Positive | None = None
    """10^15 operations for the whole job, as its input stands when it is first planned."""
    pflops_per_hour_of_video: Positive | None = None
    """10^15 operations for each hour of video."""
    gpu_hours: Positive | None = None
    """Hours of one device for the whole job; needs `mlb-batch bench calibrate` on it."""
    scope: Literal["llm", "total"] = "llm"
    """What the budget is of. `llm`: the language model's prefill and the scoring in it. `total`: vision, the paired
    model and generation too.
    """
    convention: Literal["exact", "paper"] = "exact"
    """`exact`: operations, of all tokens. `paper`: multiply-adds of visual tokens in the prefill."""
    allocation: Literal["equal", "content"] = "equal"
    """`equal`: every clip keeps the same share. `content`: clips that repeat themselves give to those that do not."""

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


class CanarySpec(Part):
    share: Share = 0.0
    """This share of the videos is annotated first, and by the rivals too."""
    against: Texts = ("none", "random")
    """The rivals: methods at the same budget, and `none`."""
    least_agreement: Share | None = None
    """Where the answers agree less with the unpruned ones, the job stops."""

    @model_validator(mode="after")
    def _can_stop(self) -> Self:
        if self.least_agreement is not None and "none" not in self.against:
            raise ValueError("least_agreement is measured against the unpruned answers: add none to against")
        return self


class GenerateSpec(Part):
    max_new_tokens: Annotated[int, Field(ge=1, le=65_536)] = 128
    """An answer that needs more is `truncated`."""
    expected_new_tokens: Count | None = None
    """For the hours in the plan; left out, they are of `max_new_tokens`."""
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """0: the likeliest token. Above, tokens are drawn."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """What is drawn hangs on it and on the annotation, and on nothing else."""

    @property
    def planned_new_tokens(self) -> int:
        """Without a word from the user the plan expects the most: it can only turn out cheaper."""
        return self.expected_new_tokens or self.max_new_tokens

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if 0 < self.temperature < 1e-3:
            raise ValueError("a temperature so near to 0 draws nothing; give 0 for the likeliest token")
        if self.expected_new_tokens is not None and self.expected_new_tokens > self.max_new_tokens:
            raise ValueError("expected_new_tokens is above max_new_tokens")
        return self


class RetrySpec(Part):
    attempts: Count = 3
    """So often an annotation is tried over all runs where its error may pass, once a run."""
    errors: bool = False
    """Try again what ended in an error for good, too."""


class LimitsSpec(Part):
    video_s: Seconds = 60.0
    """Reading one clip may take so long; a storage that does not answer is not its time."""
    model_s: Seconds = 3600.0
    """A captioning process at work for longer on one batch hangs, and is ended."""
    deadline_h: Positive | None = None
    """The run commits what is finished after so many hours, and ends with exit code 3."""
    max_error_share: Share | None = None
    """This share of the annotations may end as errors before the exit code is 3; left out, none may."""
    price_per_gpu_hour: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """With it plan, status, report and summary tell money too."""


class OutputSpec(Part):
    uri: Output
    """A folder, `s3://`, `gs://` or `az://`. One run at a time works in it; the rows of each fingerprint lie apart."""
    target_file_mb: Count = 256
    """No Parquet file grows beyond this, unless one row alone is larger."""
    commit_rows: Count = 256
    """So many finished rows a kill can cost; those of half a minute are written too where they are fewer."""

    @model_validator(mode="after")
    def _outlasts_the_job(self) -> Self:
        if is_shipped(self.uri):
            raise ValueError(f"{self.uri} would lie in Ray's copy of the working directory, and be deleted with it "
                             "some time after the job; give a uri or an absolute path")  # fmt: skip
        return self


class NotifySpec(Part):
    """Its path is often a secret: give it as ${ENV}. It is never printed, and what a run keeps of the job hides it."""

    webhook: Annotated[str | None, Field(repr=False)] = None
    """Gets one POST at the end of a run, with the summary or the error as JSON."""

    @model_validator(mode="after")
    def _a_web_address(self) -> Self:
        if self.webhook is not None and not spec_text.is_web_address(self.webhook):
            raise ValueError("webhook must be http:// or https:// with a host and no user name, like ${WEBHOOK_URL}")
        return self


class ReadPool(Part):
    num_cpus: Cpus = 1.0
    """Of one reading actor."""
    concurrency: Bounds = (1, 8)
    """Reading actors: a number, or [least, most]."""


class CaptionPool(Part):
    num_gpus: GpuShare = 1.0
    """Of one captioning actor; below 1, several share a GPU. 0, or a machine without one: the CPU."""
    concurrency: BoundsOrAuto = "auto"
    """Captioning actors: a number, or [least, most]. `auto`: every GPU there is."""
    batch_videos: CountOrAuto = "auto"
    """So many clips reach a captioner at once; its memory decides how many it computes together."""


class ClusterSpec(Part):
    read: ReadPool = ReadPool()
    caption: CaptionPool = CaptionPool()
