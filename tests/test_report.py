"""The report counts from the rows, reconciles them, and shows what came from outside safely."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ledger_rows import FINGERPRINT, OTHER, annotation, error, row_id
from small_jobs import clips, spec

from mlb_batch import unresolved
from mlb_batch.errors import RETRYABLE, OutputError
from mlb_batch.ledger import Ledger, RunFolder, publish
from mlb_batch.outside import printable
from mlb_batch.page import write_page
from mlb_batch.page.sections import MEANING
from mlb_batch.planning import plan
from mlb_batch.report import how_to_read, report, to_text
from mlb_batch.source.questions import asked_of_rows
from mlb_batch.spec_parts import PromptSpec

HUGE = 2**62


@pytest.fixture
def output(tmp_path: Path) -> str:
    """Five annotations, one of them after a failure, and two that stay unresolved."""
    uri = str(tmp_path / "out")
    ledger = Ledger(uri, FINGERPRINT, "20260101-run", pa.schema([]))
    ledger.commit([], [error(4), error(8, error_class="corrupt"), error(9)])
    rows = [
        annotation(n, flops_executed=HUGE, flops_vanilla=2 * HUGE - 1, kind="qa" if n else "caption") for n in range(5)
    ]
    ledger.commit(rows[:3], [])
    hostile = {**error(9, attempt=2), "message": "\x1b[2Jgone\n=cmd()", "uri": "<script>"}
    ledger.commit(rows[3:], [hostile])
    folder = RunFolder(uri, "20260101-run")
    folder.write_json("summary", {"fingerprint": FINGERPRINT, "expected": 8, "annotated": 5})
    publish(uri, FINGERPRINT, "20260101-run")
    return uri


def test_the_numbers_add_up(output: str) -> None:
    numbers = report(output)
    assert (numbers["annotations"], numbers["videos"], numbers["fingerprint"]) == (5, 5, FINGERPRINT)
    assert numbers["by_kind"] == {"qa": 4, "caption": 1}
    assert numbers["sums"]["flops_executed"] == 5 * HUGE, "more than 64 bits hold"
    errors = numbers["errors"]
    assert (errors["unresolved"], errors["failed_attempts"]) == (2, 4)
    assert {name: one["count"] for name, one in errors["by_class"].items()} == {"corrupt": 1, "timeout": 1}
    assert errors["by_class"]["corrupt"]["examples"] == [{"uri": "s3://b/8.mp4", "message": "took too long"}]
    assert numbers["reconciliation"] == {"expected": 8, "accounted": 7, "lost": 1}
    assert numbers["current"] == FINGERPRINT


CLIP = {"video_version": "v1", "clip_start_s": 60.0, "clip_end_s": 120.0}
WHOLE = {"clip_start_s": 0.0, "clip_end_s": 0.0}


@pytest.mark.parametrize(
    ("failed", "later", "left"),
    [
        ({}, {"clip_start_s": 110.0, "clip_end_s": 170.0}, 1),  # the next clip
        ({}, {"prompt": "another question"}, 1),
        ({"error_class": "bad_prompt"}, {"prompt": "the title that was missing"}, 0),
        ({"error_class": "bad_prompt"}, {"prompt": "the next clip's", "clip_start_s": 120.0, "clip_end_s": 180.0}, 1),
        ({}, {"video_id": "video-2"}, 1),
        ({}, {"video_version": "v2", "clip_start_s": 0.0, "clip_end_s": 20.0}, 0),  # the video is shorter now
        ({"provisional": True, **WHOLE}, {}, 0),  # it can be cut now
        (WHOLE, {}, 1),  # a part of it is asked for as well
        ({"video_version": "", **WHOLE}, {}, 0),  # it is there now
        ({"video_version": ""}, {"clip_start_s": 0.0, "clip_end_s": 60.0}, 1),  # another part of it is
        ({"video_version": ""}, {"run_id": "the first"}, 1),  # one run asks for both
    ],
)
def test_a_failure_ends_with_what_became_of_the_same_question_later(
    tmp_path: Path, failed: dict[str, object], later: dict[str, object], left: int
) -> None:
    Ledger(str(tmp_path), FINGERPRINT, "the first").commit([], [{**error(1), **CLIP, **failed}])
    told = {**CLIP, "video_id": "video-1", **later}
    Ledger(str(tmp_path), FINGERPRINT, str(told.pop("run_id", "the next"))).commit([annotation(2, **told)], [])
    assert report(str(tmp_path))["errors"]["unresolved"] == left


def test_the_clips_of_a_long_video_are_not_each_held_against_all_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of hours of video thousands may have failed, and thousands be answered since: they end none of each other."""
    held, replaces = list[object](), unresolved._replaces
    monkeypatch.setattr(unresolved, "_replaces", lambda *pair: (held.append(pair), replaces(*pair))[1])
    told = {**CLIP, "video_id": "video-0"}
    failed = [{**error(n), **told} for n in range(20)] + [{**error(20), **told, "provisional": True}]
    Ledger(str(tmp_path), FINGERPRINT, "the first").commit([], failed)
    Ledger(str(tmp_path), FINGERPRINT, "the next").commit([annotation(n, **told) for n in range(30, 50)], [])
    assert report(str(tmp_path))["errors"]["unresolved"] == 20 and len(held) == 20, "with the provisional one alone"


