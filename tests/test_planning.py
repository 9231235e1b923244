"""Plans of real jobs: counted, priced and solved from headers alone, explained, and true when they run."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import huggingface_hub
import pytest
from cost_cases import added
from models import Spec, folder, pair_at, pair_folder
from planned_jobs import CAPTION, LENGTHS, asked_shape, calibrate, job, manifest, pricer
from safetensors.numpy import save_file
from video_files import CORPUS, MODEL_SIZE, write_video

from mlb_batch.cost import calibration, flops
from mlb_batch.cost.schedule import WHOLE, ClipShape, Schedule
from mlb_batch.engine import Engine
from mlb_batch.errors import BudgetError, ModelError, RowError, UserError
from mlb_batch.planning import describe, plan, settle, setup, survey
from mlb_batch.quality.rivals import rival
from mlb_batch.source import Video, clip_spans
from mlb_batch.spec import JobSpec
from mlb_batch.spec_parts import ClipsSpec, FramesSpec
from mlb_batch.video import FrameSize, Limits, Reader, Sampling
from mlb_batch.vlm.captioner import Ask, Captioner, Clip, Settings
from mlb_batch.vlm.prompts import Prompter

pytestmark = pytest.mark.usefixtures("own_calibrations")


# Numbers.


def test_a_plan_counts_and_prices_what_is_there(clips_folder: Path, tmp_path: Path) -> None:
    spec = job(clips_folder, tmp_path / "out", budget={"ratio": 0.5})
    priced = plan(spec)
    clips = [asked_shape(spec, min(16, frames), [CAPTION["text"]]) for frames in LENGTHS]
    assert (priced.videos, priced.clips, priced.prompts, priced.unreadable) == (6, 6, 6, 0)
    assert priced.hours == pytest.approx(sum(LENGTHS) / 10 / 3600)
    assert priced.visual_tokens == sum(clip.visual for clip in clips)
    assert priced.text_tokens == sum(clip.prefix + sum(clip.suffixes) for clip in clips)
    assert priced.bytes_read == sum(path.stat().st_size for path in clips_folder.iterdir())
    assert priced.estimate is None

    means = setup(spec)
    vanilla = [flops.vanilla(means.shape, clip, (8,)) for clip in clips]
    assert priced.vanilla == added(vanilla)
    assert priced.budget.vanilla == sum(bill.llm for bill in vanilla)
    assert priced.budget.limit == priced.budget.vanilla // 2
    planned = [
        flops.price(means.shape, clip, means.method.schedule(means.shape, clip, priced.keep), (8,)) for clip in clips
    ]
    assert priced.planned == priced.planned_worst == added(planned)
    more = [
        flops.price(means.shape, clip, means.method.schedule(means.shape, clip, priced.keep + 1)).llm for clip in clips
    ]
    assert priced.budget.planned == priced.planned.llm <= priced.budget.limit < sum(more)


@pytest.mark.parametrize(("method", "select"), [("adatp", "per_prompt"), ("fastv", "per_video"), ("mlb", "per_prompt")])
def test_the_engine_spends_what_was_planned(method: str, select: str, clips_folder: Path, tmp_path: Path) -> None:
    """Headers alone against the engine's own count of what it ran, over a job with several prompts."""
    prompts = [CAPTION, {"id": "d", "kind": "qa", "text": "What moves, and where does it go in the end?"}]
    spec = job(clips_folder, tmp_path / "out", prompts=prompts, prune={"method": method, "select": select},
               budget={"ratio": 0.8})  # fmt: skip
    priced, means = plan(spec), setup(spec)
    captioner = Captioner(
        means.checkpoint,
        Settings(
            means.method, priced.keep, 8, feature_model=means.pair, expected_new_tokens=priced.expected_new_tokens
        ),
    )
    asks = tuple(Ask(p["id"], p["kind"], p["text"]) for p in prompts)
    size = means.checkpoint.vision_size
    with Reader(Sampling(priced.frames), FrameSize((size, size)), Limits()) as reader:
        clips = [Clip(reader.read(str(path)).pixels_FHWC, asks) for path in sorted(clips_folder.iterdir())]
    answers = [answer for answers in captioner.annotate(clips) for answer in answers]
    rows = [answer.bill for answer in answers]
    assert sum(answer.num_visual_tokens for answer in answers) == len(prompts) * priced.visual_tokens
    assert sum(answer.num_prompt_tokens for answer in answers) == priced.text_tokens
    assert len(rows) == priced.prompts
    for part in ("vision", "prefill", "scoring"):
        executed = sum(getattr(row.executed, part) for row in rows)
        assert executed == getattr(priced.planned, part) == sum(getattr(row.planned, part) for row in rows)
    assert sum(row.planned.total for row in rows) == priced.planned.total
    assert sum(row.vanilla.total for row in rows) == priced.vanilla.total
    assert sum(row.paper_planned for row in rows) == priced.paper_planned
    assert sum(row.executed.generate for row in rows) <= priced.planned_worst.generate
    assert sum(row.executed.llm for row in rows) <= priced.budget.limit


