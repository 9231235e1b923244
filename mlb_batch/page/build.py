"""write_page: everything that the page shows gathered from an output, put together, and written as one file."""

from __future__ import annotations

import base64
import datetime
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import yaml

from mlb_batch.columns import ANNOTATION_COLUMNS
from mlb_batch.errors import OutputError, UserError
from mlb_batch.ledger.parts import undisturbed, written_columns
from mlb_batch.ledger.runs import RunFolder
from mlb_batch.page import sections
from mlb_batch.page.cards import MOST_ROWS, Clip, Index, Row, chosen, clips, index
from mlb_batch.page.escape import escaped
from mlb_batch.page.gallery import MOST_CHARS, MOST_FAILED, Gallery, gallery
from mlb_batch.page.runs import Run, newest_runs, newest_spending, throughput
from mlb_batch.page.thumbs import MOST_FRAMES, MOST_PICTURES, Picture, pictures
from mlb_batch.report import report
from mlb_batch.spec import JobSpec
from mlb_batch.storage import Store, open_store
from mlb_batch.unresolved import unresolved


@dataclass(frozen=True)
class Job:
    """The newest run's job, as far as it was recorded."""

    text: str  # as written
    told: Mapping[str, Any]
    plan: Mapping[str, Any]
    environment: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.told.get("name") or "annotations")


def write_page(output_uri: str, path: Path, fingerprint: str | None = None) -> dict[str, Any]:
    """Writes the page; the report's numbers."""
    numbers = report(output_uri, fingerprint)
    store, fingerprint = open_store(output_uri), numbers["fingerprint"]
    runs = newest_runs(output_uri, fingerprint)
    found, some, failed = undisturbed(lambda: _rows(store, fingerprint))
    job = _job(store, runs)
    shown = gallery(some, _pictures(job, some[:MOST_PICTURES]), failed)
    text = page(numbers, job, runs, found, shown)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"can't write {path}: {error.strerror}") from None
    return numbers


def _rows(store: Store, fingerprint: str) -> tuple[Index, list[Clip], list[Row]]:
    """A little of every row, the clips to show, and what failed."""
    found = index(store, fingerprint)
    own = [name for name in written_columns(store, fingerprint).names if name not in ANNOTATION_COLUMNS]
    some = clips(store, fingerprint, chosen(found), tuple(own))
    return found, some, unresolved(store, fingerprint, found.done)[0]


def page(numbers: Mapping[str, Any], job: Job, runs: Sequence[Run], found: Index, shown: Gallery) -> str:
    newest = next((run for run in runs if any(commit[0] == run.run_id for commit in found.commits)), None)
    steps = throughput(newest, found.commits) if newest else []
    spent = newest_spending(runs)
    body = [
        sections.tiles(numbers, spent, newest),
        sections.asked(job.told, job.text, job.plan, numbers, job.environment),
        sections.budget(numbers, job.plan, spent),
        sections.throughput(runs, newest, steps),
        sections.errors(numbers),
    ]
    style, script = _text("page.css"), _text("page.js")
    return Template(_text("page.html")).substitute(
        style=style, style_hash=_hash(style), script=script, script_hash=_hash(script),
        title=escaped(job.name), eyebrow=f"Video annotations, as of {_now()}", lead=sections.lead(numbers),
        body="\n".join(body), rows=sections.rows(numbers), gallery_note=_gallery_note(numbers, shown),
        clips=shown.clips, pictures=shown.pictures, footer=_footer(),
    )  # fmt: skip


def _job(store: Store, runs: Sequence[Run]) -> Job:
    if not runs:
        return Job("", {}, {}, {})
    run = runs[0]
    text = RunFolder(store.uri, run.run_id).read_spec() or ""
    told = yaml.safe_load(text) if text else {}
    return Job(text, told if isinstance(told, dict) else {}, run.plan, run.environment)


def _pictures(job: Job, some: Sequence[Clip]) -> dict[int, Picture]:
    """By clip; the job's own file says what may be opened, and its plan what a frame looks like to the model."""
    try:
        spec = JobSpec.from_dict(job.told) if job.told and job.plan else None
    except UserError as error:
        return {clip.key: Picture(problem=f"the job file can't be followed here: {error}") for clip in some}
    if spec is None:
        return {clip.key: Picture(problem="the run left no job file to read videos by") for clip in some}
    return dict(zip([clip.key for clip in some], pictures(spec, job.plan, some), strict=True))


def _gallery_note(numbers: Mapping[str, Any], shown: Gallery) -> str:
    rows, failed = numbers["annotations"], numbers["errors"]["unresolved"]
    much = f"All {rows:,}" if shown.num_rows == rows else f"{shown.num_rows:,} of {rows:,}, drawn evenly"
    pictured = f"{shown.num_pictures:,} of {shown.num_clips:,} clips with their frames, which come first"
    said = [f"{much} answers; {pictured}."]
    if failed:
        said.append(f"What failed comes last ({shown.num_failed:,} videos).")
    said.append("Where a selection was recorded, the slider goes through the cuts: what is veiled was gone by then.")
    return " ".join(said)


def _footer() -> str:
    return (
        f"This page is one file and asks the network for nothing. It shows at most {MOST_ROWS:,} answers of "
        f"{MOST_CHARS:,} characters, {MOST_PICTURES:,} clips with {MOST_FRAMES} frames, and {MOST_FAILED:,} failures; "
        "all other numbers count every row."
    )


def _text(name: str) -> str:
    return files("mlb_batch.page").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """As a content security policy names the one text that may stand in a <style> or <script>."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