def test_a_failure_ends_with_a_whole_run_that_meets_none(tmp_path: Path) -> None:
    """As long as it does not come back: a run that knows it as failed writes it down no second time."""

    def unresolved_after(night: int, failed: list[int], **ended: object) -> int:
        run_id = f"202601{night:02}"
        Ledger(str(tmp_path), FINGERPRINT, run_id).commit([], [error(n) for n in failed])
        told = {"fingerprint": FINGERPRINT, "run_id": run_id, "expected": 8, "complete": True, **ended}
        RunFolder(str(tmp_path), run_id).write_json("summary", told)
        number: int = report(str(tmp_path), FINGERPRINT)["errors"]["unresolved"]
        return number

    assert unresolved_after(1, [1, 2], errors=2) == 2
    assert unresolved_after(2, [], errors=0, complete=False) == 2, "not the whole input"
    assert unresolved_after(3, [], errors=0, fingerprint="f" * 16) == 2, "another job"
    assert unresolved_after(4, [], errors=0) == 0
    assert unresolved_after(5, [3], errors=1) == 1
    assert unresolved_after(6, [], errors=2) == 3, "one of the first is back"
    assert unresolved_after(7, [], errors=0) == 0


def test_of_two_questions_under_one_id_what_is_asked_never_answers_the_other(tmp_path: Path) -> None:
    """Also of a new version of the video: each run goes on to count the other one as failed."""
    both = [{"id": "z", "question": "Why?"}, {"id": "z", "question": "How?"}]
    (why,), (how,) = asked_of_rows([PromptSpec(id="q", kind="qa", column="q")])({"q": both})
    told = {"video_id": "video-1", "prompt_id": "z"}
    failed = {**told, "prompt": how.prompt.text, "message": how.message, "video_version": "", "provisional": True}
    bad = {**error(1, error_class="bad_prompt"), **failed, **WHOLE}
    for n, version in enumerate(("v1", "v2")):
        answered = annotation(2 + n, **{**told, "prompt": why.text, **CLIP, "video_version": version})
        Ledger(str(tmp_path), FINGERPRINT, f"run {n}").commit([answered], [] if n else [bad])
        assert report(str(tmp_path))["errors"]["by_class"]["bad_prompt"]["count"] == 1, version


def test_what_came_from_outside_is_shown_safely(output: str) -> None:
    numbers = report(output)
    assert "\x1b" not in to_text(numbers) and "\\x1b[2Jgone\\n=cmd()" in to_text(numbers)
    assert printable("a" * 300) == "a" * 200 + "..."
    assert printable("Tä‮\t") == "Tä\\u202e\\t"


