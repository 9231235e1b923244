"""Run as a process of its own: a job whose batches are larger than what Ray's object store has room for.

Prints the run's summary.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ray

from mlb_batch import JobSpec, run
from mlb_batch.tiny.clips import Scope, write_sample_clips

STORE_BYTES = 100 << 20
FRAMES = 240  # 3 MB a clip


def main(folder: Path, videos: int, batch: int) -> None:
    write_sample_clips(folder / "videos", videos, 0, Scope(frames=FRAMES))
    job = JobSpec.from_dict({
        "input": {"videos": str(folder / "videos")},
        "prompts": [{"id": "flashes", "kind": "qa", "text": "How many flashes are there?"}],
        "frames": {"count": FRAMES},
        "prune": {"method": "uniform"},
        "generate": {"max_new_tokens": 4},
        "cluster": {"read": {"concurrency": 1}, "caption": {"concurrency": 1, "batch_videos": batch}},
        "output": str(folder / "out"),
    })  # fmt: skip
    ray.init(address="local", num_cpus=2, object_store_memory=STORE_BYTES, include_dashboard=False, log_to_driver=False)
    print(json.dumps(run(job)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
