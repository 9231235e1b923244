"""Jobs for the tests: small real videos, job files over them, and what a job left in its output."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from conftest import RAY_FOLDER
from video_files import write_video

from mlb_batch.spec import JobSpec

PROMPTS = [
    {"id": "caption", "kind": "caption", "text": "Describe the video."},
    {"id": "first", "kind": "qa", "text": "What shape comes first?"},
]
# Few frames and few tokens: the chain is what is tested with these, not the model.
SMALL = {
    "prompts": PROMPTS,
    "frames": {"count": 4},
    "prune": {"method": "none"},
    "generate": {"max_new_tokens": 3},
}


@cache
def _originals() -> tuple[Path, ...]:
    folder = Path(mkdtemp(prefix="videos-", dir=RAY_FOLDER))
    return tuple(write_video(folder / f"{n}.mp4", frames=10 + n, size=(64, 48)) for n in range(4))


def clips(folder: Path, count: int, first: int = 0) -> list[Path]:
    """`count` good videos, v0000.mp4 and on."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"v{n:04}.mp4" for n in range(first, first + count)]
    for n, path in enumerate(paths):
        shutil.copy(_originals()[n % len(_originals())], path)
    return paths


def manifest(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def job(folder: Path, **changes: Any) -> dict[str, Any]:
    """A small job over folder/videos into folder/out."""
    return {"input": {"videos": f"{folder}/videos/*"}, "output": str(folder / "out"), **SMALL, **changes}


def job_file(folder: Path, **changes: Any) -> Path:
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job(folder, **changes)), encoding="utf-8")
    return path


def spec(folder: Path, **changes: Any) -> JobSpec:
    return JobSpec.from_dict(job(folder, **changes))


def table(output: Path, kind: str = "annotations") -> list[dict[str, Any]]:
    """Every row by a plain read of the folder, whatever its fingerprint."""
    files = sorted((output / kind).rglob("*.parquet"))
    return pa.concat_tables([pq.read_table(file) for file in files]).to_pylist() if files else []


def ids(output: Path) -> list[str]:
    return [row["annotation_id"] for row in table(output)]


def classes(output: Path) -> Counter[str]:
    return Counter(row["error_class"] for row in table(output, "errors"))


def texts(output: Path) -> dict[tuple[str, str], str]:
    """What was said of each video to each prompt: the same in every run of the same job."""
    return {(row["video_id"], row["prompt_id"]): row["text"] for row in table(output)}
