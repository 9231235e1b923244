"""A process that runs jobs one after the other on one Ray of its own: a job in, as JSON; its summary out, as JSON."""

from __future__ import annotations

import json
import sys

from mlb_batch import JobSpec, run
from mlb_batch.chain.cluster import start_local


def main() -> None:
    start_local(num_cpus=2)
    for line in sys.stdin:
        print(json.dumps(run(JobSpec.from_dict(json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
