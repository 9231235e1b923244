"""Reading never runs away from captioning: what waits between them is bounded, and nothing is spilled to disk."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from ray.data import DataContext
from small_jobs import kill_all, start

from mlb_batch.chain.cluster import data_context

PROMPTS, VIDEOS = 2, 50


@pytest.mark.slow
def test_a_slow_captioner_holds_reading_back(tmp_path: Path) -> None:
    process = start(sys.executable, str(Path(__file__).with_name("slow_consumer.py")), str(tmp_path), str(VIDEOS))
    try:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err[-2000:]
    finally:
        kill_all(process)
    told = json.loads(out.splitlines()[-1])
    assert told["rows"] == VIDEOS * PROMPTS
    assert told["frame_bytes"] > 2 * told["store_bytes"], "the store could have held it all: nothing was shown"
    assert told["spilled"] == [] and told["driver_grew_mb"] < 200


def test_what_is_set_is_what_ray_knows() -> None:
    """One of the settings has no public name: a Ray that renames it must not go unnoticed."""
    assert vars(data_context()).keys() == vars(DataContext.get_current()).keys()
