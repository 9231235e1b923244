"""Run as a process of its own: clips with large frames go through a small object store to a captioner that is slow.

Prints one JSON object: rows, the bytes of frames that were read, the store's size, what Ray says was spilled, and what
the driver's own memory grew by.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray._private.internal_api import memory_summary
from ray.data import ActorPoolStrategy, DataContext
from small_jobs import clips, spec

from mlb_batch.chain.arrivals import arriving
from mlb_batch.chain.cluster import data_context
from mlb_batch.chain.feed import VideoSource
from mlb_batch.chain.parts import Part
from mlb_batch.chain.pools import LEAST_A_LOOK
from mlb_batch.chain.strikes import Strikes
from mlb_batch.errors import RowError
from mlb_batch.rows import Constants
from mlb_batch.source import inspect
from mlb_batch.stages import Caption, ReadFrames
from mlb_batch.video import FrameSize, Sampling
from mlb_batch.work import History

STORE_BYTES = 100 << 20
FRAMES, SIDE = 10, 384
CLIP_S = 0.2  # reading one takes about a tenth of it


class Slow:
    without_result = 0

    def annotate(self, clips: Sequence[Any]) -> list[list[RowError]]:
        time.sleep(CLIP_S * len(clips))
        return [[RowError("bad_prompt", "nothing was asked")] * len(clip.asks) for clip in clips]


def own_mb() -> int:
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) >> 10


def main(folder: Path, videos: int) -> None:
    clips(folder / "videos", videos)
    job = spec(folder)
    found = inspect(job)
    ray.init(address="local", num_cpus=2, object_store_memory=STORE_BYTES, include_dashboard=False, log_to_driver=False)
    ray.cloudpickle.register_pickle_by_value(sys.modules["__main__"])
    past, strikes = ray.put(History("fingerprint", job.retry)), Strikes()
    rows = 0
    with DataContext.current(data_context(LEAST_A_LOOK)):
        source = ray.data.read_datasource(VideoSource(job, found, past, Part()), num_cpus=0, override_num_blocks=1)
        reading = (job, Sampling(FRAMES), FrameSize((SIDE, SIDE)), strikes, None)
        frames = source.map_batches(ReadFrames, fn_constructor_args=reading, batch_format="pyarrow", batch_size=1,
                                    num_cpus=1, compute=ActorPoolStrategy(size=1))  # fmt: skip
        captioning = (Slow, Constants("model", "none", "per_prompt"), strikes, 1)
        done = frames.map_batches(Caption, fn_constructor_args=captioning, batch_format="pyarrow", batch_size=2,
                                  num_cpus=0.75, compute=ActorPoolStrategy(size=1))  # fmt: skip
        before_mb = grown_mb = own_mb()
        with arriving(done) as arrivals:
            while (outcomes := arrivals.take(1.0)) is not None:
                grown_mb = max(grown_mb, own_mb())
                rows += sum(len(one.errors) for one in outcomes)
    spilled = [
        line
        for line in memory_summary(ray.get_runtime_context().gcs_address, stats_only=True).splitlines()
        if "Spilled" in line
    ]
    moved = videos * FRAMES * SIDE * SIDE * 3
    told = {"rows": rows, "frame_bytes": moved, "store_bytes": STORE_BYTES, "spilled": spilled}
    print(json.dumps({**told, "driver_grew_mb": grown_mb - before_mb}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
