"""The canary and the preview: the same clips answered otherwise, how far that agrees, and what is done about it."""

from __future__ import annotations

import io
import json
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from commands import mlb_batch
from hypothesis import given
from hypothesis import strategies as st
from ledger_rows import FINGERPRINT, annotation, row_id
from rich.console import Console
from small_jobs import PROMPTS, clips, job_file, spec, table

from mlb_batch import JobSpec, cli, plan, run
from mlb_batch.errors import BudgetError, JobError, OutputError, SpecError
from mlb_batch.ledger import Ledger, read_current, verify
from mlb_batch.planning import build, freeze
from mlb_batch.planning.survey import survey
from mlb_batch.progress import describe, latest
from mlb_batch.quality import canary, preview, side_by_side
from mlb_batch.quality.agreement import Pair, agreement, pairs
from mlb_batch.quality.canary import Annotate
from mlb_batch.quality.rivals import rival

CHOICE = {"id": "mc", "kind": "choice", "text": "Which shape?", "choices": ["circle", "square", "ring"]}
PRUNED = {
    "prompts": [*PROMPTS, CHOICE], "prune": {"method": "fastv"}, "budget": {"ratio": 0.6},
    "generate": {"max_new_tokens": 6},
}  # fmt: skip


def row(kind: str, text: str, choice: str = "", video: str = "v", prompt: str = "p") -> dict[str, Any]:
    return {"kind": kind, "text": text, "choice": choice, "video_id": video, "prompt_id": prompt, "prompt": "?",
            "clip_start_s": 0.0, "clip_end_s": 1.0}  # fmt: skip


@pytest.mark.parametrize("kind, one, other, wanted", [
    ("qa", ("Red.", ""), ("red", ""), 1.0),
    ("qa", ("a red ring", ""), ("a red cross", ""), 0.0),
    ("qa", ("", ""), ("", ""), 1.0),
    ("choice", ("A. red", "A"), ("A", "A"), 1.0),
    ("choice", ("A", "A"), ("B", "B"), 0.0),
    ("choice", ("none of them", ""), ("A", "A"), 0.0),
    ("choice", ("none of them", ""), ("None of them.", ""), 1.0),  # neither says a letter
    ("caption", ("A red ring moves left.", ""), ("The red ring moves left", ""), 1.0),
    ("caption", ("red ring moves", ""), ("blue ring stays", ""), 1 / 3),
    ("caption", ("", ""), ("red", ""), 0.0),
    ("caption", ("一只狗在跑", ""), ("一只狗在走", ""), 0.8),
    ("caption", ("3 匹の犬 DVD", ""), ("3 匹の猫 dvd", ""), 0.8),
    ("caption", ("Über-Maß", ""), ("über maß", ""), 1.0),
    ("qa", ("一只狗。", ""), ("一只狗", ""), 1.0),
    ("qa", ("สุนัข", ""), ("แมว", ""), 0.0),
    ("qa", ("लड़का", ""), ("लड़की", ""), 0.0),  # a boy and a girl: the vowel sign at the end is a mark
    ("qa", ("Caf\u00e9", ""), ("cafe\u0301.", ""), 1.0),
    ("qa", ("👍", ""), ("👎", ""), 0.0),
    ("qa", ("\u2764\ufe0f", ""), ("\u2600\ufe0f", ""), 0.0),  # both end in a mark that is of no word
    ("caption", ("It is in the.", ""), ("That was on it.", ""), 1 / 4),
    ("caption", ("Red ring. " * 12, ""), ("A red ring.", ""), 2 / 13),  # without end, it says no more
])  # fmt: skip
def test_when_two_answers_agree(kind: str, one: tuple[str, str], other: tuple[str, str], wanted: float) -> None:
    pair = Pair(row(kind, *one), row(kind, *other))
    assert pair.agreement == pytest.approx(wanted) == Pair(pair.other, pair.one).agreement


@given(st.lists(st.sampled_from([("qa", 1.0), ("qa", 0.0), ("caption", 1.0), ("caption", 0.0)]), min_size=1))
def test_agreement_is_the_mean_over_rows_and_by_kind(drawn: list[tuple[str, float]]) -> None:
    found = agreement(Pair(row(kind, "red"), row(kind, "red" if same else "blue")) for kind, same in drawn)
    assert found["rows"] == len(drawn)
    assert found["agreement"] == pytest.approx(sum(same for _, same in drawn) / len(drawn))
    for kind, mean in found["by_kind"].items():
        mine = [same for k, same in drawn if k == kind]
        assert mean == pytest.approx(sum(mine) / len(mine))
    assert len(found["furthest_apart"]) == min(10, sum(not same for _, same in drawn))


