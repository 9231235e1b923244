"""Schedules are frozen under an output, and fingerprints name what changes a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from planned_jobs import CAPTION, LENGTHS, asked_shape, job, manifest, pricer

from mlb_batch.cost.schedule import WHOLE
from mlb_batch.errors import OutputError
from mlb_batch.ledger import RunFolder
from mlb_batch.planning import freeze, plan, settle

pytestmark = pytest.mark.usefixtures("own_calibrations")


def test_later_runs_with_more_videos_reuse_the_schedule(clips_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "growing"
    folder.mkdir()
    for name in ("003.mp4", "009.mp4"):
        (folder / name).write_bytes((clips_folder / name).read_bytes())
    spec = job(folder, tmp_path / "out", budget={"pflops": 2e-6})
    first = plan(spec)
    assert not first.reused and not (tmp_path / "out").exists()  # a plan alone leaves nothing behind
    freeze(spec, first)
    for name in ("050.mp4", "080.mp4"):
        (folder / name).write_bytes((clips_folder / name).read_bytes())
    later = plan(spec)
    assert later.reused and (later.keep, later.fingerprint) == (first.keep, first.fingerprint)
    assert later.videos == 4 and later.budget.planned > first.budget.planned
    assert later.budget.planned > later.budget.limit
    assert any("--replan" in line for line in later.warnings)
    again = plan(spec, replan=True)
    assert not again.reused and again.keep < first.keep and again.fingerprint != first.fingerprint
    assert again.budget.planned <= again.budget.limit
    freeze(spec, again)
    assert plan(spec).fingerprint == again.fingerprint
    rewritten = plan(job(folder, tmp_path / "out", budget={"pflops": 2.5e-6}))
    assert not rewritten.reused


@pytest.mark.parametrize("allocation", ["equal", "content"])
def test_a_deleted_schedule_is_that_of_the_newest_run(allocation: str, clips_folder: Path, tmp_path: Path) -> None:
    """Else a video more would have all of them annotated anew."""
    folder = tmp_path / "growing"
    folder.mkdir()
    spec = job(folder, tmp_path / "out", budget={"ratio": 0.6, "allocation": allocation})
    for night, name in enumerate(("050.mp4", "009.mp4", "003.mp4")):
        (folder / name).write_bytes((clips_folder / name).read_bytes())
        solved = plan(spec, replan=True)
        if allocation == "content":
            clip = asked_shape(spec, 16, [CAPTION["text"]])
            solved = settle(spec, solved, [[(clip, 0.2 * night)]])
        freeze(spec, solved)
        RunFolder(spec.output.uri, f"2026010{night}").begin(spec.as_written(), solved.to_json(), {})
    frozen = tmp_path / "out" / "plans" / f"{solved.key}.json"
    frozen.unlink()
    (tmp_path / "out" / "runs" / "20260100" / "plan.json").write_text("damaged")
    (folder / "080.mp4").write_bytes((clips_folder / "080.mp4").read_bytes())
    later = plan(spec)
    assert later.reused and (later.fingerprint, later.content) == (solved.fingerprint, solved.content)
    assert plan(spec, replan=True).fingerprint != solved.fingerprint, "the test should tell them apart"
    freeze(spec, later)
    assert frozen.exists() and plan(spec).fingerprint == solved.fingerprint


def test_a_damaged_schedule_is_named(clips_folder: Path, tmp_path: Path) -> None:
    spec = job(clips_folder, tmp_path / "out")
    priced = plan(spec)
    freeze(spec, priced)
    path = tmp_path / "out" / "plans" / f"{priced.key}.json"
    whole = path.read_text()
    for spoilt in (whole[:20], whole.replace(f'"keep": {priced.keep}', f'"keep": {priced.keep + 1}')):
        assert spoilt != whole
        path.write_text(spoilt)
        with pytest.raises(OutputError, match=priced.key):
            plan(spec)
    assert plan(spec, replan=True) == priced


def test_fingerprints_cover_what_changes_a_text_and_nothing_else(clips_folder: Path, tmp_path: Path) -> None:
    def fingerprint(**parts: Any) -> str:
        return plan(job(clips_folder, tmp_path / "out", **parts)).fingerprint

    base = fingerprint()
    same = [
        fingerprint(cluster={"read": {"concurrency": 3}}), fingerprint(limits={"price_per_gpu_hour": 2.0}),
        fingerprint(output=str(tmp_path / "elsewhere")), fingerprint(name="other"),
        fingerprint(generate={"max_new_tokens": 8, "expected_new_tokens": 4}),
        fingerprint(model={"id": "embedded:tiny", "device": "cpu"}),
        fingerprint(generate={"max_new_tokens": 8, "seed": 1}),  # at temperature 0 nothing is drawn
    ]  # fmt: skip
    assert set(same) == {base}
    assert fingerprint(prune={"method": "adatp", "options": {"boost": 2}}, budget={"ratio": 0.6}) == fingerprint(
        prune={"method": "adatp", "options": {"boost": 2.0}}, budget={"ratio": 0.6}
    )
    other = [
        fingerprint(prompts=[{**CAPTION, "text": "Describe."}]), fingerprint(budget={"ratio": 0.5}),
        fingerprint(prune={"method": "random"}), fingerprint(prune={"method": "random", "options": {"seed": 1}}),
        fingerprint(frames={"count": 8}), fingerprint(generate={"max_new_tokens": 9}),
        fingerprint(generate={"max_new_tokens": 8, "temperature": 0.5}), fingerprint(clips={"every_s": 2}),
        fingerprint(model="embedded:tiny-image"), fingerprint(prune={"method": "uniform", "select": "per_video"}),
        fingerprint(generate={"max_new_tokens": 8, "temperature": 0.5, "seed": 1}),
        fingerprint(model={"dtype": "bfloat16"}),
        fingerprint(prune={"method": "uniform", "compact_cache": True}),
        fingerprint(input={"videos": str(clips_folder), "changed": "never"}),
    ]  # fmt: skip
    assert len({base, *other}) == len(other) + 1


def test_the_order_of_prompts_is_no_other_job_where_each_keeps_tokens_of_its_own(
    clips_folder: Path, tmp_path: Path
) -> None:
    both = [CAPTION, {"id": "a", "kind": "qa", "text": "What colour?"}]

    def named(prompts: list[dict[str, str]], select: str) -> tuple[str, str]:
        parts = {"prompts": prompts, "prune": {"method": "adatp", "select": select}, "budget": {"ratio": 0.6}}
        priced = plan(job(clips_folder, tmp_path / "out", **parts))
        return priced.fingerprint, priced.key

    assert named(both, "per_prompt") == named(both[::-1], "per_prompt")
    assert named(both, "per_video") != named(both[::-1], "per_video")


def test_content_is_settled_once_redundancies_are_known(clips_folder: Path, tmp_path: Path) -> None:
    spec = job(clips_folder, tmp_path / "out", budget={"ratio": 0.5, "allocation": "content"})
    priced = plan(spec)
    assert priced.content is None and any("allocation content" in line for line in priced.warnings)
    sample = [
        (asked_shape(spec, min(16, frames), [CAPTION["text"]]), redundancy)
        for frames, redundancy in zip(LENGTHS, (0.9, 0.1, 0.5, 0.3, 0.8, 0.2), strict=True)
    ]
    settled = settle(spec, priced, [[one] for one in sample])
    assert settled.content is not None and settled.fingerprint != priced.fingerprint
    spent = sum(pricer(spec).clip(clip, settled.content.keep(r)) for clip, r in sample)
    assert 0.98 * priced.budget.limit <= spent <= priced.budget.limit
    freeze(spec, settled)
    assert plan(spec).content == settled.content and plan(spec).fingerprint == settled.fingerprint


def test_clips_that_could_not_be_measured_are_left_their_part(clips_folder: Path, tmp_path: Path) -> None:
    """They may come later, and repeat nothing; the schedule is theirs too."""
    spec = job(clips_folder, tmp_path / "out", budget={"ratio": 0.5, "allocation": "content"})
    priced = plan(spec)
    assert settle(spec, priced, []) == priced and not priced.settled
    shape = asked_shape(spec, 16, [CAPTION["text"]])
    rule, whole = (settle(spec, priced, [[(shape, 0.9)]] * count).content for count in (2, 6))
    assert rule is not None and whole is not None and rule.level < whole.level
    few, many = (pricer(spec).clip(shape, rule.keep(redundancy)) for redundancy in (0.9, 0.0))
    equal = pricer(spec).clip(shape, priced.keep)
    assert 0.95 * 6 * equal <= 2 * few + 4 * many <= 6 * equal * priced.budget.limit / priced.budget.planned


def test_videos_that_cannot_be_opened_take_nothing_from_those_that_were_measured(
    clips_folder: Path, tmp_path: Path
) -> None:
    """They were counted as clips that never repeat themselves, for which half of the others' part was set aside."""
    rows = [{"uri": str(clips_folder / f"{frames:03}.mp4")} for frames in LENGTHS]
    rows += [{"uri": str(clips_folder / f"gone{n}.mp4")} for n in LENGTHS]
    spec = job(clips_folder, tmp_path / "out", input=manifest(tmp_path / "m.parquet", rows),
               budget={"pflops": 4e-6, "allocation": "content"})  # fmt: skip
    priced, shape = plan(spec), asked_shape(spec, 16, [CAPTION["text"]])
    assert (priced.unreadable, priced.clips) == (6, 12) and priced.keep < WHOLE
    rule = settle(spec, priced, [[(shape, 0.5)]] * 6).content
    part = priced.budget.limit * pricer(spec).clip(shape, priced.keep) / priced.budget.planned
    assert rule is not None
    assert 0.95 * part <= pricer(spec).clip(shape, rule.keep(0.5)) <= part


def test_of_many_clips_those_that_were_measured_speak_for_the_others(tmp_path: Path) -> None:
    """A night on which half were not uploaded yet must not starve all later nights."""
    (tmp_path / "videos").mkdir()
    for n in range(120):
        (tmp_path / "videos" / f"{n}.mp4").touch()
    spec = job(tmp_path / "videos", tmp_path / "out", budget={"ratio": 0.5, "allocation": "content"})
    priced, shape = plan(spec), asked_shape(spec, 16, [CAPTION["text"]])
    settled = settle(spec, priced, [[(shape, 0.5 + n / 200)] for n in range(60)])
    assert settled.content is not None
    spent = sum(pricer(spec).clip(shape, settled.content.keep(0.5 + n / 200)) for n in range(60))
    assert 0.9 * priced.budget.limit / 2 <= spent <= priced.budget.limit / 2
