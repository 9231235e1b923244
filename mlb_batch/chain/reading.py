"""The first half of the chain: manifest -> videos with something to do -> clips with frames."""

from __future__ import annotations

from typing import Any

import ray
from ray.data import ActorPoolStrategy, Dataset

from mlb_batch.chain.feed import VideoSource
from mlb_batch.chain.parts import Part
from mlb_batch.chain.pools import BATCHES_IN_FLIGHT, Pools
from mlb_batch.chain.strikes import Strikes
from mlb_batch.engine import Engine
from mlb_batch.source import Inspection
from mlb_batch.spec import JobSpec
from mlb_batch.stages import ReadFrames
from mlb_batch.work import History


def clips_with_frames(spec: JobSpec, engine: Engine, sizes: Pools, found: Inspection, history: History,
                      strikes: Strikes, part: Part) -> Dataset:  # fmt: skip
    past = ray.put(history)
    reading = (spec, engine.sampling, engine.size, strikes, past if spec.clips else None)
    videos = ray.data.read_datasource(VideoSource(spec, found, past, part), num_cpus=0, override_num_blocks=1)
    return videos.map_batches(
        ReadFrames, fn_constructor_args=reading, batch_format="pyarrow", batch_size=1,
        num_cpus=sizes.read_cpus, compute=ActorPoolStrategy(min_size=sizes.readers[0], max_size=sizes.readers[1]),
    )  # fmt: skip


def captioners(sizes: Pools) -> dict[str, Any]:
    """What Ray Data is told of the actors behind: those that have the model."""
    least, most = sizes.captioners
    actors = ActorPoolStrategy(min_size=least, max_size=most, max_tasks_in_flight_per_actor=BATCHES_IN_FLIGHT)
    return {"num_cpus": sizes.caption_cpus, "num_gpus": sizes.caption_gpus, "compute": actors}