def test_only_what_both_runs_answered_is_compared() -> None:
    one = {("v", 0.0, 1.0, p, ""): row("qa", p) for p in "abc"}
    other = {("v", 0.0, 1.0, p, ""): row("qa", p) for p in "bcd"}
    assert [pair.one["text"] for pair in pairs(one, other)] == ["b", "c"]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_canary_runs_its_share_three_ways_and_says_how_far_they_agree(tmp_path: Path) -> None:
    clips(tmp_path / "videos", 10)
    job = spec(tmp_path, **PRUNED, canary={"share": 0.5})
    summary = run(job)
    assert (summary["expected"], summary["exit_code"]) == (30, 0)
    main = table(tmp_path / "out")
    rivals = {name: table(tmp_path / "out" / "canary" / name) for name in ("none", "random")}
    sampled = {r["video_id"] for r in rivals["none"]}
    assert 0 < len(sampled) < 10 and {r["video_id"] for r in rivals["random"]} == sampled
    assert all(r["num_kept_tokens"] == r["num_visual_tokens"] for r in rivals["none"])
    of_main = {(r["video_id"], r["prompt_id"]): r for r in main}
    for r in rivals["random"]:
        bill = of_main[r["video_id"], r["prompt_id"]]
        assert r["method"] == "random" and r["flops_vanilla"] == bill["flops_vanilla"]
    spent = [sum(r["flops_prefill"] + r["flops_scoring"] for r in rows) for rows in
             (rivals["random"], [of_main[r["video_id"], r["prompt_id"]] for r in rivals["random"]])]  # fmt: skip
    assert spent[0] <= sum(0.6 * (r["flops_prefill"] + r["flops_scoring"]) for r in rivals["none"])
    assert 0.7 < spent[0] / spent[1] < 1.3
    found = summary["canary"]
    assert found["videos"] == len(sampled) and set(found["against"]) == {"none", "random"}
    mine = {name: {(r["video_id"], r["prompt_id"]): r for r in rows} for name, rows in rivals.items()}
    for name, rows in mine.items():
        means = [Pair(of_main[key], r).agreement for key, r in rows.items()]
        assert found["against"][name]["rows"] == 3 * len(sampled)
        assert found["against"][name]["agreement"] == pytest.approx(sum(means) / len(means), abs=1e-4)
    assert found["random_against_none"]["rows"] == 3 * len(sampled)
    assert found["flops_executed"] == sum(r["flops_executed"] for rows in rivals.values() for r in rows)
    assert (read_current(str(tmp_path / "out")) or {})["fingerprint"] == summary["fingerprint"]
    assert verify(str(tmp_path / "out")) == []
    again = run(job)
    assert again["rows_written"] == 0 and again["canary"]["against"] == found["against"]
    assert (again["canary"]["flops_executed"], again["canary"]["videos"]) == (0, found["videos"])


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_canary_that_falls_too_far_stops_the_job_and_keeps_what_was_done(tmp_path: Path) -> None:
    clips(tmp_path / "videos", 6)
    # The least that can be kept, and long answers of a model that sees little: they can't all be the same.
    job = {**PRUNED, "prune": {"method": "random"}, "budget": {"ratio": 0.5}, "generate": {"max_new_tokens": 24}}
    with pytest.raises(JobError, match=r"the canary stopped the job: \d+ answers agree to [\d.]+% .* 100\.0%"):
        run(spec(tmp_path, **job, canary={"share": 0.99, "against": ["none"], "least_agreement": 1.0}))
    told = latest(str(tmp_path / "out"))
    assert told["state"] == "failed" and told["annotated"] > 0 and "the canary stopped the job" in describe(told)
    before = len(table(tmp_path / "out"))
    assert before > 0 and read_current(str(tmp_path / "out")) is None
    whole = run(spec(tmp_path, **job))  # without it the job goes on from there
    assert whole["skipped_done"] == before and whole["exit_code"] == 0