def test_how_to_read_works_as_printed(output: str) -> None:
    line = how_to_read(output, FINGERPRINT).splitlines()[2]
    assert line.startswith("pandas:  ")
    frame = eval(line.partition("  ")[2], {"pandas": pd})
    assert sorted(frame["annotation_id"]) == sorted(row_id(n) for n in range(5))


@pytest.mark.parametrize("names", [["a'b"], ["it's", "'"]])
def test_an_apostrophe_in_a_path_ends_no_text_in_sql(names: list[str]) -> None:
    current = {"fingerprint": FINGERPRINT, "files": {"annotations": names}}
    line = how_to_read("/o'clock", FINGERPRINT, current).splitlines()[0]
    (listed,) = re.findall(r"read_parquet\(\[?(.*?)\]?\);$", line)
    said = sqlite3.connect(":memory:").execute(f"SELECT {listed}").fetchone()
    assert list(said) == [f"/o'clock/{name}" for name in names]


def test_a_damaged_summary_is_named_with_what_to_do(output: str) -> None:
    path = Path(output) / "runs" / "20260101-run" / "summary.json"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(OutputError, match=r"runs/20260101-run/summary\.json: .*; delete it; no row depends on it"):
        report(output)
    path.unlink()
    assert report(output)["annotations"] == 5


def test_a_parquet_file_of_other_hands_is_named(output: str) -> None:
    path = Path(output) / "annotations" / FINGERPRINT / "part-000007.parquet"
    pq.write_table(pa.table({"mine": [1]}), path)
    with pytest.raises(OutputError, match=r"part-000007\.parquet was not written by this project"):
        report(output)


def test_a_place_without_annotations_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no annotations are here"):
        report(str(tmp_path))


def test_the_newest_run_is_shown_whether_it_has_ended_or_not(output: str, tmp_path: Path) -> None:
    assert report(output)["unfinished_run"] is None
    later = "20260102-run"
    RunFolder(output, "20260102-compaction").write_spec("output: x\n")
    clips(tmp_path / "videos", 1)
    RunFolder(output, later).write_json("plan", {**plan(spec(tmp_path)).to_json(), "fingerprint": OTHER})
    for rows in (0, 1):
        if rows:
            Ledger(output, OTHER, later).commit([annotation(1, OTHER)], [])
        numbers = report(output)
        assert (numbers["fingerprint"], numbers["annotations"], numbers["last_run"]) == (OTHER, rows, None)
        assert numbers["unfinished_run"] == later and f"not ended    run {later};" in to_text(numbers)
        assert write_page(output, tmp_path / "page.html")["annotations"] == rows
        assert f"Run {later} has not ended" in (tmp_path / "page.html").read_text()
    assert report(output, FINGERPRINT)["unfinished_run"] is None and report(output, FINGERPRINT)["annotations"] == 5
    RunFolder(output, later).write_json("summary", {"fingerprint": OTHER, "expected": 1})
    assert report(output)["unfinished_run"] is None and report(output)["reconciliation"]["expected"] == 1
    RunFolder(output, "20260103-run").write_json("plan", {"fingerprint": OTHER})
    assert report(output)["unfinished_run"] == "20260103-run" and report(output)["last_run"]["expected"] == 1


