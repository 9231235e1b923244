"""A large manifest is planned from a sample, which states an interval."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from planned_jobs import CAPTION, LENGTHS, calibrate, job, manifest, pricer

from mlb_batch.cost.schedule import ClipShape
from mlb_batch.errors import BudgetError
from mlb_batch.planning import Plan, describe, plan, setup, solving, survey
from mlb_batch.spec import JobSpec
from mlb_batch.vlm.checkpoint import resolve
from mlb_batch.vlm.prompts import Prompter

pytestmark = pytest.mark.usefixtures("own_calibrations")


@pytest.fixture
def many(clips_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """600 rows over the six files, the shortest first, with questions of many lengths."""
    draw = random.Random(5)
    rows = [
        {"uri": str(clips_folder / f"{frames:03}.mp4"), "video_id": f"v{i}",
         "q": "Why " + "so " * draw.randint(0, 12) + "?"}
        for i, frames in enumerate(sorted(draw.choices(LENGTHS, k=600)))
    ]  # fmt: skip
    given = {**manifest(tmp_path / "many.parquet", rows), "id_column": "video_id"}
    return {"input": given, "prompts": [CAPTION, {"id": "q", "kind": "qa", "column": "q"}]}


@pytest.mark.parametrize("budget", [{"ratio": 0.5}, {"pflops": 6e-4}, {"pflops_per_hour_of_video": 1e-3}])
def test_a_sample_states_an_interval_that_holds_the_truth(
    budget: dict[str, Any], many: dict[str, Any], clips_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = job(clips_folder, tmp_path / "out", budget=budget, **many)
    full = plan(spec)
    assert full.estimate is None and full.prompts == 1200
    monkeypatch.setattr(survey, "PROBE_ALL", 200)
    monkeypatch.setattr(survey, "SAMPLE", 150)
    monkeypatch.setattr(solving, "WIDE", 0.1)
    sampled = plan(spec)
    assert sampled.estimate is not None and sampled.estimate.sampled_videos == 150
    assert sampled.videos == 600 and sampled.estimate.clips == (600, 600)
    low, high = sampled.estimate.vanilla
    assert low <= full.budget.vanilla <= high and low <= sampled.budget.vanilla <= high
    low_h, high_h = sampled.estimate.hours
    assert low_h <= full.hours <= high_h
    truth = true_cost(spec, full, sampled.keep)
    low, high = sampled.estimate.planned
    assert low <= truth <= high
    assert truth <= full.budget.limit  # with 99 % confidence; this sample is not the hundredth
    assert sampled.keep <= full.keep and truth >= 0.8 * full.budget.limit
    assert plan(spec).keep == sampled.keep
    assert f"{sampled.estimate.sampled_videos} of 600 videos were probed" in describe(sampled)


def test_a_sample_of_unlike_videos_is_made_larger_and_the_plan_says_what_it_leaves(
    many: dict[str, Any], clips_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = plan(job(clips_folder, tmp_path / "out", **many))
    spec = job(clips_folder, tmp_path / "out", budget={"pflops": 0.5 * whole.budget.vanilla / 1e15}, **many)

    def sampled(most: int, first: int) -> tuple[Plan, int]:
        monkeypatch.setattr(survey, "PROBE_ALL", most)
        monkeypatch.setattr(survey, "SAMPLE", first)
        made = plan(spec)
        assert made.estimate is not None
        return made, made.estimate.sampled_videos

    (few, of_few), (more, of_more) = sampled(30, 20), sampled(400, 20)
    assert (of_few, of_more) == (30, 400) and sampled(500, 450)[1] == 450, "more where the first say too little"
    assert few.keep < more.keep and few.budget.use < 0.9 < more.budget.use
    told = [[line for line in one.warnings if "of the budget is planned to be spent" in line] for one in (few, more)]
    assert [len(lines) for lines in told] == [1, 0] and f"{100 * few.budget.use:.3g} %" in told[0][0]


@pytest.mark.parametrize("kind", ["pflops", "gpu_hours"])
def test_a_sample_below_its_part_of_the_floor_is_refused(
    kind: str, many: dict[str, Any], clips_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = job(clips_folder, tmp_path / "out", budget={kind: 1.0}, **many)
    calibrate(spec)
    whole = plan(spec).budget
    tight = job(clips_folder, tmp_path / "out", budget={kind: 0.5 * whole.floor / whole.limit}, **many)
    monkeypatch.setattr(survey, "PROBE_ALL", 200)
    monkeypatch.setattr(survey, "SAMPLE", 150)
    with pytest.raises(BudgetError, match=rf"budget\.{kind}: .* below the floor"):
        plan(tight)


def test_a_sample_at_its_floor_is_planned_there_at_once_and_the_plan_says_so(
    many: dict[str, Any], clips_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`frames` costs the same at many keeps, and under the floor's bound each was tried: hours at 7B."""
    over, looks = solving._over, list[Any]()
    monkeypatch.setattr(survey, "PROBE_ALL", 200)
    monkeypatch.setattr(survey, "SAMPLE", 150)
    monkeypatch.setattr(solving, "_over", lambda *given: looks.append(given) or over(*given))
    floor = {"prune": {"method": "frames"}, **many}
    whole = plan(job(clips_folder, tmp_path / "out", budget={"pflops": 1.0}, **floor)).budget
    looks.clear()
    tight = plan(job(clips_folder, tmp_path / "out", budget={"pflops": 1.0001 * whole.floor / 1e15}, **floor))
    assert len(looks) < 20 and tight.budget.planned == tight.budget.floor == whole.floor
    assert any("is the floor of the videos that were probed" in line for line in tight.warnings)