@pytest.mark.parametrize(("method", "ratio"), [("frames", 0.75), ("mlb", 0.68)])
def test_a_keep_by_content_pays_for_every_frame_that_it_looked_at(
    method: str, ratio: float, clips_folder: Path, tmp_path: Path
) -> None:
    """Also for those that the method then leaves out: what was planned is what ran, and no more than the limit."""
    budget = {"ratio": ratio, "scope": "total", "allocation": "content"}
    spec = job(clips_folder, tmp_path / "out", prune={"method": method}, budget=budget)
    priced = plan(spec)
    engine = Engine.of(spec, priced)
    asks = (Ask("c", "caption", CAPTION["text"]),)
    with Reader(engine.sampling, engine.size, Limits()) as reader:
        clips = [Clip(reader.read(str(path)).pixels_FHWC, asks) for path in sorted(clips_folder.iterdir())]
    captioner, means = engine.load(1), setup(spec)
    sample = [found for clip in clips if (found := captioner.measure(clip))]
    settled = settle(spec, priced, [[one] for one in sample])
    rows = [answer for (answer,) in Engine.of(spec, settled).load(1).annotate(clips)]
    for row in rows:
        for part in ("vision", "prefill", "scoring"):
            assert getattr(row.bill.executed, part) == getattr(row.bill.planned, part)
    left_out = [
        clip.frames - means.method.schedule(means.shape, clip, row.keep).frames
        for (clip, _), row in zip(sample, rows, strict=True)
    ]
    assert max(left_out) > 0
    assert sum(row.bill.executed.total for row in rows) <= priced.budget.limit


def test_prompts_that_share_a_clip_share_its_vanilla(clips_folder: Path, tmp_path: Path) -> None:
    texts = ["Describe the video.", "What is the first thing?", "Why?"]
    prompts = [{"id": str(i), "kind": "caption", "text": text} for i, text in enumerate(texts)]
    spec = job(clips_folder, tmp_path / "out", prompts=prompts)
    priced = plan(spec)
    shared = [asked_shape(spec, min(16, frames), texts) for frames in LENGTHS]
    assert priced.budget.vanilla == sum(flops.vanilla(setup(spec).shape, clip).llm for clip in shared)
    assert priced.prompts == 18 and priced.clips == 6


