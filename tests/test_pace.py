"""The source waits for what comes out of the chain: memory does not grow with the input."""

from __future__ import annotations

import threading

import pytest
from ray_nodes import until

from mlb_batch.chain.pace import LEAST, STEPS, Pace
from mlb_batch.work import Counts, Outcome

VIDEOS = 3 * LEAST


@pytest.mark.usefixtures("ray_cluster")
def test_the_source_is_never_further_ahead_than_it_may() -> None:
    pace = Pace(takers=1)
    begun = ended = furthest = 0

    def source() -> None:
        nonlocal begun, furthest
        for begun in range(VIDEOS):
            pace.wait(begun)
            furthest = max(furthest, begun - ended)

    thread = threading.Thread(target=source)
    thread.start()
    until(lambda: begun >= LEAST - LEAST // STEPS, "the limit")
    while thread.is_alive():
        ended += 100
        pace.arrived([Outcome(counts=Counts(videos=1)), Outcome()] * 100)  # a video's second clip counts for nothing
        thread.join(0.05)
    pace.close()
    assert begun == VIDEOS - 1
    assert LEAST - LEAST // STEPS <= furthest <= LEAST + LEAST // STEPS
