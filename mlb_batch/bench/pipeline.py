"""`pipeline`: a job with Ray against the captioner without it, reading included in both: what the framework costs.

Both in steady state: counted from the first rows that are there to the last, so that neither start-up nor loading the
model is in it. Without Ray means reader children that read ahead, a captioner, and nothing else: no shipping of frames,
no ledger, no books. Both have the same readers, and one captioner with the threads that Ray gives it (OMP_NUM_THREADS).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.dataset as pds

from mlb_batch.bench.bed import saved_model
from mlb_batch.bench.calibrate import captioner_threads
from mlb_batch.bench.options import Options
from mlb_batch.bench.ours import PROMPT
from mlb_batch.bench.rounds import Spread, turns
from mlb_batch.bench.shapes import asked, checkpoint
from mlb_batch.engine import Engine
from mlb_batch.errors import InputError, RowError, SpecError
from mlb_batch.planning import plan
from mlb_batch.source.listing import video_uris
from mlb_batch.spec import JobSpec
from mlb_batch.tiny.clips import write_sample_clips
from mlb_batch.video import Limits, Reader, Several
from mlb_batch.vlm.captioner import Ask, Captioner, Clip
from mlb_batch.vlm.load import pick_device, pick_dtype

COMMITS = 8  # of a run; the first one is where counting starts


def pipeline(options: Options) -> dict[str, Any]:
    """Rounds in turn, in one Ray that stands through all of them."""
    from mlb_batch.chain.cluster import connected
    from mlb_batch.chain.pools import pools

    model = _model(options)
    with tempfile.TemporaryDirectory(prefix="mlb-batch-bench-") as scratch, connected() as nodes:
        spec = _job(options, model, Path(scratch))
        batch = pools(spec, nodes, options.clips, Engine.of(spec, plan(spec)).clip_bytes).batch_videos
        ways: dict[str, Callable[[], float]] = {
            "ray": lambda: _with_ray(_into(spec, tempfile.mkdtemp(prefix="out-", dir=scratch)), options.clips),
            "direct": lambda: _without_ray(spec, batch, options),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for name in turns(ways, options.rounds):
            rates[name].append(ways[name]())
    shares = [ray / direct for ray, direct in zip(rates["ray"], rates["direct"], strict=True)]
    return {
        "clips": options.clips,
        "readers": options.readers,
        "batch": batch,
        "rows_per_s": {name: Spread.of(some) for name, some in rates.items()},
        "ratios": {"ray_over_direct": Spread.of(shares)},
    }


def _model(options: Options) -> str:
    """The embedded model or the one that was named; of another shape, random weights in a folder."""
    if options.shape == Options.shape:
        return options.model
    if options.model != Options.model:
        raise SpecError("pipeline: --model and --shape both name a model; leave one of them out")
    device = pick_device(options.device)
    return str(saved_model(checkpoint(options.shape), device, pick_dtype("auto", device)))


def _job(options: Options, model: str, scratch: Path) -> JobSpec:
    if options.videos is None:
        write_sample_clips(scratch / "clips", options.clips, seed=0)
    wanted = asked(options)
    return JobSpec.from_dict({
        "input": {"videos": options.videos or str(scratch / "clips")},
        "prompts": [{"id": "caption", "kind": "caption", "text": PROMPT}],
        "model": {"id": model, "device": options.device},
        "frames": {"count": wanted.frames},
        "prune": {"method": wanted.method},
        "budget": {"ratio": wanted.ratio},
        "generate": {"max_new_tokens": wanted.new_tokens},
        "cluster": {
            "read": {"concurrency": [options.readers] * 2},
            "caption": {"concurrency": [1, 1], "batch_videos": options.batch or "auto"},
        },
        "output": {"uri": f"{scratch}/out", "commit_rows": max(1, options.clips // COMMITS)},
    })  # fmt: skip


def _into(spec: JobSpec, output: str) -> JobSpec:
    return spec.changed(output=spec.output.model_dump() | {"uri": output})


def _with_ray(spec: JobSpec, clips: int) -> float:
    """Rows a second between the first commit and the last."""
    from mlb_batch.run import run

    run(spec, limit=clips)
    written = pds.dataset(f"{spec.output.uri}/annotations", format="parquet").to_table(columns=["created_at"])
    moments = written["created_at"]
    first, last = pc.min(moments), pc.max(moments)
    seconds = (last.as_py() - first.as_py()).total_seconds()
    return _rate(pc.sum(pc.greater(moments, first)).as_py(), seconds)


def _rate(rows: int | None, seconds: float) -> float:
    if not rows or seconds <= 0:
        raise InputError("all rows were committed at once, so there is no steady state; give more --clips")
    return rows / seconds


def _without_ray(spec: JobSpec, batch: int, options: Options) -> float:
    """Captions a second between the first batch's end and the last's."""
    engine = Engine.of(spec, plan(spec))
    reader = partial(Reader, engine.sampling, engine.size, Limits(video_s=spec.limits.video_s))
    with (
        captioner_threads(pick_device(spec.model.device)),
        Several(reader, options.readers) as readers,
        ThreadPoolExecutor(options.readers) as pool,
    ):
        captioner = engine.load(gpus=1)
        uris = video_uris(spec.input)[: options.clips]
        clips = _read_ahead(pool, partial(_clip, readers), uris, options.readers + 2 * batch)
        return _answered(captioner, clips, batch)


def _clip(readers: Several[Reader], uri: str) -> Clip:
    try:
        with readers.one() as reader:
            return Clip(reader.read(uri).pixels_FHWC, (Ask(uri, "caption", PROMPT),))
    except RowError as error:
        raise InputError(f"--videos: {uri}: {error}; take it out: both sides need the same clips") from None


def _answered(captioner: Captioner, clips: Iterator[Clip], batch: int) -> float:
    answered, first_s = 0, 0.0
    while some := list(islice(clips, batch)):
        captioner.annotate(some)
        if first_s:
            answered += len(some)
        first_s = first_s or time.monotonic()
    return _rate(answered, time.monotonic() - first_s)


def _read_ahead(
    pool: ThreadPoolExecutor, read: Callable[[str], Clip], uris: list[str], most: int
) -> Iterator[Clip]:  # fmt: skip
    """In order, with a bounded number of clips waiting."""
    left = iter(uris)
    waiting: list[Future[Clip]] = [pool.submit(read, uri) for uri in islice(left, most)]
    while waiting:
        yield waiting.pop(0).result()
        waiting += [pool.submit(read, uri) for uri in islice(left, 1)]
