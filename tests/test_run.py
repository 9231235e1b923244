"""The whole chain on a Ray of two CPUs: every annotation has one outcome, and running again adds nothing."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.data import DataContext
from rich.console import Console
from small_jobs import PROMPTS, classes, clips, ids, manifest, spec, table, texts
from video_files import cut, write_audio, write_bomb, write_encrypted, write_video

from mlb_batch import run
from mlb_batch.chain.cluster import data_context
from mlb_batch.chain.parts import Part
from mlb_batch.chain.pools import pools
from mlb_batch.chain.strikes import Strikes
from mlb_batch.columns import ANNOTATION_COLUMNS, ERROR_COLUMNS
from mlb_batch.demo import demo, prepared
from mlb_batch.errors import BudgetError, ClusterError, InputError, OutputError
from mlb_batch.ledger import Lease, Ledger, read_current, verify
from mlb_batch.planning import plan
from mlb_batch.report import report
from mlb_batch.run import chain
from mlb_batch.source import inspect
from mlb_batch.work import History

pytestmark = pytest.mark.usefixtures("ray_cluster")
SUMMARY = {"expected", "annotated", "errors", "skipped_done", "flops_budget", "flops_planned", "flops_executed",
           "flops_vanilla", "wall_s", "videos_per_s", "gpu_busy_share", "starved_by"}  # fmt: skip
KINDS = ("empty", "not_video", "no_video_stream", "truncated", "encrypted", "not_found")


def files(folder: Path) -> dict[str, int]:
    """What is committed, and when it was written."""
    found = [path for kind in ("annotations", "errors") for path in (folder / kind).rglob("*") if path.is_file()]
    return {str(path): path.stat().st_mtime_ns for path in found}


def run_record(out: Path, summary: dict[str, Any], name: str) -> dict[str, Any]:
    return json.loads((out / "runs" / summary["run_id"] / f"{name}.json").read_text())


def test_every_video_and_prompt_gets_one_row_and_the_same_job_again_adds_nothing(tmp_path: Path) -> None:
    clips(tmp_path / "videos", 5)
    job, out = spec(tmp_path), tmp_path / "out"
    first = run(job, limit=3)
    assert (first["expected"], first["annotated"], first["exit_code"]) == (6, 6, 0)
    assert read_current(str(out)) is None, "a part of the input was published as if it were complete"
    told = run_record(out, first, "progress")
    assert (told["state"], told["left"], told["eta_s"]) == ("ended", 0, None), "of what it was asked for"
    summary = run(job, limit=5)
    assert (summary["expected"], summary["skipped_done"], summary["annotated"], summary["exit_code"]) == (10, 6, 4, 0)
    assert summary["complete"], "a limit that leaves nothing out is none"
    assert summary.keys() >= SUMMARY
    rows = table(out)
    assert len(rows) == len(set(ids(out))) == 10 and {row["status"] for row in rows} <= {"ok", "truncated"}
    assert list(rows[0]) == list(ANNOTATION_COLUMNS)
    assert Counter(row["prompt_id"] for row in rows) == {"caption": 5, "first": 5}
    assert all(row["frames_read"] == 4 == len(row["frame_times_s"]) for row in rows)
    executed = sum(row["flops_executed"] for row in rows)
    assert first["flops_executed"] + summary["flops_executed"] == executed > 0
    for name in ("plan", "progress", "summary", "environment"):
        assert run_record(out, summary, name)
    assert run_record(out, summary, "progress")["state"] == "ended"
    assert (read_current(str(out)) or {})["fingerprint"] == summary["fingerprint"]
    before = files(out)
    again = run(job)
    assert (again["skipped_done"], again["annotated"], again["rows_written"]) == (10, 0, 0)
    assert again["read_s"] == 0, "a video was read again"
    assert files(out) == before and verify(str(out)) == []


def test_a_night_without_an_answer_takes_nothing_from_who_reads(tmp_path: Path) -> None:
    """The wrong files were delivered, under another prompt: what was complete before is what readers are sent to."""
    paths, out = clips(tmp_path / "videos", 2), tmp_path / "out"
    good = run(spec(tmp_path))
    for path in paths:
        path.write_bytes(b"no video")
    bad = run(spec(tmp_path, prompts=[PROMPTS[0] | {"text": "What is it?"}]))
    assert (bad["annotated"], bad["errors"], bad["complete"], bad["exit_code"]) == (0, 2, False, 3)
    assert (read_current(str(out)) or {})["fingerprint"] == good["fingerprint"] != bad["fingerprint"]
    assert verify(str(out)) == []


def test_a_folder_with_megabytes_of_names(tmp_path: Path) -> None:
    """Ray treats a task of over a megabyte in a way of its own; what was listed is not to be part of one."""
    (original,) = clips(tmp_path / "made", 1)
    (tmp_path / "videos").mkdir()
    for number in range(6000):
        (tmp_path / "videos" / f"{'n' * 200}{number:05}.mp4").hardlink_to(original)
    summary = run(spec(tmp_path), limit=2)
    assert (summary["expected"], summary["annotated"], summary["complete"]) == (4, 4, False)


def test_a_very_long_input_goes_through_one_chain_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []
    monkeypatch.setattr("mlb_batch.chain.parts.PART_CLIPS", 4)
    monkeypatch.setattr(sys.modules["mlb_batch.run"], "chain", lambda *given: (begun.append(given), chain(*given))[1])
    clips(tmp_path / "videos", 6)
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"no video")
    summary = run(spec(tmp_path), limit=5)
    assert len(begun) == 2
    assert (summary["videos"], summary["expected"], summary["annotated"]) == (5, 10, 8)
    assert summary["complete"] is False and summary["errors_by_class"] == {"not_video": 2}
    assert len(ids(tmp_path / "out")) == len(set(ids(tmp_path / "out"))) == 8
    assert classes(tmp_path / "out") == {"not_video": 2}


@pytest.mark.slow
def test_a_limit_counts_rows_also_where_one_of_them_is_more_than_one_video_of_a_long_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlb_batch.chain.parts.PART_CLIPS", 2)
    partly_bad = [{"uri": str(path), "ask": " "} for path in clips(tmp_path / "videos", 4)]
    given = {"manifest": str(manifest(tmp_path / "videos.jsonl", partly_bad))}
    asked = [PROMPTS[0], {"id": "q", "kind": "qa", "column": "ask"}]
    summary = run(spec(tmp_path, input=given, prompts=asked), limit=3)
    assert (summary["expected"], summary["annotated"]) == (6, 3)
    assert summary["errors_by_class"] == {"bad_prompt": 3}


def test_what_is_new_is_computed_beside_what_stands(tmp_path: Path) -> None:
    """A changed prompt is a new fingerprint; a changed video and a new one are new annotations of the old one."""
    changed, _ = clips(tmp_path / "videos", 2)
    out = tmp_path / "out"
    old = run(spec(tmp_path))
    before = files(out)
    new = run(spec(tmp_path, prompts=[PROMPTS[0], {**PROMPTS[1], "text": "What colour is it?"}]))
    assert new["fingerprint"] != old["fingerprint"] and new["annotated"] == 4
    assert before.items() <= files(out).items()
    assert Counter(row["fingerprint"] for row in table(out)) == {old["fingerprint"]: 4, new["fingerprint"]: 4}
    assert (read_current(str(out)) or {})["fingerprint"] == new["fingerprint"]
    write_video(changed, frames=33, size=(64, 48))
    clips(tmp_path / "videos", 1, first=7)
    more = run(spec(tmp_path))
    assert (more["fingerprint"], more["skipped_done"], more["annotated"]) == (old["fingerprint"], 2, 4)
    assert (read_current(str(out)) or {})["fingerprint"] == old["fingerprint"]


@pytest.mark.slow
def test_a_night_without_a_question_ends_well_and_decides_nothing_for_the_next(tmp_path: Path) -> None:
    videos = clips(tmp_path / "videos", 2)
    changes = {"input": {"manifest": str(tmp_path / "videos.jsonl")}, "name": "ночь", "prune": {"method": "uniform"},
               "prompts": [{"id": "q", "kind": "qa", "column": "ask"}], "budget": {"ratio": 0.5}}  # fmt: skip
    manifest(tmp_path / "videos.jsonl", [{"uri": str(path), "ask": None} for path in videos])
    empty = run(spec(tmp_path, **changes))
    assert (empty["expected"], empty["annotated"], empty["exit_code"]) == (0, 0, 0)
    assert verify(str(tmp_path / "out")) == [] and read_current(str(tmp_path / "out")) is None
    manifest(tmp_path / "videos.jsonl", [{"uri": str(path), "ask": "What is it?"} for path in videos])
    full = run(spec(tmp_path, **changes))
    assert full["annotated"] == 2 and 0 < full["flops_spent_of_budget"] <= full["flops_budget"]


def test_runs_without_a_schedule_to_freeze_are_sound(tmp_path: Path) -> None:
    clips(tmp_path / "videos", 1)
    late = run(spec(tmp_path, limits={"deadline_h": 1e-9}))
    assert (late["stopped"], late["rows_written"]) == ("deadline", 0)
    assert verify(str(tmp_path / "out")) == [], "stopped before it was frozen"
    manifest(tmp_path / "gone.jsonl", [{"uri": "http://elsewhere/1.mp4"}])
    refused = run(spec(tmp_path, input={"manifest": str(tmp_path / "gone.jsonl")}, output=str(tmp_path / "none")))
    assert (refused["rows_written"], refused["errors_by_class"]) == (2, {"forbidden": 2})
    assert verify(str(tmp_path / "none")) == [], "no clip to solve for"


def test_long_videos_become_clips(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "long.mp4", frames=125, size=(64, 48))  # 5 s
    clips(tmp_path / "videos", 1)  # under one clip
    job = spec(tmp_path, clips={"every_s": 2}, prompts=PROMPTS[:1])
    assert run(job)["annotated"] == 4
    rows = sorted(
        (r for r in table(tmp_path / "out") if r["uri"].endswith("/long.mp4")), key=lambda r: r["clip_start_s"]
    )
    assert [(row["clip_start_s"], row["clip_end_s"]) for row in rows] == [(0, 2), (2, 4), (4, 5)]
    assert all(row["clip_start_s"] <= at < row["clip_end_s"] for row in rows for at in row["frame_times_s"])
    again = run(job)
    assert (again["expected"], again["skipped_done"], again["rows_written"]) == (4, 4, 0)
    crumbs = spec(tmp_path, input={"videos": f"{tmp_path}/videos/l*"}, clips={"every_s": 4e-5}, prompts=PROMPTS[:1])
    assert run(crumbs)["errors_by_class"] == {"too_long": 1}, "more clips than one video may have are one error"


def test_questions_passthrough_and_spans_of_a_manifest_reach_the_rows(tmp_path: Path) -> None:
    a, b = clips(tmp_path / "videos", 2)
    rows = [
        {"video_id": "a", "uri": str(a), "title": "First", "score": 0.5, "from": 0.1, "to": 0.3, "ask": ["1?", "2?"]},
        {"video_id": "b", "uri": str(b), "title": "Second", "score": 2, "from": 0.0, "to": 0.2, "ask": ["3?"]},
    ]
    path = manifest(tmp_path / "videos.jsonl", rows)
    given = {"manifest": str(path), "id_column": "video_id", "columns": ["title", "score"], "start_column": "from",
             "end_column": "to"}  # fmt: skip
    prompts = [{"id": "c", "kind": "caption", "text": "{title}: describe."}, {"id": "q", "kind": "qa", "column": "ask"}]
    assert run(spec(tmp_path, input=given, prompts=prompts))["annotated"] == 5
    found = table(tmp_path / "out")
    assert {(r["video_id"], r["title"], r["clip_start_s"], r["clip_end_s"]) for r in found} == {
        ("a", "First", 0.1, 0.3), ("b", "Second", 0.0, 0.2)}  # fmt: skip
    assert {r["prompt"] for r in found} == {"First: describe.", "Second: describe.", "1?", "2?", "3?"}
    third = {**rows[0], "video_id": "c", "title": "Third", "score": 3, "ask": []}  # whole numbers only
    manifest(path, [third])
    assert run(spec(tmp_path, input=given, prompts=prompts))["annotated"] == 1
    (row,) = (row for row in table(tmp_path / "out") if row["video_id"] == "c")
    assert (row["title"], row["score"]) == ("Third", 3.0)


@pytest.mark.slow
def test_prompts_of_a_clip_share_its_reading_and_its_encoding(tmp_path: Path) -> None:
    clips(tmp_path / "videos", 1)
    run(spec(tmp_path, prompts=PROMPTS[:1], output=str(tmp_path / "one")))
    run(spec(tmp_path, output=str(tmp_path / "two")))
    one, two = table(tmp_path / "one"), table(tmp_path / "two")
    assert sum(row["flops_vision"] for row in two) == one[0]["flops_vision"] > 0
    assert len({row["read_s"] for row in two}) == 1
    assert texts(tmp_path / "one").items() <= texts(tmp_path / "two").items()


@pytest.mark.slow
def test_neighbours_about_one_clip_share_its_reading_and_answer_as_if_each_had_read_it(tmp_path: Path) -> None:
    a, b = clips(tmp_path / "videos", 2)
    asked = [{"id": f"{name}{n}", "uri": str(uri), "ask": [f"Question {n}?"]}
             for name, uri in (("a", a), ("b", b)) for n in range(3)]  # fmt: skip
    part = {**asked[0], "id": "a3", "to": 0.2}
    rows = {"near": [*asked, part], "apart": [*asked[::3], *asked[1::3], *asked[2::3], part]}
    found = {}
    for name, some in rows.items():
        given = {"manifest": str(manifest(tmp_path / f"{name}.jsonl", some)), "id_column": "id", "end_column": "to"}
        prompts = [{"id": "q", "kind": "qa", "column": "ask"}]
        run(spec(tmp_path, input=given, prompts=prompts, output=str(tmp_path / name)))
        found[name] = {row["video_id"]: row for row in table(tmp_path / name)}
    assert {name for name, row in found["near"].items() if row["read_s"] > 0} == {"a0", "b0", "a3"}
    assert {row["frames_read"] for row in found["near"].values()} == {4}
    for name, row in found["apart"].items():
        assert (row["text"], row["flops_executed"]) == (
            found["near"][name]["text"],
            found["near"][name]["flops_executed"],
        )


def test_200_clips_with_12_broken_ones_of_six_kinds(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    good = clips(folder, 188)
    bad = {kind: [folder / f"{kind}-{n}.mp4" for n in range(2)] for kind in KINDS}
    for n in range(2):
        bad["empty"][n].touch()
        bad["not_video"][n].write_text("a text with a video's name")
        write_audio(bad["no_video_stream"][n])
        cut(good[n], bad["truncated"][n], 0.5)
        write_encrypted(bad["encrypted"][n])
    everything = sorted([*good, *(path for paths in bad.values() for path in paths)])
    rows = [{"uri": str(path)} for path in everything]
    job = spec(tmp_path, input={"manifest": str(manifest(tmp_path / "videos.jsonl", rows))})
    summary, out = run(job), tmp_path / "out"
    assert (summary["exit_code"], summary["expected"], summary["annotated"], summary["errors"]) == (3, 400, 376, 24)
    assert len(ids(out)) == len(set(ids(out))) == 188 * 2
    assert {row["uri"] for row in table(out)} == {str(path) for path in good}
    assert classes(out) == dict.fromkeys(KINDS, 4)
    assert list(table(out, "errors")[0]) == list(ERROR_COLUMNS)
    for row in table(out, "errors"):
        assert Path(row["uri"]) in bad[row["error_class"]] and row["message"]
    before = files(out)
    again = run(job)
    assert (again["exit_code"], again["errors"], again["rows_written"]) == (3, 24, 0), "permanent errors came again"
    assert files(out) == before
    retried = job.model_copy(update={"retry": job.retry.model_copy(update={"errors": True})})
    forgiven = retried.model_copy(update={"limits": job.limits.model_copy(update={"max_error_share": 0.06})})
    by_hand = run(forgiven)
    assert (by_hand["rows_written"], by_hand["exit_code"]) == (24, 0)
    assert Counter(row["attempt"] for row in table(out, "errors")) == {1: 24, 2: 24}
    assert verify(str(out)) == []


def test_other_kinds_of_bad_input_get_their_class_beside_good_videos(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    good = clips(folder, 3)
    unknown, corrupt, bomb = (write_video(folder / f"{name}.mp4") for name in ("unknown", "corrupt", "bomb"))
    unknown.write_bytes(unknown.read_bytes().replace(b"avc1", b"zzzz"))
    data = corrupt.read_bytes()
    moov = data.index(b"moov") + 4
    corrupt.write_bytes(data[:moov] + bytes(len(data) - moov))
    write_bomb(bomb, "mpeg4", 8176)
    rows = [
        *({"uri": str(path), "ask": "What?"} for path in good),
        {"uri": str(unknown), "ask": "What?"},
        {"uri": str(corrupt), "ask": "What?"},
        {"uri": str(bomb), "ask": "What?"},
        {"uri": "/etc/passwd", "ask": "What?"},
        {"uri": "http://169.254.169.254/latest/meta-data/v.mp4", "ask": "What?"},
        {"uri": str(folder / "v0000.mp4") + "#", "ask": " "},
    ]
    given = {"manifest": str(manifest(tmp_path / "videos.jsonl", rows))}
    summary = run(spec(tmp_path, input=given, prompts=[{"id": "q", "kind": "qa", "column": "ask"}]))
    assert (summary["annotated"], summary["errors"], summary["exit_code"]) == (3, 6, 3)
    assert classes(tmp_path / "out") == {"unsupported_codec": 1, "corrupt": 1, "too_large": 1, "forbidden": 2,
                                         "bad_prompt": 1}  # fmt: skip


@pytest.mark.parametrize("changed", ["version", pytest.param("never", marks=pytest.mark.slow)])
def test_what_was_mended_since_is_unresolved_no_longer(tmp_path: Path, changed: str) -> None:
    """One video that wasn't there, and one that couldn't be opened to be cut: a night later both are good."""
    (good, late, mended), out = clips(tmp_path / "videos", 3), tmp_path / "out"
    rows = [{"uri": str(path)} for path in (good, late, mended)]
    listed = {"manifest": str(manifest(tmp_path / "videos.jsonl", rows)), "changed": changed}
    job = spec(tmp_path, input=listed, clips={"every_s": 0.5}, retry={"errors": True})
    whole, late_bytes = mended.read_bytes(), late.read_bytes()
    mended.write_text("no video yet")
    late.unlink()
    assert run(job)["exit_code"] == 3
    told = {(row["uri"], row["clip_start_s"], row["clip_end_s"]) for row in table(out, "errors")}
    assert told == {(str(late), 0.0, 0.0), (str(mended), 0.0, 0.0)}
    assert {row["prompt"] for row in table(out, "errors")} == {prompt["text"] for prompt in PROMPTS}
    before = report(str(out))
    assert (before["errors"]["unresolved"], before["reconciliation"]["lost"]) == (4, 0)
    mended.write_bytes(whole)
    late.write_bytes(late_bytes)
    summary, after = run(job), report(str(out))
    assert (summary["exit_code"], summary["errors"]) == (0, 0)
    assert (after["errors"]["unresolved"], after["errors"]["failed_attempts"]) == (0, 4)
    assert after["reconciliation"] == {"expected": summary["expected"], "accounted": summary["expected"], "lost": 0}


@pytest.mark.slow
def test_what_may_pass_is_tried_again_by_later_runs_up_to_the_limit(tmp_path: Path) -> None:
    clips(tmp_path / "videos", 1)
    write_video(tmp_path / "videos" / "slow.mp4", frames=600, size=(480, 640))
    job = spec(tmp_path, prompts=PROMPTS[:1], limits={"video_s": 0.4}, frames={"count": 600}, budget={"ratio": 1.0},
               retry={"attempts": 2})  # fmt: skip
    out = tmp_path / "out"
    runs = [run(job) for _ in range(3)]
    assert [one["rows_written"] for one in runs] == [2, 1, 0]
    assert (runs[2]["exit_code"], runs[2]["errors"], runs[2]["skipped_done"]) == (3, 1, 1)
    assert classes(out) == {"timeout": 2} and len(ids(out)) == 1
    assert sorted(row["attempt"] for row in table(out, "errors")) == [1, 2]


def test_a_second_run_of_the_job_stops_while_the_first_holds_the_output(tmp_path: Path) -> None:
    clips(tmp_path / "videos", 1)
    out = tmp_path / "out"
    with Lease(str(out), "the-first-run"), pytest.raises(OutputError, match="the-first-run"):
        run(spec(tmp_path))
    assert not (out / "runs").exists() and not (out / "annotations").exists()


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"cluster": {"read": {"num_cpus": 64}}}, ClusterError),
        ({"cluster": {"read": {"concurrency": 3}}}, ClusterError),
        ({"cluster": {"caption": {"num_gpus": 1, "concurrency": 1}}}, ClusterError),
        ({"model": {"device": "cuda"}}, ClusterError),
        ({"input": {"videos": "/nowhere/*.mp4"}}, InputError),
        ({"budget": {"pflops": 1e-12}}, BudgetError),
    ],
)
def test_what_cannot_run_is_refused_and_leaves_nothing(tmp_path: Path, changes: dict[str, Any], error: type) -> None:
    clips(tmp_path / "videos", 1)
    with pytest.raises(error) as refused:
        run(spec(tmp_path, **changes))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out" / "runs").exists() and not (tmp_path / "out" / "annotations").exists()


def test_reading_and_captioning_are_steps_of_their_own(tmp_path: Path) -> None:
    """Fused, an actor would hold the GPU while it reads; with the source in it, one actor would read everything."""
    clips(tmp_path / "videos", 2)
    job, found = spec(tmp_path), inspect(spec(tmp_path))
    priced = plan(job, inspection=found)
    ledger = Ledger(str(tmp_path / "out"), priced.fingerprint, "a-run", found.passthrough)
    history = History(priced.fingerprint, job.retry, ledger.done(), ledger.attempts())
    sizes = pools(job, [node["Resources"] for node in ray.nodes()], priced.clips, 10**6)
    with DataContext.current(data_context(sizes.clips_a_look)):
        done = chain(job, priced, sizes, found, history, Strikes(), None, Part()).materialize()
    steps = [
        line.split(":")[0].split(maxsplit=2)[2] for line in done.stats().splitlines() if line.startswith("Operator")
    ]
    assert steps == ["ReadVideoSource", "MapBatches(ReadFrames)", "MapBatches(Caption)"]


def test_a_demo_that_is_stopped_before_its_first_answer_says_so(tmp_path: Path) -> None:
    with prepared(tmp_path, Console(quiet=True)).open("a", encoding="utf-8") as job_file:
        job_file.write("limits: {deadline_h: 1.0e-9}\n")
    summary = demo(tmp_path)
    assert (summary["stopped"], summary["rows_written"]) == ("deadline", 0)
