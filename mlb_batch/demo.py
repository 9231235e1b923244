"""The demo: sample clips, one job on the embedded model, and its captions and answers as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from rich.console import Console
from rich.table import Table

from mlb_batch import tiny
from mlb_batch.report import printable
from mlb_batch.spec import JobSpec

CLIPS, SEED = 6, 0
MODEL = "tiny"
MOST_ROWS_SHOWN, MOST_CHARS = 60, 160
JOB = {
    "name": "demo",
    "input": {"manifest": "clips/manifest.jsonl", "id_column": "video_id"},
    "prompts": [
        {"id": "caption", "kind": "caption", "text": "Describe the video in detail."},
        {"id": "first", "kind": "qa", "text": "What shape comes first?"},
        {"id": "flash", "kind": "choice", "text": "Is there a flash?", "choices": ["yes", "no"]},
    ],
    "model": f"embedded:{MODEL}",
    "frames": {"count": 32},
    # The default of 0.273 is for models whose text is small beside their video; here the text alone is a quarter.
    "budget": {"ratio": 0.6},
    "generate": {"max_new_tokens": 48},
    "output": "annotations",
}


def demo(folder: Path) -> dict[str, Any]:
    """Runs in `folder`, which keeps the clips, the job file and its output; the run's summary."""
    from mlb_batch.run import run

    console = Console(stderr=True)
    spec = JobSpec.load(prepared(folder.absolute(), console))
    if not tiny.trained(MODEL):
        console.print("[bold yellow]The embedded model has random weights: its captions and answers mean nothing.[/]")
    console.print(f"Annotating {CLIPS} clips with {spec.model.id} on this machine ...")
    summary = run(spec)
    console.print(answers(spec.output.uri, summary["fingerprint"]))
    console.print(conclusion(summary))
    return summary


def prepared(folder: Path, console: Console) -> Path:
    """The sample clips and the job file, made where they are not there yet: a second demo is the same job."""
    from mlb_batch.tiny.clips import write_sample_clips

    job = folder / "job.yaml"
    if not job.exists():
        console.print(f"Making {CLIPS} sample clips in {folder / 'clips'} ...")
        write_sample_clips(folder / "clips", CLIPS, SEED)
        here = {**JOB, "input": {**JOB["input"], "manifest": str(folder / "clips" / "manifest.jsonl")}}  # type: ignore[dict-item]
        here["output"] = str(folder / "annotations")
        job.write_text(yaml.safe_dump(here, sort_keys=False), encoding="utf-8")
    return job


def answers(output: str, fingerprint: str) -> Table:
    """What the rows say, as a person reads it."""
    rows = pq.read_table(Path(output) / "annotations" / fingerprint).sort_by([("video_id", "ascending")]).to_pylist()
    table = Table("video", "prompt", "text", "kept", title=f"{len(rows)} annotations", show_lines=False)
    before = ""
    for row in rows[:MOST_ROWS_SHOWN]:
        video = "" if row["video_id"] == before else row["video_id"]
        before = row["video_id"]
        said = row["choice"] or row["text"]
        kept = f"{row['num_kept_tokens']}/{row['num_visual_tokens']}"
        table.add_row(printable(video), printable(row["prompt"]), printable(said, MOST_CHARS), kept)
    return table


def conclusion(summary: dict[str, Any]) -> str:
    if summary["rows_written"] == 0:
        return f"Everything was annotated before ({summary['skipped_done']} rows): this run added no row."
    share = summary["flops_spent_of_budget"] / summary["flops_budget"]
    return (
        f"This run added {summary['rows_written']} rows and spent {share:.1%} of its budget. "
        "Run the same command again: it adds none."
    )