def true_cost(spec: JobSpec, full: Plan, keep: int) -> int:
    """Every video of the manifest at this keep, counted apart from the plan."""
    prompter, price = Prompter(resolve(spec.model.id)), pricer(spec)
    shape, total = setup(spec).shape, 0
    caption = len(prompter.suffix("caption", CAPTION["text"]))
    assert spec.input.manifest is not None
    for row in pq.read_table(spec.input.manifest).to_pylist():
        frames = min(16, int(Path(row["uri"]).stem))
        suffixes = (caption, len(prompter.suffix("qa", row["q"])))
        clip = ClipShape(frames, shape.side, shape.side, len(prompter.prefix), shape.trailer, suffixes)
        total += price.clip(clip, keep)
    assert full.videos == 600
    return total


@pytest.mark.slow
def test_a_million_rows_plan_in_a_minute_and_2_gb(clips_folder: Path, tmp_path: Path) -> None:
    import resource

    draw = random.Random(0)
    schema = pa.schema([("uri", pa.string()), ("video_id", pa.string()), ("q", pa.string())])
    with pq.ParquetWriter(tmp_path / "m.parquet", schema) as out:
        for first in range(0, 1_000_000, 100_000):
            ids = range(first, first + 100_000)
            out.write_table(pa.table({
                "uri": [str(clips_folder / f"{draw.choice(LENGTHS):03}.mp4") for _ in ids],
                "video_id": [f"v{i}" for i in ids], "q": [f"What is {'the ' * draw.randint(1, 9)} {i}?" for i in ids],
            }, schema))  # fmt: skip
    given = {"manifest": str(tmp_path / "m.parquet"), "allow": ["/"], "id_column": "video_id"}
    prompts = [CAPTION, {"id": "q", "kind": "qa", "column": "q"}]
    spec = job(clips_folder, tmp_path / "out", input=given, prompts=prompts)
    begun_s = time.process_time()
    priced = plan(spec)
    assert time.process_time() - begun_s < 60  # of CPU: what else runs on the machine is not the plan's doing
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2_000_000  # KiB, the whole test process
    assert priced.videos == 1_000_000 and priced.prompts == 2_000_000
