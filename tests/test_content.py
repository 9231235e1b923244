"""Allocation `content`: clips that repeat themselves give to those that do not, and the job stays within its budget."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from commands import until
from ledger_rows import FINGERPRINT, annotation
from small_jobs import classes, clips, manifest, spec, table

from mlb_batch import run
from mlb_batch.books import Books
from mlb_batch.chain import settling
from mlb_batch.chain.feed import looked_up
from mlb_batch.chain.parts import Part
from mlb_batch.chain.purse import Grants
from mlb_batch.chain.spent import spent_on
from mlb_batch.cost import calibration
from mlb_batch.cost.allocate import ContentRule
from mlb_batch.cost.calibration import Calibration
from mlb_batch.cost.schedule import WHOLE, ClipShape
from mlb_batch.engine import Engine
from mlb_batch.errors import JobError
from mlb_batch.ledger import Ledger, RunFolder, annotation_id, verify
from mlb_batch.planning import Plan, plan, pricer_of, setup
from mlb_batch.progress import Progress, latest
from mlb_batch.prune import METHODS
from mlb_batch.prune.similarity import Unique
from mlb_batch.source import inspect
from mlb_batch.spec import JobSpec
from mlb_batch.stop import Stop
from mlb_batch.video.write import write_mp4
from mlb_batch.work import Ask, History, Work

pytestmark = pytest.mark.usefixtures("ray_cluster")
SIZE = 64


def write_clips(folder: Path, count: int) -> None:
    """Half of them stand still; the others are another picture in every frame."""
    folder.mkdir()
    for n in range(count):
        draw = np.random.default_rng(n)
        frames = 1 if n % 2 else 8
        pictures = draw.integers(0, 255, (frames, 4, 4, 3), dtype=np.uint8)
        pixels = pictures.repeat(SIZE // 4, 1).repeat(SIZE // 4, 2)
        write_mp4(folder / f"{'still' if n % 2 else 'moving'}{n:03}.mp4", np.resize(pixels, (8, SIZE, SIZE, 3)), 4)


def content_job(folder: Path, **changes: Any) -> JobSpec:
    budget = {"ratio": 0.5, "allocation": "content"}
    return spec(folder, prune={"method": "unique"}, frames={"count": 8}, budget=budget, **changes)


def spent(rows: list[dict[str, Any]]) -> int:
    return sum(row["flops_prefill"] + row["flops_scoring"] for row in rows)


@pytest.mark.slow
def test_a_small_job_is_solved_over_all_clips_and_run_again_does_nothing(tmp_path: Path) -> None:
    write_clips(tmp_path / "videos", 10)
    job, out = content_job(tmp_path), tmp_path / "out"
    limit = plan(job).budget.limit
    first = run(job)
    rows = table(out)
    assert first["annotated"] == len(rows) == 20
    assert 0.98 * limit <= spent(rows) <= limit
    keep = {kind: {row["keep_ratio"] for row in rows if kind in row["video_id"]} for kind in ("still", "moving")}
    assert max(keep["still"]) < min(keep["moving"]), keep
    again = run(job)
    assert (again["annotated"], again["skipped_done"], again["fingerprint"]) == (0, 20, first["fingerprint"])


def test_a_run_that_is_stopped_while_it_measures_stops_there(tmp_path: Path, capfd: Any, monkeypatch: Any) -> None:
    """What it would have solved is solved by the next one, which says that it measures, and counts the time."""
    write_clips(tmp_path / "videos", 4)
    late = run(content_job(tmp_path, limits={"deadline_h": 1e-9}))
    assert (late["stopped"], late["exit_code"], late["annotated"]) == ("deadline", 3, 0)
    job, states, write = content_job(tmp_path), list[str](), RunFolder.write_json

    def noted(folder: RunFolder, name: Any, value: Any) -> None:
        write(folder, name, value)
        if name == "progress":
            states.append(latest(job.output.uri)["state"])

    monkeypatch.setattr(RunFolder, "write_json", noted)
    begun_s = time.monotonic()
    assert plan(job).content is None
    summary = run(job)
    assert summary["annotated"] == 8 and plan(job).content is not None
    assert 0 < summary["measuring_s"] < summary["wall_s"] < time.monotonic() - begun_s
    assert list(dict.fromkeys(states))[:2] == ["starting", "measuring"] and states[-1] == "ended"
    assert "measuring clips before the job: " in capfd.readouterr().err


@pytest.mark.slow
def test_where_nothing_can_be_measured_nothing_is_solved_for_later(tmp_path: Path) -> None:
    """The videos of the first night are not uploaded yet; the second night's get what their own content asks for."""
    out, later = tmp_path / "out", tmp_path / "videos"
    rows = [{"uri": str(later / f"{'still' if n % 2 else 'moving'}{n:03}.mp4")} for n in range(4)]
    job = content_job(tmp_path, input={"manifest": str(manifest(tmp_path / "m.jsonl", rows)), "allow": ["/"]})
    first = run(job)
    assert (first["exit_code"], first["annotated"], first["complete"]) == (3, 0, False)
    assert classes(out) == {"not_found": 8} and not (out / "plans").exists() and verify(str(out)) == []
    write_clips(later, 4)
    limit = plan(job).budget.limit
    assert run(job)["annotated"] == 8
    assert 0.95 * limit <= spent(table(out)) <= limit and verify(str(out)) == []
    assert plan(job).content is not None


