"""`calibrate`: what this device does a second with a job's own model, kept for `plan` and for budgets in gpu_hours.

Measured is what the job will run: its frames, its prompts (for a column's, one that stands in), its method at its share
of the operations, in the batch and with the threads that a captioner has. Small models spend much of their time between
operations, and there the rates belong to this shape of work alone; so the counted amounts and the seconds are both
those of pruned clips.
"""

from __future__ import annotations

import datetime
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import torch

from mlb_batch.bench.machine import device_name, settler
from mlb_batch.bench.options import Options, flag
from mlb_batch.bench.ours import PROMPT, Ours, keep_at, random_clips
from mlb_batch.bench.rounds import Lap, Spread, lap
from mlb_batch.cache import writable
from mlb_batch.cost.calibration import Calibration, save, store_folder
from mlb_batch.cost.schedule import WHOLE, ClipShape
from mlb_batch.errors import BudgetError, SpecError
from mlb_batch.planning import Setup, setup
from mlb_batch.spec import DEFAULT_RATIO, JobSpec
from mlb_batch.vlm.generate import Generation, Sampling
from mlb_batch.vlm.load import load, pick_device, pick_dtype
from mlb_batch.vlm.prepare import Source
from mlb_batch.vlm.sequence import Prefilled
from mlb_batch.vlm.values import Settings

_TEXT = 16  # tokens around the visual ones, for the keep; what is then counted is counted on the real prompts
_LEAST_NEW_TOKENS = 8
_JOBS_OWN = ("model", "method", "ratio", "frames", "new_tokens")  # options that a job has instead


@dataclass(frozen=True)
class Rates:
    """One round: each part as its counted amount over its seconds."""

    vision_flops_per_s: float
    prefill_flops_per_s: float
    generate_bytes_per_s: float


def calibrate(options: Options) -> dict[str, Any]:
    spec = job_of(options)
    writable(store_folder())  # or all would be measured for nothing
    device = pick_device(spec.model.device if options.device == "auto" else options.device)
    with captioner_threads(device, options.threads) as threads:
        measured, rates = _measured(spec, device, options)
    file = save(measured)
    return {"calibration": measured, "file": str(file), "threads": threads, "rates": rates}


def job_of(options: Options) -> JobSpec:
    """The job that was given, or one that asks the model for a caption."""
    if options.job is not None:
        other = [flag(name) for name in _JOBS_OWN if name in options.given]
        if other:
            raise SpecError(f"{', '.join(other)}: the job says it; change it with --set")
        return JobSpec.load(options.job, options.sets)
    if options.sets:
        raise SpecError("--set changes a job: name it with --job")
    job: dict[str, Any] = {
        "input": {"videos": "nowhere/*"},
        "prompts": [{"id": "caption", "kind": "caption", "text": PROMPT}],
        "model": options.model,
        "output": "nowhere",
    }
    if options.frames:
        job["frames"] = {"count": options.frames}
    if options.method:
        job["prune"] = {"method": options.method}
    if options.ratio is not None:
        job["budget"] = {"ratio": options.ratio}
    if options.new_tokens:
        job["generate"] = {"max_new_tokens": options.new_tokens}
    return JobSpec.from_dict(job)


@contextmanager
def captioner_threads(device: torch.device, threads: int | None = None) -> Iterator[int]:
    """As many as Ray leaves to a captioner: on a CPU the one that its share of a core is rounded up to."""
    before = torch.get_num_threads()
    wanted = threads or (_alone() if device.type == "cpu" else before)
    torch.set_num_threads(wanted)
    try:
        yield wanted
    finally:
        torch.set_num_threads(before)


def _alone() -> int:
    given = (os.environ.get("OMP_NUM_THREADS") or "1").partition(",")[0]  # one number for each level of nesting
    if not given.strip().isdecimal() or int(given) == 0:
        raise SpecError(f"OMP_NUM_THREADS: {given!r} is no number of threads; set it to one, or give --threads")
    return int(given)


