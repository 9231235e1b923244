"""Benchmarks: ratios from planted timings, both sides at equal work, and calibrations that a plan can live by."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import mlb_batch, start
from ledger_rows import annotation
from s3server import S3Server
from small_jobs import clips, job_file
from test_walls import MODULES, imports, tree
from video_files import HEAVY, write_video

from mlb_batch.bench import calibrate as calibrate_module
from mlb_batch.bench import pipeline as pipeline_module
from mlb_batch.bench import rounds, scale, shapes
from mlb_batch.bench.bed import Bed, random_model, saved_model
from mlb_batch.bench.calibrate import calibrate, captioner_threads, job_of
from mlb_batch.bench.figures import lines, of_ceiling, plain, predicted
from mlb_batch.bench.loops import SIZE, Loop, Pixels, loops
from mlb_batch.bench.loops import plain as plain_loop
from mlb_batch.bench.options import Options
from mlb_batch.bench.ours import PROMPT, Pair, frames, random_clips, unpruned
from mlb_batch.bench.pipeline import pipeline
from mlb_batch.bench.race import race
from mlb_batch.bench.read import read
from mlb_batch.bench.rounds import Spread, alternate, three_ratios
from mlb_batch.bench.suite import NAMES, TAKES, bench
from mlb_batch.bench.yardstick import Yardstick
from mlb_batch.chain.pools import BATCH_ON_CPU, MOST_ON_GPU
from mlb_batch.cli import app, ended
from mlb_batch.cost import calibration
from mlb_batch.cost.calibration import Calibration
from mlb_batch.cost.flops import price, vanilla
from mlb_batch.engine import Engine
from mlb_batch.errors import BudgetError, InputError, SpecError
from mlb_batch.planning import describe, plan, setup
from mlb_batch.run import run
from mlb_batch.spec import JobSpec
from mlb_batch.storage import filesystem
from mlb_batch.tiny.architectures import image_config
from mlb_batch.tiny.clips import write_sample_clips
from mlb_batch.video import FrameSize, Limits, Reader, Sampling, Wanted, read_frames
from mlb_batch.vlm.captioner import Ask, Clip
from mlb_batch.vlm.checkpoint import resolve
from mlb_batch.vlm.load import load
from mlb_batch.work import Outcome

pytestmark = pytest.mark.usefixtures("own_calibrations")
CPU = torch.device("cpu")
QUICK = Options(frames=8, new_tokens=4, ratio=0.5, batch=1)
# Of the time that a plan gives a job and the time that its captioner then took, the larger over the smaller: both are
# measured, on a machine that others use.
AGREE = 2.0
TRIES = 4


class Clock:
    """Time that passes only where a contender says so."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s

    process_time = perf_counter

    def takes(self, seconds: float) -> Callable[[], None]:
        def work() -> None:
            self.now_s += seconds

        return work


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    planted = Clock()
    monkeypatch.setattr(rounds, "time", planted)
    return planted


@pytest.fixture(scope="module")
def bed() -> Bed:
    return Bed.made(QUICK)