@pytest.mark.usefixtures("ray_cluster")
def test_a_job_with_a_canary_holds_its_output_from_its_first_pass_to_its_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while a rival is at work in a folder of its own: a second run must not come in between."""
    clips(tmp_path / "videos", 2)
    held: list[str] = []

    def watched(job: JobSpec, annotate: Annotate, annotate_rival: Annotate, replan: bool) -> Any:
        def looked_at(annotate: Annotate, *jobs: JobSpec, share: float) -> dict[str, Any]:
            done = annotate(*jobs, share=share)
            held.append(json.loads((tmp_path / "out" / "lease.json").read_text())["token"])
            assert "ended; at work here now: run " in describe(latest(str(tmp_path / "out")))
            return done

        return canary(job, partial(looked_at, annotate), partial(looked_at, annotate_rival), replan)

    monkeypatch.setattr(import_module("mlb_batch.run"), "canary", watched)
    assert run(spec(tmp_path, canary={"share": 0.9, "against": ["random"]}))["exit_code"] == 0
    assert len(held) == 2 and held[0] == held[1]
    assert not (tmp_path / "out" / "lease.json").exists()
    assert "at work" not in describe(latest(str(tmp_path / "out")))


@pytest.mark.parametrize(("method", "ratio", "asked"), [("none", 1.0, ["random"]), ("random", 0.5, ["none"])])
def test_a_canary_holds_no_method_against_itself(tmp_path: Path, method: str, ratio: float, asked: list[str]) -> None:
    clips(tmp_path / "videos", 1)
    job = spec(tmp_path, prune={"method": method}, budget={"ratio": ratio},
               canary={"share": 0.5, "against": ["none", "random"]})  # fmt: skip
    ran: list[str] = []

    def annotate(one: JobSpec, share: float) -> dict[str, Any]:
        ran.append(one.prune.method)
        return {"stopped": "", "output": one.output.uri, "fingerprint": "f", "flops_executed": 1}

    found, stopped = canary(job, partial(annotate, job), annotate)
    assert (ran, list(found["against"]), found["flops_executed"], stopped) == ([method, *asked], asked, 1, None)


def test_a_canary_compares_answers_about_one_version_of_a_video(tmp_path: Path) -> None:
    """All videos were replaced since last night, and the unpruned answers to half of them are not there yet."""

    def said(about: str, version: str, numbers: range) -> list[dict[str, Any]]:
        same = {"video_version": version, "choice": "", "text": about}
        return [annotation(n, annotation_id=row_id(n, version), **same) for n in numbers]

    job = spec(tmp_path, **PRUNED, canary={"share": 0.5, "against": ["none"], "least_agreement": 0.9})

    def annotate(one: JobSpec, share: float) -> dict[str, Any]:
        there = range(2) if one.prune.method == "none" else range(4)
        ledger = Ledger(one.output.uri, FINGERPRINT, "last night")
        ledger.commit([*said("A dog runs.", "old", range(4)), *said("A cat sleeps.", "new", there)], [])
        return {"stopped": "", "output": one.output.uri, "fingerprint": FINGERPRINT, "flops_executed": 1, "run_id": "r"}

    clips(tmp_path / "videos", 1)
    found, _ = canary(job, partial(annotate, job), annotate)
    assert (found["against"]["none"]["rows"], found["against"]["none"]["agreement"]) == (4 + 2, 1.0)
    assert found["videos"] == 4


def test_a_rival_differs_in_its_method_and_budget_alone(tmp_path: Path) -> None:
    """With the whole caches or the public pair it would be another job, whatever its method."""
    own = {"method": "adatp", "select": "per_video", "compact_cache": True, "feature_model": "/models/pair"}
    job = spec(tmp_path, prune={**own, "options": {"schedule": "steep"}, "selections": 0.5}, budget={"ratio": 0.6})
    for method in ("fastv", "none"):
        asked = rival(job, method, str(tmp_path / method), partial(plan, job)).prune
        assert asked.model_dump(include=own.keys()) == {**own, "method": method}
        assert (asked.options, asked.selections) == ({}, 0.0)


def test_a_canary_that_compared_nothing_lets_nothing_through(tmp_path: Path) -> None:
    """No video fell into its share, or all unpruned answers ended as errors."""
    clips(tmp_path / "videos", 1)
    job = spec(tmp_path, **PRUNED, canary={"share": 0.02, "least_agreement": 0.9})

    def annotate(one: JobSpec, share: float) -> dict[str, Any]:
        return {"stopped": "", "output": one.output.uri, "fingerprint": "f", "flops_executed": 1, "run_id": "r"}

    with pytest.raises(JobError, match=r"in its 2\.0% of the videos no answer .*raise canary\.share"):
        canary(job, partial(annotate, job), annotate)
    assert latest(str(tmp_path / "out"))["state"] == "failed"


def never(*_: JobSpec, share: float) -> dict[str, Any]:
    pytest.fail(f"nothing is to be run, and {share} of the videos was")


@pytest.mark.parametrize("budget", [{"ratio": 0.3}, {"pflops": 3.2e-7}])
def test_a_rival_that_cannot_meet_the_budget_is_refused_before_anything_runs(
    budget: dict[str, float], tmp_path: Path
) -> None:
    """It was found out when the job's share of videos, and the unpruned one, had been run: at every attempt."""
    clips(tmp_path / "videos", 2)
    changes = {"prune": {"method": "density"}, "frames": {"count": 8}, "budget": budget}
    path = job_file(tmp_path, **changes, canary={"share": 0.5, "against": ["none", "adatp"]})
    told = r"canary\.against: adatp can't meet this budget: budget\.ratio: .* is below the floor of this job"
    with pytest.raises(BudgetError, match=told):
        canary(JobSpec.load(path), never, never)
    assert mlb_batch("plan", str(path))[0] == 2
    assert plan(spec(tmp_path, **changes, canary={"share": 0.0, "against": ["adatp"]})).clips == 2


