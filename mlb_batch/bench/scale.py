"""`scale`: the chain and the ledger at many rows and many captioners, each of which only takes a real one's time.

The source, Ray Data, the driver's loop and the Parquet files are real; captioners sleep for what the calibration says
that a clip takes, and no frames travel. Rows a second are counted once a tenth has arrived and the actors stand, and
set against what the captioners alone would do; the driver's memory is what it grew by.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset

from mlb_batch.bench.calibrate import calibrate
from mlb_batch.bench.options import Options
from mlb_batch.bench.ours import PROMPT
from mlb_batch.bench.simulated import NoFrames, Simulated
from mlb_batch.books import Uncommitted
from mlb_batch.cost import calibration
from mlb_batch.cost.budget import Measure
from mlb_batch.cost.calibration import NANO, Calibration
from mlb_batch.cost.schedule import ClipShape
from mlb_batch.cost.solve import Pricer
from mlb_batch.engine import Engine
from mlb_batch.errors import SpecError
from mlb_batch.ledger import Ledger
from mlb_batch.planning import Setup, plan, setup
from mlb_batch.rows import Constants, annotation_row
from mlb_batch.source import Prompt, Video, inspect
from mlb_batch.spec import JobSpec
from mlb_batch.video import Frames
from mlb_batch.vlm.captioner import Ask, Clip
from mlb_batch.work import Ask as Asked
from mlb_batch.work import Counts, History, Row, Work

ACTOR_CPUS = 0.01  # they sleep
READERS, READER_CPUS = 8, 0.02
BATCH = 2
STARTING_SHARE = 0.1  # until so many rows have come, actors still start
_PAGE = os.sysconf("SC_PAGE_SIZE")


def scale(options: Options) -> dict[str, Any]:
    from mlb_batch.chain.cluster import connected, data_context
    from mlb_batch.chain.pools import MOST_A_LOOK

    with tempfile.TemporaryDirectory(prefix="mlb-batch-bench-") as scratch:
        spec = _job(Path(scratch), options, 1)
        device, template = _calibrated(spec, options), _real_row(spec)
        clip_s = _clip_s(spec, setup(spec), device) / options.speed
        runs = []
        with connected(), DataContext.current(data_context(MOST_A_LOOK)):
            for rows in options.rows:
                for actors in options.actors:
                    folder = Path(scratch) / f"{rows}-{actors}"
                    folder.mkdir()
                    runs.append(_run(_job(folder, options, rows), template, clip_s, rows, actors))
    return {"device": device.device, "clip_s": clip_s, "runs": runs}


def _job(folder: Path, options: Options, rows: int) -> JobSpec:
    """A manifest of videos that are never opened."""
    manifest = folder / "manifest.jsonl"
    with manifest.open("w") as file:
        file.writelines(json.dumps({"uri": f"{folder}/{n:07}.mp4", "video_id": f"v{n:07}"}) + "\n" for n in range(rows))
    return JobSpec.from_dict({
        "input": {"manifest": str(manifest), "id_column": "video_id", "changed": "never"},
        "prompts": [{"id": "caption", "kind": "caption", "text": PROMPT}],
        "model": {"id": options.model, "device": options.device},
        "frames": {"count": options.frames or 32},
        "generate": {"max_new_tokens": options.new_tokens or 32},
        "output": f"{folder}/out",
    })  # fmt: skip


def _calibrated(spec: JobSpec, options: Options) -> Calibration:
    """What an earlier calibration says of this model, or a new one."""
    found = calibration.load(setup(spec).checkpoint.revision, spec.model.device, spec.model.dtype)
    if found is None:
        calibrate(options)
        found = calibration.load(setup(spec).checkpoint.revision, spec.model.device, spec.model.dtype)
    assert found is not None
    return found


def _clip_s(spec: JobSpec, means: Setup, device: Calibration) -> float:
    """Of a clip with one short prompt, unpruned."""
    clip = ClipShape(spec.frames.count, means.shape.side, means.shape.side, 16, means.shape.trailer, (16,))
    measure = Measure("total", "exact", spec.generate.max_new_tokens, device)
    return Pricer(means.shape, means.method, measure, means.pair_shape).vanilla_clip(clip) / NANO


def _real_row(spec: JobSpec) -> Row:
    """As the engine and the stages make it, of one clip of noise."""
    captioner, px = Engine.of(spec, plan(spec)).load(gpus=1), setup(spec).checkpoint.vision_size
    pixels_FHWC = np.random.default_rng(0).integers(0, 256, (1, px, px, 3)).astype(np.uint8)
    (answers,) = captioner.annotate([Clip(pixels_FHWC, (Ask("row", "caption", PROMPT),))])
    asked = Asked("row", Prompt("caption", "caption", PROMPT), 1)
    work = Work(Video("v", "v.mp4", None, None, (asked.prompt,), {}), "", None, None, (asked,), Counts())
    frames = Frames(pixels_FHWC, (0.0,) * spec.frames.count, spec.frames.count, 1.0, False, 0)
    same = Constants(spec.model.id, spec.prune.method, spec.prune.select)
    answer = answers[0]
    assert not isinstance(answer, Exception), answer
    return annotation_row(work, asked, frames, answer, 0.0, same)


def _run(spec: JobSpec, template: Row, clip_s: float, rows: int, actors: int) -> dict[str, Any]:
    from mlb_batch.chain.arrivals import everything
    from mlb_batch.chain.parts import parts
    from mlb_batch.chain.pools import OF_A_READER

    committing: list[float] = []
    ledger = Ledger(spec.output.uri, "simulated", "scale")
    arrived, first, first_s, last_s = 0, 0, 0.0, 0.0
    way = partial(_chain, spec, template, clip_s, actors)
    with (
        _grown_mb() as grown_mb,
        Uncommitted(ledger, spec.output.commit_rows, committing.append) as waiting,
        closing(everything(way, parts(rows, 1, 1.0, OF_A_READER * READERS), spec.limits)) as arrivals,
    ):
        for outcomes in arrivals:
            arrived += sum(len(one.annotations) for one in outcomes)
            waiting.add(outcomes)
            last_s = time.monotonic() if outcomes else last_s
            if not first_s and arrived >= rows * STARTING_SHARE:
                first, first_s = arrived, last_s
            memory_mb = grown_mb()
    assert arrived == waiting.written == rows, (arrived, waiting.written, rows)
    if arrived == first:
        raise SpecError(f"bench: {rows} rows with {actors} actors all came at once; give more --rows to measure a rate")
    per_s = (arrived - first) / (last_s - first_s)
    return {
        "rows": rows, "actors": actors, "rows_per_s": per_s, "share_of_captioners": per_s * clip_s / actors,
        "driver_grown_mb": memory_mb, "committing_share": sum(committing) / (last_s - first_s),
    }  # fmt: skip


def _chain(spec: JobSpec, template: Row, clip_s: float, actors: int, part: Any) -> Dataset:
    """As in run.py, with readers that open nothing."""
    from mlb_batch.chain.feed import VideoSource
    from mlb_batch.chain.pools import BATCHES_IN_FLIGHT

    captioners = ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=BATCHES_IN_FLIGHT)
    past = ray.put(History("simulated", spec.retry))
    source = VideoSource(spec, inspect(spec), past, part)
    return ray.data.read_datasource(source, num_cpus=0, override_num_blocks=1).map_batches(
        NoFrames, batch_format="pyarrow", batch_size=1, num_cpus=READER_CPUS, compute=ActorPoolStrategy(size=READERS),
    ).map_batches(
        Simulated, fn_constructor_args=(template, clip_s), batch_format="pyarrow", batch_size=BATCH,
        num_cpus=ACTOR_CPUS, compute=captioners,
    )  # fmt: skip


@contextmanager
def _grown_mb() -> Iterator[Any]:
    """Most that this process has grown by since, at the moments at which one asks."""
    before, most = _resident(), 0

    def grown() -> float:
        nonlocal most
        most = max(most, _resident() - before)
        return most / 2**20

    yield grown


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE
