"""The bill of whole jobs: the rows add up to what was planned, and use the budget up without passing it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from small_jobs import manifest, table
from video_files import write_video

from mlb_batch import plan, run
from mlb_batch.spec import JobSpec

pytestmark = pytest.mark.usefixtures("ray_cluster")
BY_TOKEN = ("adatp", "fastv", "random", "uniform", "density", "unique", "segattn")
BY_STEP = ("frames", "pool", "mlb-g", "mlb")
WORDS = ("what", "which", "where", "when", "how", "many", "colour", "shape", "moves", "first", "last", "red", "circle")


def job(folder: Path, method: str, videos: int, ratio: float) -> JobSpec:
    """Videos of unlike lengths, with one to five prompts of unlike lengths each."""
    draw = random.Random(7)
    rows: list[dict[str, Any]] = []
    for n in range(videos):
        path = folder / f"v{n:02}.mp4"
        if not path.exists():
            write_video(path, frames=draw.randint(1, 24), size=(64, 48))
        questions = [" ".join(draw.choices(WORDS, k=draw.randint(2, 12))) for _ in range(draw.randint(1, 5))]
        rows.append({"id": f"v{n:02}", "uri": str(path), "questions": sorted(set(questions))})
    return JobSpec.from_dict({
        "input": {"manifest": str(manifest(folder / "videos.jsonl", rows)), "id_column": "id"},
        "prompts": [{"id": "q", "kind": "qa", "column": "questions"}],
        "frames": {"count": 16},
        "prune": {"method": method, "select": "per_video", "feature_model": None},
        "budget": {"ratio": ratio, "scope": "llm"},
        "generate": {"max_new_tokens": 2},
        "output": str(folder / method),
    })  # fmt: skip


def check(folder: Path, method: str, videos: int, least: float) -> None:
    spec = job(folder, method, videos, ratio=0.6)
    priced = plan(spec)
    summary = run(spec)
    rows = table(folder / method)
    spent = sum(row["flops_prefill"] + row["flops_scoring"] for row in rows)
    print(f"{method}: {spent / priced.budget.limit:.4f} of the budget, keep {priced.keep / 1e6:.4f}")
    assert least * priced.budget.limit <= spent <= priced.budget.limit
    assert spent == priced.budget.planned == priced.planned.llm, "planned is executed, to the operation"
    assert len(rows) == summary["annotated"] == summary["expected"] == priced.prompts
    assert sum(row["flops_planned"] for row in rows) == summary["flops_planned"] == priced.planned.total
    assert sum(row["flops_vanilla"] for row in rows) == summary["flops_vanilla"] == priced.vanilla.total
    assert sum(row["flops_executed"] for row in rows) == summary["flops_executed"] <= priced.planned_worst.total
    assert sum(row["macs_paper_planned"] for row in rows) == priced.paper_planned


def test_a_job_spends_what_its_plan_says(tmp_path: Path) -> None:
    check(tmp_path, "adatp", videos=6, least=0.98)


@pytest.mark.slow
@pytest.mark.parametrize("method", BY_TOKEN)
def test_fifty_videos_use_at_least_98_per_cent_of_the_budget(method: str, tmp_path: Path) -> None:
    check(tmp_path, method, videos=50, least=0.98)


@pytest.mark.slow
@pytest.mark.parametrize("method", BY_STEP)
def test_fifty_videos_pruned_by_whole_steps_stay_within_the_budget(method: str, tmp_path: Path) -> None:
    check(tmp_path, method, videos=50, least=0.5)