def test_what_every_night_spent_is_held_against_its_own_budget(tmp_path: Path) -> None:
    """Two nights that kept theirs, each with a video of its own, were shown as one that spent 199 %."""
    out, page = str(tmp_path / "out"), tmp_path / "page.html"
    clips(tmp_path / "videos", 1)
    night = {**plan(spec(tmp_path)).to_json(), "fingerprint": FINGERPRINT}
    limit = night["budget"]["limit"]
    for n, spent in enumerate((limit, 3 * limit // 4, 0)):  # on the last night nothing is new
        run_id = f"2026010{n + 1}-run"
        RunFolder(out, run_id).write_json("plan", night)
        summary = {"fingerprint": FINGERPRINT, "expected": 1, "flops_budget": limit, "flops_spent_of_budget": spent}
        held = {"annotations_per_s": spent / limit, "starved_by": "reading", "gpu_hours": n + 1, "cost": None}
        RunFolder(out, run_id).write_json("summary", summary | held)
        if spent:
            Ledger(out, FINGERPRINT, run_id).commit([annotation(n, flops_prefill=spent, flops_executed=spent)], [])
        share = ("100 %", "75 %", "0 %")[n]
        assert f"budget       the newest run spent {share} of its own" in to_text(report(out))
    write_page(out, page)
    shown = re.sub("<[^>]+>", " ", page.read_text())
    assert re.search(r"Budget spent\s+75 %\s+of .*, by the newest run that spent any", shown)
    assert re.search(r"Rate\s+0\.75\s+answers/s\s+of the newest run with answers, which waited for reading", shown)
    assert re.search(r"Held\s+3\s+GPU-hours\s+by the newest run", shown)
    assert re.search(r"The budget\s+of run 20260102-run", shown) and "175 %" not in shown


def test_what_runs_of_other_fingerprints_left_is_no_matter_to_a_page(output: str, tmp_path: Path) -> None:
    """Four documents of every run were read, to keep those of thirty, and a damaged one ended the page."""
    RunFolder(output, "20260102-run").write_json("plan", {"fingerprint": OTHER})
    for name in ("progress", "environment"):
        (Path(output) / f"runs/20260102-run/{name}.json").write_text("{")
    assert write_page(output, tmp_path / "page.html", FINGERPRINT)["annotations"] == 5
    assert "20260102-run" not in (tmp_path / "page.html").read_text()


def test_the_page_says_of_every_error_class_what_it_means() -> None:
    assert list(MEANING) == list(RETRYABLE)


@pytest.mark.parametrize(("cost", "priced"), [(98765.432, ", 98,765.43 at limits.price_per_gpu_hour"), (None, "")])
def test_what_the_newest_run_held_is_told_with_its_price_where_one_is_set(
    output: str, cost: float | None, priced: str
) -> None:
    told = {"fingerprint": FINGERPRINT, "expected": 8, "gpu_hours": 1234.5, "cost": cost}
    RunFolder(output, "20260102-run").write_json("summary", told)
    assert f"\nheld         1,234 GPU-hours by the newest run{priced}\n" in to_text(report(output))
    write_page(output, Path(output) / "page.html")
    shown = re.sub("<[^>]+>", " ", (Path(output) / "page.html").read_text())
    assert re.search(rf"Held\s+1,234\s+GPU-hours\s+by the newest run{priced}\s", shown)


def test_short_answers_make_no_unpruned_job_a_pruned_one(tmp_path: Path) -> None:
    """What is planned and unpruned counts answers of the expected length, and those that came may be shorter."""
    out = str(tmp_path / "unpruned")
    row = annotation(1, flops_executed=6 * 10**12, flops_planned=10**13, flops_vanilla=10**13)
    Ledger(out, FINGERPRINT, "run-1").commit([row], [])
    wanted = "cost         6 TFLOPs executed; at the expected length of answers 10 TFLOPs planned, 100 % of 10 TFLOPs"
    assert wanted in to_text(report(out))
    write_page(out, tmp_path / "page.html")
    shown = (tmp_path / "page.html").read_text()
    assert "<strong>100 %</strong> of unpruned compute" in shown and '"cost":"100 %"' in shown and "60 %" not in shown


def test_an_unfinished_run_among_several_fingerprints_asks_for_one(tmp_path: Path) -> None:
    for fingerprint in (FINGERPRINT, OTHER):
        Ledger(str(tmp_path), fingerprint, "run-1").commit([annotation(1, fingerprint)], [])
    with pytest.raises(OutputError, match="name one with --fingerprint"):
        report(str(tmp_path))
    with pytest.raises(OutputError, match=f"no rows of fingerprint 00; there are {FINGERPRINT}, fedc"):
        report(str(tmp_path), "00")
    assert report(str(tmp_path), FINGERPRINT)["annotations"] == 1
    assert report(str(tmp_path), FINGERPRINT)["reconciliation"] == {"expected": None, "accounted": 1, "lost": 0}
