"""The demo: sample clips, one job on the embedded model, and its captions and answers as a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from rich.console import Console
from rich.table import Table

from mlb_batch import tiny
from mlb_batch.errors import OutputError
from mlb_batch.outside import printable
from mlb_batch.spec import JobSpec

CLIPS, SEED = 6, 0
MODEL = "tiny"
# What the embedded model is sure of: one shape a clip. Its model card says how much of the rest.
FRAMES, KINDS = 8, ("first_shape", "first_colour", "direction", "place")
MOST_ROWS_SHOWN, MOST_CHARS = 60, 160


def demo(folder: Path) -> dict[str, Any]:
    """Runs in `folder`, which keeps the clips, the job file and its output; the run's summary."""
    from mlb_batch.run import run

    console = Console(stderr=True)
    try:
        spec = JobSpec.load(prepared(folder.absolute(), console))
    except OSError as error:
        raise OutputError(f"can't write in {folder}: {error.strerror}; name a folder that can be written") from None
    if not tiny.trained(MODEL):
        console.print("[bold yellow]The embedded model has random weights: its captions and answers mean nothing.[/]")
    else:
        console.print("The embedded model is small: its card says what it can and can't.")
    console.print(f"Annotating {CLIPS} clips with {spec.model.id} on this machine ...")
    summary = run(spec)
    if summary["stopped"]:
        return summary
    console.print(answers(spec.output.uri, summary["fingerprint"], truth(folder)))
    console.print(conclusion(summary))
    return summary


def prepared(folder: Path, console: Console) -> Path:
    """The sample clips and the job file, made where they are not there yet: a second demo is the same job."""
    from mlb_batch.tiny.clips import Scope, write_sample_clips

    job, clips = folder / "demo.yaml", folder / "clips"
    if not job.exists():
        if clips.exists():
            raise OutputError(f"{clips} is there and not a demo's; give the demo a folder of its own")
        folder.mkdir(parents=True, exist_ok=True)
        job.write_text(yaml.safe_dump(job_in(folder), sort_keys=False), encoding="utf-8")
    if not (clips / "manifest.jsonl").exists():
        console.print(f"Making {CLIPS} sample clips in {clips} ...")
        write_sample_clips(clips, CLIPS, SEED, Scope(FRAMES, 1, 0, KINDS))
    return job


def job_in(folder: Path) -> dict[str, Any]:
    return {
        "name": "demo",
        "input": {"manifest": str(folder / "clips" / "manifest.jsonl"), "id_column": "video_id"},
        "prompts": [
            {"id": "caption", "kind": "caption", "text": "Describe the video in detail."},
            {"id": "asked", "kind": "qa", "column": "questions"},
        ],
        "model": f"embedded:{MODEL}",
        "frames": {"count": FRAMES},
        # One selection for the five prompts of a clip: here their text is half of the cost, and more if each is apart.
        "prune": {"method": "adatp", "select": "per_video"},
        "budget": {"ratio": 0.7},
        "generate": {"max_new_tokens": 48},
        "output": str(folder / "annotations"),
    }


def truth(folder: Path) -> dict[tuple[str, str], str]:
    """What the clips really show, by video and prompt."""
    lines = (folder / "clips" / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    told = {row["video_id"]: row["truth"] for row in map(json.loads, lines)}
    answers = {(video, prompt): said for video, one in told.items() for prompt, said in one["answers"].items()}
    return answers | {(video, "caption"): one["caption"] for video, one in told.items()}


def answers(output: str, fingerprint: str, shown: dict[tuple[str, str], str]) -> Table:
    """What the rows say, as a person reads it, beside the truth."""
    rows = pq.read_table(Path(output) / "annotations" / fingerprint).sort_by([("video_id", "ascending")]).to_pylist()
    table = Table("video", "prompt", "text", "truth", "kept", title=f"{len(rows)} annotations", show_lines=False)
    before = ""
    for row in rows[:MOST_ROWS_SHOWN]:
        video = "" if row["video_id"] == before else row["video_id"]
        before = row["video_id"]
        said = row["choice"] or row["text"]
        kept = f"{row['num_kept_tokens']}/{row['num_visual_tokens']}"
        fact = shown.get((row["video_id"], row["prompt_id"]), "")
        table.add_row(printable(video), printable(row["prompt"]), printable(said, MOST_CHARS), fact, kept)
    return table


def conclusion(summary: dict[str, Any]) -> str:
    if summary["rows_written"] == 0:
        return f"Everything was annotated before ({summary['skipped_done']} rows): this run added no row."
    share = summary["flops_spent_of_budget"] / summary["flops_budget"]
    return (
        f"This run added {summary['rows_written']} rows and spent {share:.1%} of its budget. "
        "Run the same command again: it adds none."
    )