@torch.inference_mode()
def _measured(spec: JobSpec, device: torch.device, options: Options) -> tuple[Calibration, dict[str, Spread]]:
    means, dtype = setup(spec), pick_dtype(spec.model.dtype, device)
    engine = Ours.of(load(means.checkpoint, device, dtype), means.checkpoint, _settings(spec, means))
    clips = random_clips(options.batch or _batch(spec, device), spec.frames.count, means.checkpoint.vision_size)
    work = _Work.of(engine, spec, clips, settler(device))
    work.round()  # warms up
    rounds = [work.round() for _ in range(options.rounds)]
    rates = {one.name: Spread.of([getattr(some, one.name) for some in rounds]) for one in fields(Rates)}
    return Calibration(
        device=device_name(device),
        kind=device.type,
        model=means.checkpoint.name,
        revision=means.checkpoint.revision,
        dtype=str(dtype).removeprefix("torch."),
        bytes_per_number=dtype.itemsize,
        batch=work.sequences,
        measured_at=datetime.datetime.now(datetime.UTC).isoformat(),
        **{name: int(spread.median) for name, spread in rates.items()},
    ), rates


def _batch(spec: JobSpec, device: torch.device) -> int:
    """Clips at once, as the captioners of a long job will have them."""
    from mlb_batch.chain.pools import batch_of

    asked = spec.cluster.caption.batch_videos
    return batch_of(math.inf, device.type == "cuda") if asked == "auto" else asked


def _settings(spec: JobSpec, means: Setup) -> Settings:
    """A budget in hours says nothing yet of the share; the default one stands in, or the least that the method can."""
    text = (_TEXT,) * len(spec.prompts)
    clip = ClipShape(spec.frames.count, means.shape.side, means.shape.side, _TEXT, means.shape.trailer, text)
    ratio = DEFAULT_RATIO if spec.budget.ratio is None else spec.budget.ratio
    try:
        keep = WHOLE if ratio == 1 else keep_at(means.shape, means.method, clip, ratio, means.pair_shape)
    except BudgetError:
        keep = 0
    return Settings(means.method, keep, spec.generate.max_new_tokens, feature_model=means.pair)


@dataclass(frozen=True)
class _Work:
    """Clips from frames to text: those that generate together, in the groups that are prefilled together."""

    engine: Ours
    groups: list[list[Source]]
    new_tokens: int
    settle: Callable[[], None]

    @classmethod
    def of(cls, engine: Ours, spec: JobSpec, clips: list[np.ndarray], settle: Callable[[], None]) -> _Work:
        """As many of the clips as memory has room for at once."""
        sources = engine.sources(clips, [prompt.text or PROMPT for prompt in spec.prompts])
        groups = iter(engine.preparer.line(sources).next_group, [])  # nobody leaves: in the end none goes in
        new_tokens = max(_LEAST_NEW_TOKENS, spec.generate.max_new_tokens)
        return cls(engine, [[sources[i] for i in group] for group in groups], new_tokens, settle)

    @property
    def clips(self) -> int:
        return sum(map(len, self.groups))

    @property
    def sequences(self) -> int:
        return sum(len(source.texts) for group in self.groups for source in group)

    def round(self) -> Rates:
        """As a captioner does it: group by group up to the first token, and then all together."""
        engine, source = self.engine, self.groups[0][0]
        together = Generation(engine.decoder, frozenset())  # nothing stops an answer: each takes all its tokens
        encoding_s = prefilling_s = generating_s = 0.0
        for group in self.groups:
            prefilled, encoding, prefilling = self._prefilled(group)
            samplings = [Sampling(self.new_tokens)] * len(prefilled)
            _, joining = lap(partial(together.join, prefilled, samplings), self.settle)
            encoding_s, prefilling_s = encoding_s + encoding.wall_s, prefilling_s + prefilling.wall_s
            generating_s += joining.wall_s
        generating_s += lap(together.finish, self.settle)[1].wall_s
        bill = engine.bill(source)
        moved = engine.bytes_moved(engine.clip_shape(source), self.new_tokens, self.sequences)
        return Rates(
            vision_flops_per_s=self.clips * bill.vision / encoding_s,
            prefill_flops_per_s=self.clips * bill.llm / prefilling_s,
            generate_bytes_per_s=self.clips * moved / generating_s,
        )

    def _prefilled(self, group: list[Source]) -> tuple[list[Prefilled], Lap, Lap]:
        inputs, encoding = lap(partial(self.engine.encode, group), self.settle)
        prefilled, prefilling = lap(partial(self.engine.prefill, inputs), self.settle)
        return prefilled, encoding, prefilling