def test_everyone_has_a_turn_in_every_round_and_the_order_turns_round(clock: Clock) -> None:
    turns: list[str] = []
    laps = alternate({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, 3)
    assert "".join(turns) == "ab" + "ab" + "ba" + "ab"
    assert [len(some) for some in laps.values()] == [3, 3]


def test_a_lap_ends_when_the_device_has_settled(clock: Clock) -> None:
    pending: list[float] = []

    def settle() -> None:
        clock.now_s += sum(pending)
        pending.clear()

    laps = alternate({"a": lambda: pending.append(2.0), "b": lambda: pending.append(5.0)}, 3, settle)
    assert [one.wall_s for one in laps["a"]] == [2.0] * 3 and [one.wall_s for one in laps["b"]] == [5.0] * 3


def test_ratios_are_taken_inside_a_round() -> None:
    """A machine that gets three times slower changes no ratio."""
    seconds = {"transformers": [6.0, 18.0, 5.0], "vanilla": [4.0, 12.0, 4.0], "pruned": [1.0, 3.0, 2.0]}
    assert three_ratios(seconds) == {
        "vanilla_over_transformers": Spread(1.5, 1.25, 1.5),
        "pruned_over_vanilla": Spread(4.0, 2.0, 4.0),
        "pruned_over_transformers": Spread(6.0, 2.5, 6.0),
    }


def test_each_races_in_its_best_batch_that_fits(clock: Clock) -> None:
    def transformers(size: int) -> Callable[[], None]:
        return clock.takes({1: 4.0, 2: 6.0, 4: 20.0}[size])

    def vanilla(size: int) -> Callable[[], None]:
        if size > 2:
            raise torch.OutOfMemoryError
        return clock.takes(2.0 * size)

    makes = {"transformers": transformers, "vanilla": vanilla, "pruned": lambda size: clock.takes(0.5 * size + 0.5)}
    found = race(makes, dict.fromkeys(makes, (1, 2, 4)), 3, CPU)
    assert found.batch == {"transformers": 2, "vanilla": 1, "pruned": 4}
    assert found.tried["vanilla"] == {1: 2.0, 2: 2.0}, "what does not fit is not tried again"
    assert found.seconds == {"transformers": [3.0] * 3, "vanilla": [2.0] * 3, "pruned": [0.625] * 3}
    assert predicted(found, {"vanilla": 40, "pruned": 10}) == {
        "predicted_speedup": 4.0, "reached": Spread(0.8, 0.8, 0.8)
    }  # fmt: skip
    assert of_ceiling(found, {"transformers": 30, "vanilla": 30, "pruned": 10}, 20.0) == {
        "transformers": Spread(0.5, 0.5, 0.5), "vanilla": Spread(0.75, 0.75, 0.75), "pruned": Spread(0.8, 0.8, 0.8)
    }  # fmt: skip


def test_figures_are_json_and_lines() -> None:
    figures = {"a": {"b_c": Spread(1.0, 0.5, 2.0)}, "runs": [{"rows": 3}], "none": None}
    assert plain(figures) == {
        "a": {"b_c": {"median": 1.0, "low": 0.5, "high": 2.0}},
        "runs": [{"rows": 3}],
        "none": None,
    }
    assert list(lines(figures)) == ["a / b c: 1 (0.5 to 2)", "runs 0 / rows: 3", "none: None"]


@pytest.mark.parametrize("family", ["video", "image"])
def test_both_sides_do_the_same_work_on_the_same_weights(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the race would be won by who does less: the unpruned engine says what transformers says."""
    monkeypatch.setitem(shapes.SHAPES, "image", shapes.Shape("image", image_config, False, 4, 4, (1,)))
    options = replace(QUICK, shape="tiny" if family == "video" else "image", frames=4)
    bed = Bed.made(options)
    theirs, engine, shown = Yardstick.of(bed, PROMPT), unpruned(bed), frames(bed, 2)
    ours, twin = bed.model.get_parameter("lm_head.weight"), theirs.model.get_parameter("lm_head.weight")
    assert ours is twin and theirs.model.model.language_model.config._attn_implementation == "sdpa"
    with torch.inference_mode():
        said = theirs.annotate(shown, 4)[:, -4:].tolist()
        prefilled = engine.prefill(engine.encode(engine.sources(shown)))
        assert engine.first_tokens(prefilled).tolist() == [one[0] for one in said]
        assert [one.tokens for one in engine.generate(prefilled, 4)] == said
        go_on: Any = theirs.going_on(shown, 4)
        assert go_on()[:, -3:].tolist() == go_on()[:, -3:].tolist() == [one[1:] for one in said]
        assert theirs.prompted(theirs.embedded(theirs.see(shown)), 1)[:, -1].tolist() == [one[0] for one in said]


def test_the_shapes_are_those_that_are_named() -> None:
    """Numbers of the published configs; no weights are made."""
    big, yi, mid = (shapes.checkpoint(name).shape for name in ("7b", "34b", "mid"))
    d = big.decoder
    assert (d.layers, d.hidden, d.ffn, d.heads, d.kv_heads, big.tokens_per_frame) == (28, 3584, 18944, 28, 4, 196)
    d = yi.decoder
    assert (d.layers, d.hidden, d.ffn, d.heads, d.kv_heads, yi.tokens_per_frame) == (60, 7168, 20480, 56, 8, 576)
    d = mid.decoder
    assert (d.layers, d.hidden, d.heads, d.kv_heads, mid.tokens_per_frame) == (16, 768, 12, 4, 196)
    assert (mid.vision.layers, mid.vision.hidden, big.vision.layers, big.vision.hidden) == (12, 384, 26, 1152)
    meta = torch.device("meta")
    models = [random_model(shapes.checkpoint(name), meta, torch.bfloat16) for name in ("7b", "34b")]
    # What the published checkpoints have, in billions.
    assert [round(sum(p.numel() for p in model.parameters()) / 1e9, 2) for model in models] == [8.03, 34.75]


def test_pruned_is_priced_at_the_ratio_that_was_asked_for(bed: Bed) -> None:
    pair = Pair.of(bed)
    source = pair.vanilla.sources(frames(bed, 1))[0]
    share = pair.pruned.bill(source).llm / pair.vanilla.bill(source).llm
    assert 0.47 < share <= 0.5
    for ratio in (0.01, 0.0):
        with pytest.raises(BudgetError, match=f"{ratio:g} is below the floor of adatp"):
            Pair.of(replace(bed, shape=replace(bed.shape, ratio=ratio)))


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_every_benchmark_on_a_shape_is_consistent(device: str) -> None:
    names = ("vision", "prefill", "generate", "captioner")
    options = replace(QUICK, device=device)
    figures = bench(names, options, lambda _: None)
    assert json.loads(json.dumps(figures)) == figures
    assert figures["machine"]["device"].startswith(("cpu", "NVIDIA")) and figures["machine"]["packages"]["torch"]
    found = figures["benchmarks"]
    assert list(found) == list(names)
    pair = Pair.of(made := Bed.made(options))
    source = pair.vanilla.sources(frames(made, 1))[0]
    clip, shape = pair.vanilla.clip_shape(source), pair.vanilla.shape
    schedule = pair.pruned.settings.method.schedule(shape, clip, pair.pruned.settings.keep)
    whole, cut = vanilla(shape, clip), price(shape, clip, schedule)
    assert found["prefill"]["prefill"]["predicted_speedup"] == pytest.approx(whole.llm / cut.llm, rel=1e-3)
    both = found["prefill"]["vision_and_prefill"]
    assert both["predicted_speedup"] == pytest.approx(whole.total / cut.total, rel=1e-3)
    for part in (both, found["prefill"]["prefill"], found["generate"], found["captioner"]):
        _check_ratios(part)
    for part in (both, found["prefill"]["prefill"]):
        reached, speedup = part["reached"], part["ratios"]["pruned_over_vanilla"]
        assert reached["median"] == pytest.approx(speedup["median"] / part["predicted_speedup"], rel=1e-3)
        assert part["seconds_per_clip"]["vanilla"]["low"] > 0


def _check_ratios(part: dict[str, Any]) -> None:
    """The three belong together: in each round the third is the product of the other two."""
    first, second, third = part["ratios"].values()
    assert list(part["ratios"])[2] == "pruned_over_transformers"
    for ratio in (first, second, third):
        assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]
    assert (
        first["low"] * second["low"] * 0.999 <= third["low"] <= third["high"] <= first["high"] * second["high"] * 1.001
    )


def test_reading_is_measured_on_equal_frames(tmp_path: Path) -> None:
    write_sample_clips(tmp_path, 2, seed=0)
    (tmp_path / "junk.mp4").write_bytes(b"no video")
    before = children()
    found = read(Options(videos=str(tmp_path)))
    assert children() <= before, "one that is still at work, or ending, takes its time from the next round"
    assert list(found["left_out"]) == ["junk.mp4"]
    assert set(found["absent"]) | {"pyav"} >= {"decord", "torchcodec", "pyav"} - set(loops()[0])
    assert [name for name in found if "frames" in name] == ["short, 8 frames", "short, 32 frames"]
    eight = found["short, 8 frames"]
    assert (eight["videos"], eight["frames"]) == (2, 16)
    cores, ratio = eight["frames_per_core_s"], eight["ratios"]["ours_over_pyav"]
    assert cores["ours"].low / cores["pyav"].high * 0.999 <= ratio.low <= ratio.high
    assert ratio.high <= cores["ours"].high / cores["pyav"].low * 1.001
    for path in sorted(tmp_path.glob("clip-*.mp4")):
        ours = read_frames(path, Wanted(Sampling(8), SIZE, Limits())).pixels_FHWC
        np.testing.assert_array_equal(ours, loops()[0]["pyav"].read(str(path), 8, SIZE))


def test_a_video_that_another_reader_can_give_only_some_frames_of_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tired(path: str, count: int, size: FrameSize) -> Pixels:
        if count > 8 and Path(path).stat().st_size == small:
            raise RuntimeError("no more frames")
        return plain_loop(path, count, size)

    write_sample_clips(tmp_path, 2, seed=0)
    small = min(path.stat().st_size for path in tmp_path.glob("*.mp4"))
    monkeypatch.setattr("mlb_batch.bench.read.loops", lambda: ({"tired": Loop(tired, (RuntimeError,))}, {}))
    found = read(Options(videos=str(tmp_path)))
    assert list(found["left_out"].values()) == ["tired can't read it"]
    assert found["short, 32 frames"]["videos"] == 1


def test_videos_in_storage_are_read_from_there_too(tmp_path: Path, s3: S3Server) -> None:
    """Beside the figures of their copies; of a large one ours fetches a part, in every turn."""
    short = write_video(tmp_path / "short.mp4", 50)
    long = write_video(tmp_path / "long.mp4", 3000, (144, 192), gop=50, codec_options=HEAVY)
    bucket = s3.make_bucket()
    fs, _ = filesystem(f"s3://{bucket}")
    for path in (short, long):
        fs.pipe_file(f"{bucket}/videos/{path.name}", path.read_bytes())
    found = read(Options(videos=f"s3://{bucket}/videos"))
    stored = {name: figures for name, figures in found.items() if "from storage" in name}
    assert [name.partition(",")[0] for name in stored] == ["short", "short", "long", "long"]
    assert all(name.removesuffix(", from storage") in found for name in stored)
    for name, figures in stored.items():
        fetched, whole = figures["bytes"]["ours"], figures["bytes"]["whole"]
        path = short if name.startswith("short") else long
        assert whole == path.stat().st_size and (fetched == whole if path == short else 0 < fetched < whole)
        assert figures["wall_ratios"]["ours_over_whole_file_by_pyav"].low > 0


def children() -> set[str]:
    """Of this process, those included that have ended and were not waited for."""
    threads = Path("/proc/self/task").iterdir()
    return {pid for thread in threads for pid in (thread / "children").read_text().split()}


def calibrated_job(folder: Path, **changes: Any) -> Path:
    """Answers that take all their tokens, so that planned and real generation are as long."""
    clips(folder / "videos", 6)
    parts = {"frames": {"count": 8}, "generate": {"max_new_tokens": 8}, "prune": {"method": "uniform"}}
    return job_file(folder, **{**parts, **changes})


def test_a_calibration_makes_a_budget_in_hours_solvable(tmp_path: Path) -> None:
    path = calibrated_job(tmp_path)
    unknown = plan(JobSpec.load(path))
    assert unknown.gpu_hours is None and "bench calibrate" in describe(unknown)
    with pytest.raises(BudgetError, match="bench calibrate"):
        plan(JobSpec.load(path, ("budget={gpu_hours: 1}",)))
    found = calibrate(Options(job=path))
    kept = calibration.load(unknown.revision, "auto")
    assert kept == found["calibration"] and Path(found["file"]).is_file()
    assert (kept.kind, kept.dtype, kept.bytes_per_number) == ("cpu", "float32", 4)
    for name, spread in found["rates"].items():
        assert spread.low <= spread.median <= spread.high and getattr(kept, name) == int(spread.median)
    timed = plan(JobSpec.load(path))
    assert timed.device == kept.device and timed.gpu_hours and timed.gpu_hours_vanilla
    half = (timed.gpu_hours + timed.gpu_hours_vanilla) / 2
    solved = plan(JobSpec.load(path, (f"budget={{gpu_hours: {half}, scope: total}}",)))
    assert solved.budget.floor <= solved.budget.planned <= solved.budget.limit
    assert abs(solved.budget.limit - half * 3600 * 10**9) <= 1  # whole nanoseconds
    assert solved.keep > timed.keep, "more time than the ratio took"


def test_a_calibration_runs_the_batch_that_a_captioner_of_a_long_job_has() -> None:
    """On a GPU the largest there is: a short job's smaller one would belie the rates."""
    spec = job_of(Options())
    batches = [calibrate_module._batch(spec, torch.device(kind)) for kind in ("cuda", "cpu")]
    assert batches == [MOST_ON_GPU, BATCH_ON_CPU]
    asked = spec.changed(cluster={"caption": {"batch_videos": 5}})
    assert calibrate_module._batch(asked, torch.device("cuda")) == 5


def test_generating_takes_the_time_of_joining_too(bed: Bed, clock: Clock) -> None:
    """Each step takes a second: two groups are encoded, prefilled and joined, and then all of it is finished."""
    engine = Pair.of(bed).pruned
    sources = engine.sources(frames(bed, 2))
    work = calibrate_module._Work(engine, [sources[:1], sources[1:]], 8, clock.takes(1.0))
    with torch.inference_mode():
        rates = work.round()
    bill, moved = engine.bill(sources[0]), engine.bytes_moved(engine.clip_shape(sources[0]), 8, 2)
    assert rates.vision_flops_per_s == 2 * bill.vision / 2 and rates.prefill_flops_per_s == 2 * bill.llm / 2
    assert rates.generate_bytes_per_s == 2 * moved / 3


def planned_over_taken(path: Path) -> float:
    calibrate(Options(job=path))
    spec = JobSpec.load(path)
    priced = plan(spec)
    engine = Engine.of(spec, priced)
    captioner, reader = engine.load(1), Reader(engine.sampling, engine.size, Limits())
    shown = [reader.read(str(one)).pixels_FHWC for one in sorted((path.parent / "videos").iterdir())]
    asked = [
        Clip(one, tuple(Ask(f"{i}-{p.id}", p.kind, p.text or "") for p in spec.prompts)) for i, one in enumerate(shown)
    ]
    captioner.annotate(asked[:2])
    batches = [captioner.annotate(asked[i : i + 2]) for i in range(0, len(asked), 2)]
    answers = [answer for batch in batches for some in batch for answer in some]
    took_s = sum(answer.model_s for answer in answers if not isinstance(answer, Exception))
    assert priced.gpu_hours is not None
    print(f"planned {priced.gpu_hours * 3600:.3f} s, took {took_s:.3f} s")
    return priced.gpu_hours * 3600 / took_s


def test_the_planned_time_is_about_the_time_that_the_model_takes(tmp_path: Path) -> None:
    """The machine may slow down between the two; a plan that is wrong is wrong every time."""
    path = calibrated_job(tmp_path)
    assert any(1 / AGREE < planned_over_taken(path) < AGREE for _ in range(TRIES))


@pytest.mark.slow
def test_a_run_takes_about_the_time_that_was_planned(tmp_path: Path, ray_cluster: None) -> None:
    path = calibrated_job(tmp_path)
    calibrate(Options(job=path))
    priced, summary = plan(JobSpec.load(path)), run(JobSpec.load(path))
    assert summary["annotated"] == priced.prompts and priced.gpu_hours is not None
    assert 1 / AGREE < priced.gpu_hours * 3600 / summary["model_s"] < AGREE


@pytest.mark.slow
def test_scale_counts_every_row_and_cannot_beat_its_captioners(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = dict(vision_flops_per_s=10**9, prefill_flops_per_s=10**9, generate_bytes_per_s=10**9)
    revision = resolve("embedded:tiny").revision
    calibration.save(
        Calibration("cpu x 1", "cpu", "embedded:tiny", revision, "float32", 4, 2, **rates, measured_at="2")
    )
    # Twenty seconds of work: rows come in handfuls, and of one second's work a handful alone is more than a tenth.
    monkeypatch.setattr(scale, "_clip_s", lambda *_: 0.1)
    found = scale.scale(Options(rows=(200,), actors=(1,), frames=8))
    (one,) = found["runs"]
    assert (one["rows"], one["actors"], found["device"]) == (200, 1, "cpu x 1")
    assert 0 < one["share_of_captioners"] <= 1.1 and one["driver_grown_mb"] >= 0
    assert one["share_of_captioners"] == pytest.approx(one["rows_per_s"] * 0.1)


def test_rows_that_all_come_at_once_have_no_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = ([Outcome(annotations=[annotation(0), annotation(1)])] for _ in range(1))
    monkeypatch.setattr("mlb_batch.chain.arrivals.everything", lambda *_: looks)
    with pytest.raises(SpecError, match=r"2 rows with 5 actors all came at once; give more --rows"):
        scale._run(scale._job(tmp_path, Options(), 2), {}, clip_s=0.1, rows=2, actors=5)


def test_a_clip_has_no_more_frames_than_in_a_job(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(lambda: app(["bench", "prefill", "--frames", "100000000"])) == 2
    assert "--frames" in capsys.readouterr().err


def test_a_shape_s_random_weights_are_a_model_that_a_job_can_name() -> None:
    made = random_model(shapes.checkpoint("tiny"), CPU, torch.float32)
    folder = saved_model(shapes.checkpoint("tiny"), CPU, torch.float32)
    spec = JobSpec.from_dict(
        {"input": {"videos": "nowhere/*"}, "prompts": [{"id": "c", "kind": "caption", "text": PROMPT}],
         "model": str(folder), "output": "nowhere"}
    )  # fmt: skip
    loaded = load(setup(spec).checkpoint, CPU, torch.float32)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in made.state_dict().items())
    with pytest.raises(SpecError, match="--model and --shape both"):
        pipeline(Options(shape="mid", model=str(folder)))


def test_the_pipeline_s_sides_get_the_same_threads_share_and_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    options = Options(clips=2, frames=8, new_tokens=4, ratio=0.5, threads=2)
    spec = pipeline_module._job(options, "embedded:tiny", tmp_path)
    assert spec.budget.ratio == 0.5 and pipeline_module._job(Options(clips=1), "m", tmp_path).budget.ratio == 0.273
    threads: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(pipeline_module, "_answered", lambda *_: float(threads.append(torch.get_num_threads()) is None))
        pipeline_module._without_ray(spec, 1, options)
    assert threads == [1], "as many as Ray leaves to its captioner, whatever --threads is"
    (tmp_path / "clips" / "broken.mp4").write_bytes(b"none")
    before = children()
    with pytest.raises(InputError, match=r"--videos: .*broken\.mp4: .*take it out"):
        pipeline_module._without_ray(spec, 1, replace(options, clips=9))
    assert children() <= before


def test_settings_without_a_job_are_not_passed_over() -> None:
    with pytest.raises(SpecError, match="--set changes a job: name it with --job"):
        calibrate(replace(QUICK, sets=("frames.count=4",)))


def test_options_that_a_job_has_instead_are_not_passed_over(tmp_path: Path) -> None:
    """What was measured would be other work than was asked for."""
    with pytest.raises(SpecError, match=r"^--method, --ratio, --new-tokens: the job says it; change it with --set"):
        calibrate(Options(job=tmp_path / "job.yaml", method="fastv", ratio=0.5, new_tokens=4))
    assert job_of(Options(ratio=0.5, method="fastv")).budget.ratio == 0.5


def test_a_place_that_is_none_is_said_in_a_line() -> None:
    with pytest.raises(SpecError, match=r"^--videos: must name a bucket or a host behind s3://$"):
        read(Options(videos="s3://"))


def test_threads_are_read_as_openmp_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2,1")
    with captioner_threads(torch.device("cpu")) as threads:
        assert threads == torch.get_num_threads() == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    with (
        pytest.raises(SpecError, match=r"^OMP_NUM_THREADS: 'many' is no number"),
        captioner_threads(torch.device("cpu")),
    ):
        pass


def test_calibrating_says_figures_and_nothing_of_how_weights_are_loaded(
    capfd: pytest.CaptureFixture[str], own_calibrations: None
) -> None:
    assert ended(lambda: app(["bench", "calibrate", "--frames", "2", "--new-tokens", "2", "--batch", "1"])) == 0
    said = capfd.readouterr().err
    assert "calibrate ..." in said and "Loading" not in said and "token_id" not in said


def test_the_benchmarks_are_named_where_one_looks_for_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(lambda: app(["bench", "--help"])) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in NAMES)


@pytest.mark.slow
def test_the_pipeline_is_held_against_the_captioner_without_ray(ray_cluster: None) -> None:
    found = pipeline(Options(clips=32, frames=8, new_tokens=8, batch=4))
    assert found["batch"] == 4
    rates, ratio = found["rows_per_s"], found["ratios"]["ray_over_direct"]
    assert min(rates["ray"].low, rates["direct"].low) > 0
    assert rates["ray"].low / rates["direct"].high <= ratio.low <= ratio.high <= rates["ray"].high / rates["direct"].low


def test_the_command_prints_text_for_people_and_one_line_of_json() -> None:
    code, figures, err = mlb_batch("bench", "vision", "--frames", "2", "--batch", "1")
    assert code == 0 and list(figures["benchmarks"]) == ["vision"] and figures["machine"]["threads"] >= 1
    assert "ratios / vanilla over transformers" in err


def test_a_benchmark_that_is_not_there_is_named() -> None:
    with pytest.raises(SpecError, match=r"'prefil' is no benchmark.*did you mean 'prefill'"):
        bench(["prefil"], QUICK, lambda _: None)
    with pytest.raises(SpecError, match="--shape"):
        bench(["captioner"], replace(QUICK, shape="8b"), lambda _: None)


def test_an_option_that_none_of_the_benchmarks_takes_is_named_with_those_that_do() -> None:
    asked = replace(QUICK, videos="/nowhere", readers=9)
    with pytest.raises(SpecError) as refused:
        bench(["vision", "scale"], asked, lambda _: None)
    assert str(refused.value).splitlines() == [
        "bench vision scale: --ratio goes with calibrate, prefill, generate, captioner, pipeline",
        "bench vision scale: --videos goes with read, pipeline",
        "bench vision scale: --readers goes with pipeline",
    ]
    with pytest.raises(SpecError, match=r"^bench read: --set goes with calibrate$"):
        bench(["read"], Options(sets=("frames.count=4",)), lambda _: None)
    with pytest.raises(SpecError, match=r"^bench scale: --rounds goes with (?!.*scale).*pipeline$"):
        bench(["scale"], Options(rounds=9), lambda _: None)
    with pytest.raises(SpecError, match=r"^bench pipeline: --threads goes with (?!.*pipeline)"):
        bench(["pipeline"], Options(threads=2), lambda _: None)


def test_every_option_is_some_benchmark_s() -> None:
    assert {one.name for one in fields(Options)} == set[str]().union(*TAKES.values())
    assert Options().given == ()


def test_the_command_refuses_what_its_benchmark_does_not_take() -> None:
    code, _, err = mlb_batch("bench", "vision", "--readers", "9", "--model", "no-such", "--job", "/no/such.yaml")
    assert code == 2 and [line.rpartition("--")[2] for line in err.splitlines()] == [
        "model goes with calibrate, pipeline, scale", "job goes with calibrate", "readers goes with pipeline"
    ]  # fmt: skip


def test_the_engine_is_measured_where_there_is_neither_ray_nor_av() -> None:
    """A GPU machine that has torch and transformers is enough."""
    without = "import sys; sys.modules.update(dict.fromkeys(('ray', 'av', 's3fs', 'aiobotocore'))); "
    command = "from mlb_batch.cli import main; main()"
    asked = ("vision", "generate", "--frames", "8", "--ratio", "0.5", "--batch", "1", "--new-tokens", "2")
    process = start(sys.executable, "-c", without + command, "bench", *asked)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-2000:]
    assert set(json.loads(out.splitlines()[-1])["benchmarks"]) == {"vision", "generate"}


def test_nothing_but_the_command_line_imports_the_benchmarks() -> None:
    users = {
        module
        for module, path in MODULES.items()
        if any(name.startswith("mlb_batch.bench") for name in imports(tree(path)))
    }
    assert {one for one in users if not one.startswith("mlb_batch.bench")} == {"mlb_batch.cli"}


def test_clips_of_noise_are_the_same_every_time() -> None:
    assert all(np.array_equal(a, b) for a, b in zip(random_clips(2, 3, 16), random_clips(2, 3, 16), strict=True))