@pytest.mark.parametrize(
    "frames",
    [
        {"count": 16}, {"count": 40, "strategy": "fps", "fps": 4.0}, {"count": 5, "strategy": "fps", "fps": 30.0},
        {"count": 100},
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "span",
    [
        (None, None), (1.0, None), (0.4, 2.05), (None, 1.5), (0.7, 0.75),
        (3 * 0.1, 1.0), (None, 3 * 0.1),  # a frame's time, but for what floats make of it
    ],
)  # fmt: skip
def test_frames_by_header_are_the_frames_that_are_read(
    frames: dict[str, Any], span: tuple[float | None, float | None], clips_folder: Path
) -> None:
    wanted = FramesSpec(**frames)
    layout = survey.Layout(wanted, None, 4, 3, 1)
    with Reader(Sampling(wanted.count, wanted.strategy, wanted.fps), MODEL_SIZE, Limits()) as reader:
        paths = sorted(clips_folder.iterdir())
        for path, look in zip(paths, survey.looks_at([str(path) for path in paths]), strict=True):
            video = Video(str(path), str(path), *span, (), {})
            try:
                read = len(reader.read(str(path), *span).times_s)
            except RowError:
                continue  # nothing of the video lies in the span
            assert list(survey.expected_frames(video, look, layout)) == [read]


def test_clips_by_header_are_the_clips_that_are_read(clips_folder: Path) -> None:
    layout = survey.Layout(FramesSpec(count=12), ClipsSpec(every_s=1.5, overlap_s=0.5), 4, 3, 1)
    path = clips_folder / "080.mp4"
    video = Video(str(path), str(path), None, None, (), {})
    planned = list(survey.expected_frames(video, survey.looks_at([str(path)])[0], layout))
    with Reader(Sampling(12), MODEL_SIZE, Limits()) as reader:
        assert planned == [len(reader.read(str(path), *at).times_s) for at in clip_spans(8.0, layout.clips)]
    assert len(planned) == 8


def test_a_video_of_too_many_clips_is_priced_as_the_error_that_it_will_be(clips_folder: Path, tmp_path: Path) -> None:
    only = {"videos": str(clips_folder / "080.mp4")}
    priced = plan(job(clips_folder, tmp_path / "out", input=only, clips={"every_s": 0.5, "overlap_s": 0.49999}))
    assert (priced.clips, priced.planned.total, priced.prompts) == (0, 0, 1)


def test_a_video_of_several_rows_is_looked_at_once(clips_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probed: list[str] = []
    probe = survey.Prober.probe
    monkeypatch.setattr(survey.Prober, "probe", lambda self, uri: (probed.append(uri), probe(self, uri))[1])
    one, other = sorted(clips_folder.iterdir())[:2]
    uris = [str(path) for path in (one, other, one, clips_folder / "gone.mp4", one, other, clips_folder / "gone.mp4")]
    looks = survey.looks_at(uris)
    assert looks == [survey.looks_at([uri])[0] for uri in uris] and looks[3] is None and looks[0] != looks[1]
    assert sorted(probed[:3]) == sorted(set(uris)) and len(probed) == 3 + len(uris)


@pytest.mark.slow
@pytest.mark.skipif(not CORPUS.exists(), reason="the public videos are not here")
def test_headers_of_public_videos_tell_the_frames() -> None:
    """Of those that are read whole, all but the one whose edit list hides frames that its header counts."""
    layout, wrong, whole = survey.Layout(FramesSpec(count=32), None, 4, 3, 1), [], 0
    with Reader(Sampling(32), MODEL_SIZE, Limits(video_s=20)) as reader:
        paths = sorted(CORPUS.rglob("*.mp4"))
        for path, look in zip(paths, survey.looks_at([str(path) for path in paths]), strict=True):
            video = Video(str(path), str(path), None, None, (), {})
            try:
                frames = reader.read(str(path))
            except RowError:
                continue
            if not frames.partial:
                whole += 1
                planned = list(survey.expected_frames(video, look, layout))
                wrong += [path.name] if planned != [len(frames.times_s)] else []
    assert whole > 50 and wrong == ["discard_first_keyframe.mp4"]


def test_unreadable_headers_are_counted_and_priced_in_full(clips_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "good.mp4").write_bytes((clips_folder / "003.mp4").read_bytes())
    (folder / "text.mp4").write_text("not a video")
    spec = job(folder, tmp_path / "out", budget={"pflops": 1.0})
    priced = plan(spec)
    assert (priced.videos, priced.unreadable) == (2, 1)
    tokens = setup(spec).shape.tokens_per_frame
    assert priced.visual_tokens == (3 + 16) * tokens
    assert any("the headers of 1 video could not be read (priced at 16 frames)" in line for line in priced.warnings)


def test_a_ratio_is_of_what_can_be_read(clips_folder: Path, tmp_path: Path) -> None:
    """Long videos that aren't there paid for the short ones: those kept more than the ratio allows."""
    short = [{"uri": str(clips_folder / f"{frames:03}.mp4")} for frames in (3, 9)]
    gone = [{"uri": str(clips_folder / f"gone{n}.mp4")} for n in range(3)]
    alone, all_ = (
        plan(job(clips_folder, tmp_path / "out", input=manifest(tmp_path / f"{len(rows)}.parquet", rows),
                 budget={"ratio": 0.6}))
        for rows in (short, short + gone)
    )  # fmt: skip
    assert (all_.videos, all_.prompts, all_.unreadable) == (5, 5, 3)
    assert (all_.keep, all_.clips, all_.budget, all_.planned) == (alone.keep, 2, alone.budget, alone.planned)
    told = [line for line in all_.warnings if line not in alone.warnings]
    assert len(told) == 1 and "the headers of 3 videos could not be read (left out of the ratio)" in told[0]
    nothing = plan(job(clips_folder, tmp_path / "out", input=manifest(tmp_path / "gone.parquet", gone)))
    assert (nothing.clips, nothing.unreadable) == (3, 3), "all that there is to go by"


def test_prompts_that_cannot_be_asked_cost_nothing(clips_folder: Path, tmp_path: Path) -> None:
    rows = [
        {"uri": str(clips_folder / "050.mp4"), "q": "What?"},
        {"uri": str(clips_folder / "080.mp4"), "q": "word " * 5000},
    ]
    prompts = [{"id": "q", "kind": "qa", "column": "q"}]
    priced = plan(job(clips_folder, tmp_path / "out", input=manifest(tmp_path / "m.parquet", rows), prompts=prompts))
    assert (priced.videos, priced.problems, priced.prompts, priced.clips) == (1, 1, 2, 1)


# Budgets.


@pytest.mark.parametrize("budget", [
    {"ratio": 0.6}, {"ratio": 0.6, "convention": "paper"}, {"ratio": 0.9, "scope": "total"},
    {"ratio": 0.9, "scope": "total", "convention": "paper"}, {"pflops": 5e-6}, {"pflops_per_hour_of_video": 1.0},
    {"gpu_hours": 0.002}, {"gpu_hours": 0.01, "scope": "total"},
])  # fmt: skip
def test_every_kind_of_budget_is_met(budget: dict[str, Any], clips_folder: Path, tmp_path: Path) -> None:
    spec = job(clips_folder, tmp_path / "out", budget=budget)
    calibrate(spec)
    priced = plan(spec)
    found = priced.budget
    assert found.floor <= found.planned <= found.limit
    clips = Counter(asked_shape(spec, min(16, frames), [CAPTION["text"]]) for frames in LENGTHS)
    if priced.keep < WHOLE:
        assert pricer(spec).job(clips, priced.keep + 1) > found.limit >= pricer(spec).job(clips, priced.keep)
    else:
        assert found.planned == pricer(spec).job(clips, WHOLE)


def test_time_and_price_follow_the_calibration(clips_folder: Path, tmp_path: Path) -> None:
    spec = job(clips_folder, tmp_path / "out", limits={"price_per_gpu_hour": 3.5})
    unknown = plan(spec)
    assert (unknown.gpu_hours, unknown.price) == (None, None)
    assert "bench calibrate --job JOB.yaml" in describe(unknown)
    device = calibrate(spec)
    priced = plan(spec)
    bill = priced.planned
    moved = 0
    means = setup(spec)
    for frames in LENGTHS:
        clip = asked_shape(spec, min(16, frames), [CAPTION["text"]])
        cached = flops.cache_lengths(means.shape, clip, means.method.schedule(means.shape, clip, priced.keep), 0)
        moved += calibration.generate_bytes(means.shape.decoder, cached, 8, 2, 8)
    seconds = bill.vision / device.vision_flops_per_s + bill.llm / device.prefill_flops_per_s
    seconds += moved / device.generate_bytes_per_s
    assert priced.gpu_hours == pytest.approx(seconds / 3600, rel=1e-6)
    assert priced.price == pytest.approx(3.5 * seconds / 3600, rel=1e-6)
    assert priced.gpu_hours_vanilla is not None and priced.gpu_hours < priced.gpu_hours_vanilla
    said = describe(priced)
    assert re.search(
        r"^time +[\d.]+ (minutes|seconds) of NVIDIA Test \([\d.]+ (minutes|seconds) unpruned\)", said, re.M
    )
    assert re.search(r"^videos +6, 19\.50 seconds$", said, re.M)
    assert priced.fingerprint == unknown.fingerprint  # measuring a device changes no text


def test_a_budget_in_hours_says_whose_hours_they_are_and_what_they_leave_out(
    clips_folder: Path, tmp_path: Path
) -> None:
    spec = job(clips_folder, tmp_path / "out", budget={"gpu_hours": 1e-4})
    calibrate(spec)
    priced = plan(spec)
    assert priced.gpu_hours is not None and priced.gpu_hours > 1e-4
    assert any("prefill alone; the job takes" in line for line in priced.warnings)
    assert not any("calibrated last" in line for line in priced.warnings)
    calibration.save(replace(calibrate(spec), device="cpu x 2", kind="cpu", dtype="float32", measured_at="2026-02-01"),
                     calibration.store_folder())  # fmt: skip
    told = [line for line in plan(spec).warnings if "calibrated last" in line]
    assert len(told) == 1 and "those of cpu x 2" in told[0] and "NVIDIA Test would fit too" in told[0]
    one = job(clips_folder, tmp_path / "out", budget={"gpu_hours": 1, "scope": "total"},
              model={**spec.model.model_dump(), "device": "cpu"})  # fmt: skip
    assert not any("calibrated last" in line or "prefill alone" in line for line in plan(one).warnings)


def test_what_is_left_for_tokens_is_no_question_where_all_are_kept(clips_folder: Path, tmp_path: Path) -> None:
    said = "before the first visual token is kept"
    whole = plan(job(clips_folder, tmp_path / "out", prune={"method": "none"}))
    assert not any(said in line for line in whole.warnings)
    floor = plan(job(clips_folder, tmp_path / "out", budget={"ratio": 0.9})).budget.floor
    for times, warned in ((1.5, True), (2.5, False)):
        tight = plan(job(clips_folder, tmp_path / "out", budget={"pflops": times * floor / 1e15}))
        assert any(said in line for line in tight.warnings) == warned


@pytest.mark.parametrize("kind", ["pflops", "pflops_per_hour_of_video", "gpu_hours"])
def test_a_budget_may_be_any_number(kind: str, clips_folder: Path, tmp_path: Path) -> None:
    spec = job(clips_folder, tmp_path / "out", budget={kind: 1e300})
    calibrate(spec)
    priced = plan(spec)
    assert priced.keep == WHOLE and 0 <= priced.budget.use < 1e-200 and "e+300" in describe(priced)


def test_the_floor_of_half_the_frames_is_that_of_a_job_that_asks_for_them(clips_folder: Path, tmp_path: Path) -> None:
    """With all of its steps down: the least that a job of so many frames could read is less than that of this one."""
    least = {"pflops": 1e-9, "scope": "total"}
    with pytest.raises(BudgetError, match="below the floor") as caught:
        plan(job(clips_folder, tmp_path / "out", frames={"count": 64}, budget=least))
    told = re.search(r"frames.count: (\d+) has a floor of (\S+?)[;.]?( |$)", str(caught.value))
    assert told, caught.value
    half, floor = {"frames": {"count": int(told[1])}}, float(told[2].rstrip(";."))
    assert plan(job(clips_folder, tmp_path / "out", budget={**least, "pflops": floor}, **half))
    with pytest.raises(BudgetError, match="below the floor"):
        plan(job(clips_folder, tmp_path / "out", budget={**least, "pflops": 0.98 * floor}, **half))


@pytest.mark.parametrize("budget", [{"ratio": 0.01}, {"pflops": 1e-9}, {"ratio": 1e-6, "scope": "total"}])
def test_a_budget_below_the_floor_says_what_would_do(
    budget: dict[str, Any], clips_folder: Path, tmp_path: Path
) -> None:
    prompts = [CAPTION, {"id": "d", "kind": "qa", "text": "Why?"}]
    prune = {"method": "adatp", "options": {"global": "none"}}
    spec = job(clips_folder, tmp_path / "out", budget=budget, prompts=prompts, prune=prune)
    with pytest.raises(BudgetError, match="below the floor") as caught:
        plan(spec)
    told = str(caught.value)
    kind = next(iter(budget))
    enough = float(told.split("give at least ")[1].split(";")[0])
    assert plan(job(clips_folder, tmp_path / "out", budget={**budget, kind: enough}, prompts=prompts, prune=prune))
    shared = float(told.split("prune.select: per_video has a floor of ")[1].split(";")[0])
    assert shared < enough
    per_video = {**prune, "select": "per_video"}
    assert plan(job(clips_folder, tmp_path / "out", budget={**budget, kind: shared}, prompts=prompts, prune=per_video))
    assert isinstance(caught.value, UserError)


def test_bad_jobs_are_the_users_to_mend(clips_folder: Path, tmp_path: Path) -> None:
    for error, word, parts in (
        (BudgetError, "was never calibrated; run .*--job JOB.yaml", {"budget": {"gpu_hours": 1.0}}),
        (ModelError, "supported", {"model": {"id": str(foreign_model(tmp_path))}}),
        *(
            (ModelError, "layer", {"model": str(folder(Spec(layers=1))), "prune": {"method": method}})
            for method in ("adatp", "fastv", "segattn", "mlb-g", "mlb")
        ),
    ):
        with pytest.raises(error, match=word):
            plan(job(clips_folder, tmp_path / "out", **parts))


def foreign_model(folder: Path) -> Path:
    model = folder / "gpt"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "gpt2"}')
    save_file({}, model / "model.safetensors")
    return model


def test_fewer_frames_where_the_tower_alone_breaks_the_budget(clips_folder: Path, tmp_path: Path) -> None:
    spec = job(clips_folder, tmp_path / "out", budget={"ratio": 0.3, "scope": "total"})
    priced = plan(spec)
    assert priced.frames == 6
    assert any("6 frames are read" in line for line in priced.warnings)
    assert 0 < priced.budget.planned <= priced.budget.limit
    assert priced.keep >= WHOLE // 10
    clips = Counter(asked_shape(spec, min(8, frames), [CAPTION["text"]]) for frames in LENGTHS)
    assert pricer(spec).job(clips, WHOLE // 10) > priced.budget.limit  # the ladder's next step does not fit
    roomy = plan(job(clips_folder, tmp_path / "out", budget={"ratio": 0.95, "scope": "total"}))
    assert roomy.frames == 16


def test_many_prompts_are_told_to_share(clips_folder: Path, tmp_path: Path) -> None:
    prompts = [{"id": str(i), "kind": "caption", "text": f"Question {i}?"} for i in range(5)]
    spec = job(clips_folder, tmp_path / "out", prompts=prompts, prune={"method": "fastv"}, budget={"ratio": 0.6})
    proposals = [line for line in plan(spec).warnings if "prune.select=per_video would keep" in line]
    assert len(proposals) == 1
    shared = plan(job(clips_folder, tmp_path / "out", prompts=prompts, budget={"ratio": 0.6},
                      prune={"method": "fastv", "select": "per_video"}))  # fmt: skip
    assert f"{100 * shared.keep / WHOLE:.3g} %" in proposals[0]
    assert not any("per_video" in line for line in shared.warnings)
    lavish = plan(job(clips_folder, tmp_path / "out", prompts=prompts, prune={"method": "fastv", "options": {"at": 1}},
                      budget={"ratio": 1.0}))  # fmt: skip
    assert not any("one unpruned prefill" in line for line in lavish.warnings)


def test_prompts_that_keep_nearly_all_are_not_told_to_share(clips_folder: Path, tmp_path: Path) -> None:
    """They would keep all, and each would lose what is kept for it alone."""
    prompts = [{"id": str(i), "kind": "caption", "text": f"Question {i}?"} for i in range(2)]
    parts = {"prompts": prompts, "prune": {"method": "fastv"}}
    spec = job(clips_folder, tmp_path / "out", **parts)
    clips = Counter(asked_shape(spec, min(16, frames), [prompt["text"] for prompt in prompts]) for frames in LENGTHS)
    nearly_all = pricer(spec).job(clips, 9 * WHOLE // 10) / 1e15
    priced = plan(job(clips_folder, tmp_path / "out", budget={"pflops": nearly_all}, **parts))
    assert 0.85 * WHOLE < priced.keep < WHOLE
    assert not any("prune.select=per_video would keep" in line for line in priced.warnings)


def test_prompts_that_keep_all_for_themselves_are_told_what_it_costs(clips_folder: Path, tmp_path: Path) -> None:
    """A generous budget buys the same unpruned prefill for each of them."""
    prompts = [{"id": str(i), "kind": "caption", "text": f"Question {i}?"} for i in range(4)]
    parts = {"prune": {"method": "fastv"}, "budget": {"pflops": 1.0}}
    priced = plan(job(clips_folder, tmp_path / "out", prompts=prompts, **parts))
    assert priced.keep == WHOLE and priced.planned.llm > priced.vanilla.llm
    assert len([line for line in priced.warnings if "of one unpruned prefill" in line]) == 1
    alone = plan(job(clips_folder, tmp_path / "out", **parts))
    assert not any("of one unpruned prefill" in line for line in alone.warnings)


# The models that were planned with are the ones that run.


def paired_job(clips: Path, out: Path, feature_model: str) -> JobSpec:
    return job(clips, out, prune={"method": "adatp", "feature_model": feature_model}, budget={"ratio": 0.6})


def test_a_captioner_takes_what_it_was_given_and_not_what_it_sees(
    clips_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = job(clips_folder, tmp_path / "out")
    engine = Engine.of(spec, plan(spec))
    assert engine.load(0.5).settings.device_share == 0.5, "the rest of the GPU is another's"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert (alone := engine.load(0).settings).device == "cpu" and alone.device_share == 1


def test_a_pair_that_is_another_where_it_runs_is_refused(clips_folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "pair"
    shutil.copytree(pair_folder(), place)
    spec = paired_job(clips_folder, tmp_path / "out", str(place))
    priced, shape = plan(spec), asked_shape(spec, 16, [CAPTION["text"]])
    assert priced.pair_revision == pair_at(place).revision
    assert Engine.of(spec, priced).load(1).settings.feature_model == pair_at(place)
    (place / "tokenizer_config.json").write_text((place / "tokenizer_config.json").read_text() + " ")
    with pytest.raises(ModelError, match=r"prune\.feature_model.*give every node the same files"):
        Engine.of(spec, priced).load(1)
    with pytest.raises(ModelError, match=r"prune\.feature_model"):
        settle(spec, priced, [[(shape, 0.5)]])


def test_a_pairs_branch_that_moves_on_changes_no_planned_job(
    clips_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub is a folder with a snapshot a commit; `main` is the newest."""
    for commit in ("first", "second"):
        shutil.copytree(pair_folder(), tmp_path / "hub" / commit)
    branch = {"main": "first"}

    def download(id: str, revision: str, **_: Any) -> str:
        return str(tmp_path / "hub" / branch.get(revision, revision))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    spec = paired_job(clips_folder, tmp_path / "out", "owner/pair")
    priced = plan(spec)
    branch["main"] = "second"
    pair = Engine.of(spec, priced).load(1).settings.feature_model
    assert pair is not None and priced.pair_revision == pair.revision == "first"
    assert plan(spec).pair_revision == "second"


# Words.


def test_the_schedule_shown_is_the_engines(clips_folder: Path, tmp_path: Path) -> None:
    spec = job(clips_folder, tmp_path / "out", prune={"method": "adatp"}, budget={"ratio": 0.6},
               prompts=[CAPTION, {"id": "d", "kind": "qa", "text": "Why?"}])  # fmt: skip
    priced, means = plan(spec), setup(spec)
    clip = asked_shape(spec, 16, [CAPTION["text"], "Why?"])
    schedule = means.method.schedule(means.shape, clip, priced.keep)
    assert isinstance(schedule, Schedule) and len(priced.layers) == means.shape.decoder.layers
    assert priced.layers[0].visual == clip.visual
    assert priced.layers[-1].visual == schedule.kept(clip) and priced.layers[-1].copies == 2
    text = describe(priced)
    assert f"{clip.visual:,} visual tokens" in text and f"{schedule.kept(clip):,} visual tokens x 2 prompts" in text


def test_the_schedule_shown_is_that_of_the_commonest_clip(clips_folder: Path, tmp_path: Path) -> None:
    """Of the longest, where several are as common."""
    for lengths, shown in (((9, 9, 80), 9), ((9, 20, 20, 9, 80), 20)):
        rows = [{"uri": str(clips_folder / f"{frames:03}.mp4"), "id": str(n)} for n, frames in enumerate(lengths)]
        given = {**manifest(tmp_path / f"{shown}.parquet", rows), "id_column": "id"}
        spec = job(clips_folder, tmp_path / "out", input=given, prune={"method": "none"}, frames={"count": 80})
        assert plan(spec).layers[0].visual == asked_shape(spec, shown, [CAPTION["text"]]).visual


def test_a_two_stage_schedule_is_shown_as_its_stages(clips_folder: Path, tmp_path: Path) -> None:
    spec = job(clips_folder, tmp_path / "out", prune={"method": "mlb"}, model="embedded:tiny-image",
               budget={"ratio": 0.6}, frames={"count": 10})  # fmt: skip
    priced = plan(spec)
    assert [layer.visual for layer in priced.layers[:4]][:3] == [10 * 144] * 3
    assert priced.layers[3].visual < 10 * 144
    assert "layers 0-2" in describe(priced) and "layers 3-11" in describe(priced)


def test_what_cannot_run_unpruned_is_said(clips_folder: Path, tmp_path: Path) -> None:
    """40 frames of 144 tokens are more than the image model's 4,096."""
    spec = job(clips_folder, tmp_path / "out", model="embedded:tiny-image", frames={"count": 40})
    assert any("could not have been made" in line for line in plan(spec).warnings)


@pytest.mark.parametrize(
    ("method", "ratio", "beyond"),
    [("none", 1.0, True), ("uniform", 0.3, True), ("frames", 0.3, True), ("pool", 0.3, False), ("mlb", 0.3, False)],
)
def test_answers_at_positions_beyond_the_context_are_said_to_be_no_good(
    method: str, ratio: float, beyond: bool, clips_folder: Path, tmp_path: Path
) -> None:
    """What stays keeps its position in the clip, but where a method numbers anew."""
    spec = job(clips_folder, tmp_path / "out", model="embedded:tiny-image", frames={"count": 40},
               prune={"method": method}, budget={"ratio": ratio})  # fmt: skip
    warnings = plan(spec).warnings
    assert any("could not have been made" in line for line in warnings)
    said = [line for line in warnings if "not to be trusted" in line]
    assert len(said) == beyond and all("fewer frames" in line and "4,096" in line for line in said)


@pytest.mark.parametrize("expand", ["carry", "refeed"])
def test_each_layer_is_told_with_all_that_it_sees(expand: str, clips_folder: Path, tmp_path: Path) -> None:
    """Tokens that start again at layer 0 come there on top of the segments, in as many copies as there are prompts."""
    options = {"expand": expand, "layer": 2}
    spec = image_job(clips_folder, tmp_path / "out", 8).changed(
        prompts=[CAPTION, {**CAPTION, "id": "d"}], prune={"method": "mlb-g", "options": options}
    )
    priced, means = plan(spec), setup(spec)
    clip = asked_shape(spec, 10, [CAPTION["text"]] * 2)
    kept = means.method.schedule(means.shape, clip, priced.keep).kept(clip)
    seen = [clip.visual] * 2 + [0] * (means.shape.decoder.layers - 2)
    again = [expand == "refeed" or i >= 2 for i in range(means.shape.decoder.layers)]
    expected = [whole + 2 * kept * joined for whole, joined in zip(seen, again, strict=True)]
    assert [layer.visual * layer.copies for layer in priced.layers] == expected


def image_job(clips: Path, out: Path, new_tokens: int) -> JobSpec:
    return job(clips, out, model="embedded:tiny-image", frames={"count": 10}, prune={"method": "mlb-g"},
               budget={"ratio": 0.6}, generate={"max_new_tokens": new_tokens})  # fmt: skip


def test_two_stages_that_have_no_room_for_an_answer_are_refused(clips_folder: Path, tmp_path: Path) -> None:
    """The image model's 4,096, which RoPE doubles."""
    assert not any("handed on" in line for line in plan(image_job(clips_folder, tmp_path / "out", 512)).warnings)
    tight = plan(image_job(clips_folder, tmp_path / "out", 7_600))
    assert any("4,096, and not the budget" in line for line in tight.warnings)
    roomy = image_job(clips_folder, tmp_path / "out", 16)
    roomy = roomy.changed(prune={"method": "mlb-g", "options": {"room": 8_192}})
    no_room = r"max_new_tokens, prune\.options\.room: .* no room in the model's context"
    for crowded in (image_job(clips_folder, tmp_path / "out", 8_192), roomy):
        with pytest.raises(BudgetError, match=no_room):
            plan(crowded)
    means = setup(image_job(clips_folder, tmp_path / "out", 16))
    for suffix, fits in ((3_900, True), (4_000, False)):  # with a frame of 144 behind it, in the first stage
        clip = ClipShape(10, means.shape.side, means.shape.side, 4, means.shape.trailer, (suffix,))
        assert means.method.traits.fits(means.shape, clip) == fits


def test_one_prompt_without_room_is_said_and_priced_at_nothing(clips_folder: Path, tmp_path: Path) -> None:
    """Two stages want room for a frame beside each prompt; one that leaves none is no fault of the job's."""
    means = setup(image_job(clips_folder, tmp_path / "out", 8))
    rows = [{"id": p.stem, "uri": str(p), "q": "What is it?"} for p in sorted(clips_folder.iterdir())]
    prompts = [{"id": "q", "kind": "qa", "column": "q"}]
    given = manifest(tmp_path / "short.parquet", rows[1:])
    short = plan(job(clips_folder, tmp_path / "out", input=given, prompts=prompts, model="embedded:tiny-image",
                     prune={"method": "mlb-g"}))  # fmt: skip
    rows[0]["q"] = "What colour is it? " * 800
    assert 4_096 - 144 < len(Prompter(means.checkpoint).suffix("qa", rows[0]["q"])) <= 4_096
    given = manifest(tmp_path / "long.parquet", rows)
    long = plan(job(clips_folder, tmp_path / "out", input=given, prompts=prompts, model="embedded:tiny-image",
                    prune={"method": "mlb-g"}))  # fmt: skip
    assert (long.prompts, long.planned, long.keep) == (short.prompts + 1, short.planned, short.keep)
    assert any(line.startswith("1 prompt can't be asked") for line in long.warnings)
    assert not any("can't be asked" in line for line in short.warnings)


def test_an_answer_that_outgrows_the_context_is_said(clips_folder: Path, tmp_path: Path) -> None:
    frames, model = {"count": 10}, "embedded:tiny-image"
    for new_tokens, beyond in ((16, False), (4_000, True)):
        spec = job(clips_folder, tmp_path / "out", model=model, frames=frames, prune={"method": "none"},
                   budget={"ratio": 1.0}, generate={"max_new_tokens": new_tokens})  # fmt: skip
        assert any("not to be trusted" in line for line in plan(spec).warnings) == beyond


def test_videos_that_do_not_say_how_long_they_are(clips_folder: Path, tmp_path: Path) -> None:
    """As browsers record them: a budget by the hour has nothing to go by."""
    streamed = tmp_path / "streamed"
    streamed.mkdir()
    with (streamed / "a.mkv").open("wb") as file:  # what can't seek can't go back to write the duration
        unseekable = SimpleNamespace(write=file.write)
        with av.open(unseekable, "w", format="matroska") as out, av.open(str(clips_folder / "050.mp4")) as given:
            stream = out.add_stream_from_template(given.streams.video[0])
            for packet in given.demux(given.streams.video[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    out.mux(packet)
    hourly = {"pflops_per_hour_of_video": 1.0}
    given_ = {"videos": f"{streamed}/*"}
    with pytest.raises(BudgetError, match="none of these videos says how long it is"):
        plan(job(streamed, tmp_path / "out", input=given_, budget=hourly))
    shutil.copy(clips_folder / "080.mp4", streamed / "b.mp4")
    priced = plan(job(streamed, tmp_path / "out", input=given_, budget=hourly))
    assert any("1 video without a length in the header: nothing" in line for line in priced.warnings)
    cut = plan(job(streamed, tmp_path / "out", input=given_, clips={"every_s": 1.0}))
    assert any("planned as one clip each, and cut when read" in line for line in cut.warnings)


def test_a_header_that_claims_too_much_adds_a_day_to_the_hours_and_is_said(clips_folder: Path, tmp_path: Path) -> None:
    """It took the keep of the whole job to the top, and the bill with it."""
    videos = Path(shutil.copytree(clips_folder, tmp_path / "videos"))
    hourly = job(videos, tmp_path / "out", budget={"pflops_per_hour_of_video": 1e-3})
    true = plan(hourly)
    assert not any("hours that this budget" in line or "a day or more" in line for line in true.warnings)
    write_video(videos / "lies.mp4", frames=3, times_ms=[0, 40, 30 * 3_600_000])
    lied = plan(hourly)
    assert lied.hours == pytest.approx(true.hours + 24)
    for told in ("1 video of a day or more", "one video is 99.97 % of the hours", "does not last 24.00 hours"):
        assert any(told in line for line in lied.warnings), lied.warnings
    by_ratio = plan(job(videos, tmp_path / "out"))
    assert not any("one video is" in line for line in by_ratio.warnings), "no other kind goes by the hours"


def test_what_a_checkpoint_asks_for_in_vain_is_said(clips_folder: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(folder(Spec()), tmp_path / "model"))
    assert not any(
        "generation_config" in line for line in plan(job(clips_folder, tmp_path / "a", model=str(place))).warnings
    )
    (place / "generation_config.json").write_text(json.dumps({"repetition_penalty": 1.3, "temperature": 0.2}))
    warnings = plan(job(clips_folder, tmp_path / "b", model=str(place))).warnings
    assert [line for line in warnings if "repetition_penalty: 1.3" in line and "temperature" not in line]


@pytest.mark.parametrize("budget", [{"pflops": 4e-6}, {"pflops": 6e-6, "scope": "total"}, {"ratio": 0.5}])
def test_a_canarys_rival_prunes_for_as_many_operations_as_the_job(
    budget: dict[str, Any], clips_folder: Path, tmp_path: Path
) -> None:
    spec = job(clips_folder, tmp_path / "out", prune={"method": "unique"}, budget=budget,
               generate={"max_new_tokens": 64, "expected_new_tokens": 2})  # fmt: skip
    own = plan(spec)
    random_ = plan(rival(spec, "random", str(tmp_path / "random"), lambda: own))
    assert own.keep < WHOLE
    assert random_.planned.prefill == pytest.approx(own.planned.prefill, rel=0.01)


@pytest.mark.parametrize("frames", (10, 12))
def test_a_canarys_rival_of_the_same_cost_gets_the_last_step_and_meets_the_floor(
    frames: int, clips_folder: Path, tmp_path: Path
) -> None:
    """The share that the job spends, as a float, may lie a little below it."""
    given: dict[str, Any] = {"frames": {"count": frames}}
    whole = plan(job(clips_folder, tmp_path / "out", budget={"ratio": 0.5}, **given)).budget
    for spent in (whole.floor, whole.planned):
        spec = job(clips_folder, tmp_path / "out", budget={"pflops": spent / 1e15 * (1 + 1e-9)}, **given)
        assert plan(spec).budget.planned == spent
        assert plan(rival(spec, "random", str(tmp_path / "random"), partial(plan, spec))).budget.planned == spent


def test_a_canarys_rival_of_a_job_that_spends_more_than_unpruned_keeps_all(clips_folder: Path, tmp_path: Path) -> None:
    """Two prompts that prune for themselves share nothing; no ratio is above 1."""
    prompts = [CAPTION, {"id": "d", "kind": "qa", "text": "Why?"}]
    spec = job(clips_folder, tmp_path / "out", prompts=prompts, prune={"method": "fastv"}, budget={"pflops": 1.0})
    own = plan(spec)
    assert own.budget.planned > own.budget.vanilla
    assert plan(rival(spec, "random", str(tmp_path / "random"), lambda: own)).keep == WHOLE


def test_a_canary_is_priced_beside_the_budget(clips_folder: Path, tmp_path: Path) -> None:
    plain = plan(job(clips_folder, tmp_path / "out"))
    watched = plan(job(clips_folder, tmp_path / "out", canary={"share": 0.5, "against": ["none"]}))
    assert watched.budget == plain.budget and watched.fingerprint == plain.fingerprint
    extra = [line for line in watched.warnings if line.startswith("canary")]
    assert len(extra) == 1 and f"{plain.vanilla.total / 2e9:,.4g} GFLOPs" in extra[0]
    alone = job(
        clips_folder, tmp_path / "out", prune={"method": "random"}, canary={"share": 0.5, "against": ["random"]}
    )
    assert not any(line.startswith("canary") for line in plan(alone).warnings), "no method is held against itself"