@pytest.mark.slow
def test_a_large_job_is_solved_on_a_sample_and_never_spends_more(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(settling, "FULL_PASS", 8)
    monkeypatch.setattr(settling, "SAMPLE", 8)
    monkeypatch.setattr(settling, "VIDEOS", 8)
    write_clips(tmp_path / "videos", 24)
    job, out = content_job(tmp_path), tmp_path / "out"
    limit = plan(job).budget.limit
    assert run(job, limit=10)["annotated"] == 20
    assert run(job)["annotated"] == 28, "the rest, from what the first run left in the purse"
    rows = table(out)
    assert len(rows) == 48 and spent(rows) <= limit


@pytest.mark.slow
def test_a_few_long_videos_of_very_many_clips_are_all_measured(tmp_path: Path, monkeypatch: Any) -> None:
    """A share of the videos could be none of them, in this run and in every other."""
    monkeypatch.setattr(settling, "FULL_PASS", 2)
    monkeypatch.setattr(settling, "SAMPLE", 1)
    write_clips(tmp_path / "videos", 2)
    job, out = content_job(tmp_path, clips={"every_s": 0.5}), tmp_path / "out"
    limit = plan(job).budget.limit
    summary = run(job)
    assert (summary["annotated"], summary["complete"]) == (16, True) and plan(job).content is not None
    assert 0.9 * limit <= spent(table(out)) <= limit


def test_a_purse_that_dies_ends_the_job_and_blames_no_clip(tmp_path: Path, monkeypatch: Any) -> None:
    """The next run spends what is left."""
    write_clips(tmp_path / "videos", 4)
    job, out = content_job(tmp_path), tmp_path / "out"

    @contextmanager
    def robbed(*given: Any) -> Iterator[Any]:
        with settling.grants(*given) as made:
            ray.kill(made._purse)
            yield made

    with monkeypatch.context() as patch, pytest.raises(JobError, match="purse of allocation content is lost") as end:
        patch.setattr(sys.modules["mlb_batch.run"], "grants", robbed)
        run(job)
    assert "\n" not in str(end.value) and table(out, "errors") == []
    # Though somebody keeps the error, as a notebook does, the chain has given back what it held.
    until(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"], "the cores")
    assert run(job)["annotated"] == 8 and {row["attempt"] for row in table(out)} == {1}


@pytest.mark.slow
def test_a_night_of_other_videos_has_a_purse_of_its_own(tmp_path: Path) -> None:
    write_clips(tmp_path / "videos", 4)
    job, out = content_job(tmp_path), tmp_path / "out"
    first = run(job)
    before = table(out)
    for n, path in enumerate(sorted((tmp_path / "videos").iterdir())):
        if n % 2:
            path.rename(path.with_stem(f"{path.stem}-again"))  # another video
        else:
            os.utime(path, (0, 0))  # another version of the same one
    second = run(job)
    assert (second["annotated"], second["fingerprint"]) == (8, first["fingerprint"])
    rows = [row for row in table(out) if row not in before]
    assert sorted(row["keep_ratio"] for row in rows) == sorted(row["keep_ratio"] for row in before)
    assert spent(rows) == spent(before) <= plan(job).budget.limit


def progress_of(job: JobSpec, priced: Plan) -> Progress:
    return Progress(Books(priced, job.retry), RunFolder(job.output.uri, "run"), lambda _: None)


@pytest.mark.parametrize("cut", [None, {"every_s": 1}])
def test_only_what_was_spent_on_this_input_counts(
    cut: dict[str, Any] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a run that looks it up says so all the time: a bucket is long about the versions of a month of videos."""
    for pause in ("TICK_S", "FILE_EVERY_S"):
        monkeypatch.setattr(f"mlb_batch.progress.{pause}", 0.0)
    videos, job = clips(tmp_path / "videos", 3), spec(tmp_path, clips=cut)
    found, nothing = inspect(job), History(FINGERPRINT, job.retry)
    ledger = Ledger(str(tmp_path / "out"), FINGERPRINT, "run")

    def row(work: Work, ask: Ask) -> dict[str, Any]:
        """As a clip of it, where the videos are cut: its id is known only when the video is opened."""
        clip = replace(work, start_s=0.0, end_s=1.0) if cut else work
        video, version, prompt = clip.video.video_id, clip.version, ask.prompt
        name = annotation_id(video, version, clip.start_s, clip.end_s, prompt, FINGERPRINT)
        asked = {"prompt_id": prompt.id, "kind": prompt.kind, "prompt": prompt.text}
        return annotation(0, annotation_id=name, video_id=video, video_version=version, flops_prefill=10, **asked)

    stop, progress = Stop(None), progress_of(job, plan(job))
    lines, write = list[str](), progress._write
    monkeypatch.setattr(progress, "_write", lambda state, line: (write(state, line=line), lines.append(line)))
    assert spent_on(job, found, ledger, ["flops_prefill"], stop, progress) == {}
    ledger.commit([row(work, ask) for work in looked_up(job, found, nothing, Part()) for ask in work.asks], [])
    assert spent_on(job, found, ledger, ["flops_prefill"], stop, progress) == {"rows": 6, "flops_prefill": 60}
    told = [f"{n} videos" for n in (1, 2, 3)] + [f"{n} rows" for n in range(1, 7)]
    assert lines == [f"looking up what earlier runs have spent: {one}" for one in told]
    assert (latest(job.output.uri)["state"], latest(job.output.uri)["line"]) == ("measuring", lines[-1])
    videos[0].rename(videos[0].with_stem("other"))
    os.utime(videos[1], (0, 0))
    assert spent_on(job, inspect(job), ledger, ["flops_prefill"], stop, progress) == {"rows": 2, "flops_prefill": 20}


def test_a_run_that_resumes_sets_aside_the_floors_of_the_clips_that_are_left(tmp_path: Path) -> None:
    """Of four clips with a floor of 100 each two are done, for 600; the third leaves the fourth its floor."""
    clips(tmp_path / "videos", 4)
    job, stop = content_job(tmp_path), Stop(None)
    priced, found = plan(job), inspect(job)
    budget = replace(priced.budget, limit=1000, content_floor=400)
    priced = replace(priced, budget=budget, content=ContentRule(WHOLE, 0))
    ledger = Ledger(str(tmp_path / "out"), priced.fingerprint, "run")
    works = looked_up(job, found, History(priced.fingerprint, job.retry), Part())
    done = [ask.annotation_id for work in list(works)[:2] for ask in work.asks]
    paid: dict[str, Any] = dict.fromkeys(budget.columns, 0) | {budget.columns[0]: 150}
    ledger.commit([annotation(n, annotation_id=name, **paid) for n, name in enumerate(done)], [])
    with settling.grants(job, priced, found, ledger, stop, progress_of(job, priced)) as made:
        assert made is not None
        assert [ray.get(made._purse.grant.remote(key, 300, 100)) for key in ("third", "fourth")] == [True, False]


def test_a_purse_ends_with_its_run() -> None:
    """Though somebody still knows it: the cluster may live for weeks."""
    with closing(Grants(1, 0, ContentRule(WHOLE, 0), None)) as purse:  # type: ignore[arg-type]  (it prices nothing)
        assert ray.get(purse._purse.grant.remote("clip", 1, 0))

    def gone() -> bool:
        try:
            ray.get(purse._purse.grant.remote("clip", 1, 0))
        except ray.exceptions.RayActorError:
            return True
        return False

    until(gone, "its end")


@pytest.mark.usefixtures("own_calibrations")
def test_a_captioner_prices_by_the_rates_of_the_driver(tmp_path: Path) -> None:
    """On another node nobody has calibrated anything: captioners ended there as they were loaded."""
    clips(tmp_path / "videos", 1)
    budget = {"gpu_hours": 1, "allocation": "content"}
    job = spec(tmp_path, prune={"method": "unique"}, frames={"count": 8}, budget=budget)
    measured = Calibration(
        device="GPU", kind="cuda", model="tiny", revision=setup(job).checkpoint.revision, dtype="bfloat16",
        bytes_per_number=2, batch=8, vision_flops_per_s=10**9, prefill_flops_per_s=10**9,
        generate_bytes_per_s=10**8, measured_at="2026-01-01T00:00:00Z",
    )  # fmt: skip
    kept = calibration.save(measured)
    priced, clip = plan(job), ClipShape(8, 4, 4, 8, 1, (12,))
    pricer = pricer_of(job, setup(job))
    assert pricer.measure.unit == "nanoseconds"
    enough_for_one = replace(priced.budget, limit=pricer.clip(clip, WHOLE), content_floor=0)
    priced = replace(priced, budget=enough_for_one, content=ContentRule(WHOLE, 0))
    ledger = Ledger(str(tmp_path / "out"), priced.fingerprint, "run")
    with settling.grants(job, priced, inspect(job), ledger, Stop(None), progress_of(job, priced)) as purse:
        kept.unlink()
        captioner = Engine.of(job, priced).load(1, purse)
        assert captioner.settings.grant is not None
        assert [captioner.settings.grant(key, clip, WHOLE) for key in ("first", "second")] == [WHOLE, 0]


class OfAGpuNode(Unique):
    """Where it arrives, torch sees a GPU: a node's, that Ray gave to nobody there."""

    def __reduce__(self) -> Any:
        return _arrived, ()


def _arrived() -> OfAGpuNode:
    torch.cuda.is_available = lambda: True
    return OfAGpuNode()


@pytest.mark.slow
def test_where_captioners_get_no_gpu_clips_are_measured_and_captioned_on_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray hides a node's GPUs only from who was given some of them."""
    monkeypatch.setitem(METHODS, "of-a-gpu-node", OfAGpuNode())
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    write_clips(tmp_path / "videos", 1)
    job = content_job(tmp_path, cluster={"caption": {"num_gpus": 0}})
    summary = run(job.changed(prune={"method": "of-a-gpu-node"}))
    assert (summary["annotated"], summary["errors"], summary["gpu_hours"]) == (2, 0, 0)


@pytest.mark.slow
def test_frames_that_are_looked_at_and_left_out_are_in_the_budget(tmp_path: Path) -> None:
    write_clips(tmp_path / "videos", 8)
    budget = {"ratio": 0.8, "scope": "total", "allocation": "content"}
    job = spec(tmp_path, prune={"method": "frames"}, frames={"count": 8}, budget=budget)
    limit = plan(job).budget.limit
    assert run(job)["annotated"] == 16
    rows = table(tmp_path / "out")
    assert sum(row["flops_executed"] for row in rows) <= limit
    assert any(row["num_kept_tokens"] < row["num_visual_tokens"] for row in rows)
