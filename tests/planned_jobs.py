"""Jobs over one folder of videos of several lengths, for the tests of plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from video_files import write_video

from mlb_batch.cost import calibration
from mlb_batch.cost.budget import Measure
from mlb_batch.cost.calibration import Calibration
from mlb_batch.cost.schedule import ClipShape
from mlb_batch.cost.solve import Pricer
from mlb_batch.planning import setup
from mlb_batch.spec import JobSpec
from mlb_batch.vlm.checkpoint import resolve
from mlb_batch.vlm.prompts import Prompter

LENGTHS = (3, 9, 20, 33, 50, 80)  # frames
CAPTION = {"id": "c", "kind": "caption", "text": "Describe the video."}


def videos(folder: Path) -> Path:
    for frames in LENGTHS:
        write_video(folder / f"{frames:03}.mp4", frames=frames, fps=10)
    return folder


def job(folder: Path, out: Path, **parts: Any) -> JobSpec:
    basic = {
        "input": {"videos": f"{folder}/*.mp4"}, "prompts": [CAPTION], "output": str(out),
        "prune": {"method": "uniform"}, "frames": {"count": 16}, "generate": {"max_new_tokens": 8},
    }  # fmt: skip
    return JobSpec.from_dict({**basic, **parts})


def manifest(path: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return {"manifest": str(path), "allow": ["/"]}


def asked_shape(spec: JobSpec, frames: int, texts: list[str]) -> ClipShape:
    prompter, shape = Prompter(resolve(spec.model.id)), setup(spec).shape
    suffixes = tuple(len(prompter.suffix("caption", text)) for text in texts)
    return ClipShape(frames, shape.side, shape.side, len(prompter.prefix), shape.trailer, suffixes)


def calibrate(spec: JobSpec, revision: str | None = None) -> Calibration:
    one = Calibration(
        device="NVIDIA Test", kind="cuda", model=spec.model.id, revision=revision or resolve(spec.model.id).revision,
        dtype="bfloat16", bytes_per_number=2, batch=8, vision_flops_per_s=10**9, prefill_flops_per_s=2 * 10**9,
        generate_bytes_per_s=10**8, measured_at="2026-01-01T00:00:00Z",
    )  # fmt: skip
    calibration.save(one, calibration.store_folder())
    return one


def pricer(spec: JobSpec) -> Pricer:
    means, budget = setup(spec), spec.budget
    device = calibration.load(means.checkpoint.revision) if budget.kind == "gpu_hours" else None
    measure = Measure(budget.scope, budget.convention, spec.generate.max_new_tokens, device)
    return Pricer(means.shape, means.method, measure, means.pair_shape)