def test_a_job_below_its_own_floor_is_told_of_that_and_of_no_rival(tmp_path: Path) -> None:
    clips(tmp_path / "videos", 1)
    job = spec(tmp_path, **PRUNED | {"budget": {"ratio": 0.01}}, canary={"share": 0.5})
    with pytest.raises(BudgetError, match=r"^budget\.ratio: 0\.01 is below the floor"):
        canary(job, never, never)


OF_OPERATIONS = {"prune": {"method": "density"}, "frames": {"count": 8}, "budget": {"pflops": 5e-6}}


def nothing_done(one: JobSpec, share: float = 1.0) -> dict[str, Any]:
    """A pass that looks at nothing: what is left is what the canary, or the preview, does by itself."""
    return {"stopped": "", "exit_code": 0, "output": one.output.uri, "fingerprint": "f", "flops_executed": 1,
            "errors": 0, "errors_by_class": {}}  # fmt: skip


def test_every_header_is_looked_at_once_for_the_job_and_once_for_each_rival_that_has_a_floor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A survey is thousands of requests where the videos lie in a bucket."""
    clips(tmp_path / "videos", 2)
    surveys: list[object] = []
    monkeypatch.setattr(build, "survey", lambda *args: surveys.append(args) or survey(*args))  # type: ignore[func-returns-value]
    path = job_file(tmp_path, **OF_OPERATIONS, canary={"share": 0.5, "against": ["none", "random"]})
    job = JobSpec.load(path)
    cli.plan(path)
    assert len(surveys) == 2
    canary(job, partial(nothing_done, job), nothing_done)
    assert len(surveys) == 4
    preview(job, nothing_done)
    assert len(surveys) == 5


def test_a_damaged_schedule_is_solved_again_for_the_rivals_too(tmp_path: Path) -> None:
    """They were priced without --replan, and the answer was to say --replan."""
    clips(tmp_path / "videos", 1)
    path = job_file(tmp_path, **OF_OPERATIONS, canary={"share": 0.5, "against": ["none", "random"]})
    job = JobSpec.load(path)
    freeze(job, plan(job))
    (frozen,) = (tmp_path / "out" / "plans").iterdir()
    frozen.write_bytes(b"{}")
    with pytest.raises(OutputError, match="solve again with --replan"):
        cli.plan(path)
    cli.plan(path, replan=True)
    found, _ = canary(job, partial(nothing_done, job), nothing_done, replan=True)
    assert list(found["against"]) == ["none", "random"]


def test_a_limit_without_the_unpruned_answers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="add none to against"):
        spec(tmp_path, canary={"share": 0.1, "against": ["random"], "least_agreement": 0.9})


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_preview_shows_three_answers_to_each_prompt_and_leaves_the_output_alone(tmp_path: Path) -> None:
    clips(tmp_path / "videos", 3)
    path = job_file(tmp_path, **PRUNED)
    code, found, said = mlb_batch("preview", str(path), "--n", "2")
    assert code == 0 and not (tmp_path / "out").exists()
    assert len(found["rows"]) == 6 and found["errors"] == {"fastv": 0, "none": 0, "random": 0}
    assert all(set(one["answers"]) == {"fastv", "none", "random"} for one in found["rows"])
    assert found["flops_executed"]["fastv"] < found["flops_executed"]["none"]
    for title in ("unpruned", "fastv", "random", "6 answers"):
        assert title in said


def test_a_preview_follows_the_schedule_that_the_job_has_solved(tmp_path: Path) -> None:
    """Three more videos would halve what a budget of operations affords, if it were solved anew."""
    clips(tmp_path / "videos", 3)
    whole = plan(spec(tmp_path, **PRUNED | {"budget": {"ratio": 0.6}})).planned.llm
    job = spec(tmp_path, **PRUNED | {"budget": {"pflops": whole / 1e15}})
    freeze(job, plan(job))
    clips(tmp_path / "videos", 3, first=3)
    keeps: dict[str, int] = {}

    def annotate(one: JobSpec) -> dict[str, Any]:
        keeps[one.prune.method] = plan(one).keep
        return {"stopped": "", "exit_code": 0, "fingerprint": "f", "flops_executed": 1, "errors": 0,
                "errors_by_class": {}}  # fmt: skip

    preview(job, annotate)
    assert plan(job).reused and keeps[job.prune.method] == plan(job).keep
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_a_preview_shows_prompts_and_answers_as_they_are() -> None:
    """Brackets are markup to who draws the table: they were left out, or ended it."""
    texts = {"none": "a [red] ring :dog:", "fastv": "[/closed]", "random": "\x1b[31m"}
    row = {"video_id": "v[1]", "prompt_id": "p", "prompt": "Is it [open] or [/closed]?", "answers": texts}
    found = {"method": "fastv", "flops_executed": dict.fromkeys(texts, 1), "rows": [row],
             "errors": {"none": 0, "fastv": 2, "random": 0},
             "errors_by_class": {"none": {}, "fastv": {"not_found": 1, "timeout": 1}, "random": {}}}  # fmt: skip
    console = Console(file=io.StringIO(), width=160)
    console.print(side_by_side(found))
    row["video_id"] = f"s3://bucket/{'folder/' * 20}1.mp4"
    console.print(side_by_side(found))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for text in ("v[1]", "Is it [open] or [/closed]?", "a [red] ring :dog:", "\\x1b[31m", "1 answers"):
        assert text in shown
    assert "fastv: no answer to 2 (not_found 1, timeout 1)" in shown and "random: no" not in shown
    assert "…" not in shown, "videos are told apart by how their uris end"


def test_a_preview_without_answers_says_so_and_ends_as_a_job_would(tmp_path: Path) -> None:
    clips(tmp_path / "videos", 1)
    lost = {"stopped": "", "exit_code": 3, "fingerprint": "f", "flops_executed": 0, "errors": 2,
            "errors_by_class": {"not_found": 2}}  # fmt: skip
    found = preview(spec(tmp_path, **PRUNED), lambda job: lost)
    assert (found["exit_code"], found["rows"], found["errors_by_class"]["random"]) == (3, [], {"not_found": 2})


def test_a_preview_that_is_stopped_looks_no_further(tmp_path: Path) -> None:
    clips(tmp_path / "videos", 1)
    asked: list[JobSpec] = []
    stopped = {"stopped": "SIGTERM", "exit_code": 143, "fingerprint": "f"}
    assert preview(spec(tmp_path, **PRUNED), lambda job: asked.append(job) or stopped) == stopped  # type: ignore[func-returns-value]
    assert len(asked) == 1


def test_a_canary_is_told_of_a_name_that_is_no_method_before_anything_runs(tmp_path: Path) -> None:
    clips(tmp_path / "videos", 1)
    with pytest.raises(SpecError, match=r"^canary\.against: 'fastvv' is not a method.*did you mean 'fastv'"):
        plan(spec(tmp_path, **PRUNED, canary={"share": 0.5, "against": ["none", "fastvv"]}))


def test_a_preview_of_the_unpruned_job_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="choose a method"):
        preview(spec(tmp_path), lambda job: pytest.fail("nothing is to be run"))
