"""Reading never runs away from captioning: what waits between them is bounded, and nothing is spilled to disk."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import kill_all, start
from ray.data import DataContext

from mlb_batch.chain.cluster import data_context
from mlb_batch.chain.pools import MOST_A_LOOK

PROMPTS, VIDEOS = 2, 50


@pytest.mark.whole_run
@pytest.mark.slow
def test_a_slow_captioner_holds_reading_back(tmp_path: Path) -> None:
    told = printed("slow_consumer.py", tmp_path, VIDEOS)
    assert told["rows"] == VIDEOS * PROMPTS
    assert told["frame_bytes"] > 2 * told["store_bytes"], "the store could have held it all: nothing was shown"
    assert told["spilled"] == [] and told["driver_grew_mb"] < 200


@pytest.mark.whole_run
@pytest.mark.slow
def test_a_batch_that_the_store_has_no_room_for_is_made_smaller(tmp_path: Path) -> None:
    """Ray Data lets what is beyond its bounds through one clip every ten seconds: that would be four minutes."""
    told = printed("small_store.py", tmp_path, 24, 32)
    assert (told["annotated"], told["errors"]) == (24, 0)
    assert told["wall_s"] < 2 * (told["read_s"] + told["model_s"]) + 30


def printed(script: str, *arguments: object) -> dict[str, Any]:
    process = start(sys.executable, str(Path(__file__).with_name(script)), *map(str, arguments))
    try:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err[-2000:]
    finally:
        kill_all(process)
    told: dict[str, Any] = json.loads(out.splitlines()[-1])
    return told


def test_what_is_set_is_what_ray_knows() -> None:
    """One of the settings has no public name: a Ray that renames it must not go unnoticed."""
    assert vars(data_context(MOST_A_LOOK)).keys() == vars(DataContext.get_current()).keys()
