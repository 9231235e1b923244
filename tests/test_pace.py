"""The source waits for what comes out of the chain: memory does not grow with the input."""

from __future__ import annotations

import threading
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
import ray
from commands import until
from small_jobs import manifest, spec

from mlb_batch.chain.feed import paced, unfinished
from mlb_batch.chain.pace import STEPS, Pace
from mlb_batch.chain.parts import Part, parts
from mlb_batch.source import inspect
from mlb_batch.spec_parts import RetrySpec
from mlb_batch.work import Counts, History, Outcome

MOST = 1000
VIDEOS = 3 * MOST


@pytest.mark.usefixtures("ray_cluster")
def test_the_source_is_never_further_ahead_than_it_may() -> None:
    pace = Pace(MOST)
    begun = ended = furthest = 0

    def source() -> None:
        nonlocal begun, furthest
        for begun in range(VIDEOS):
            pace.wait(begun)
            furthest = max(furthest, begun - ended)

    thread = threading.Thread(target=source)
    thread.start()
    until(lambda: begun >= MOST - MOST // STEPS, "the limit")
    while thread.is_alive():
        ended += 100
        pace.arrived([Outcome(counts=Counts(videos=1)), Outcome()] * 100)  # a video's second clip counts for nothing
        thread.join(0.05)
    pace.close()
    assert begun == VIDEOS - 1
    assert MOST - MOST // STEPS <= furthest <= MOST + MOST // STEPS


@pytest.mark.usefixtures("ray_cluster")
def test_rows_that_come_in_several_parts_are_told_as_often_as_they_are_counted(tmp_path: Path) -> None:
    """One whose prompts are partly bad comes once with the good ones and once with each bad one."""
    rows = [{"uri": f"{number}.mp4", "title": None if number % 2 else "a"} for number in range(200)]
    listed = {"manifest": str(manifest(tmp_path / "m.jsonl", rows)), "columns": ["title"], "changed": "never"}
    asked = [
        {"id": str(n), "kind": "qa", "text": text} for n, text in enumerate(("{title}?", "Why?", "Is it {title}?"))
    ]
    job, pace, came = spec(tmp_path, input=listed, prompts=asked), Pace(STEPS), Queue[Any]()

    def source() -> None:
        works = unfinished(job, inspect(job), History("f", RetrySpec()), Part())
        for work in paced(works, pace):
            came.put(work)
        came.put(None)

    threading.Thread(target=source, daemon=True).start()
    ended = Counts()
    while (work := came.get(timeout=60)) is not None:
        counts = work.counts + work.before
        pace.arrived([Outcome(counts=counts)])
        ended += counts
    pace.close()
    assert (ended.videos, ended.expected) == (200, 600)


@pytest.mark.usefixtures("ray_cluster")
def test_a_gate_that_died_is_told_again_what_it_forgot() -> None:
    """Fewer are under way than it is told at a time, and all have ended: nobody would tell it any more."""
    pace, through = Pace(MOST), threading.Event()
    ended, begun = 1216, 1248
    pace.arrived([Outcome(counts=Counts(videos=1))] * ended)
    ray.kill(pace._gate, no_restart=False)

    def source() -> None:
        ray.get(pace._gate.room.remote(begun, MOST))
        through.set()

    threading.Thread(target=source, daemon=True).start()
    until(lambda: pace.remind() or through.is_set(), "the source")  # as often as nothing arrives
    pace.close()


@pytest.mark.usefixtures("ray_cluster")
def test_rows_of_many_clips_are_fewer_in_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlb_batch.chain.parts.PART_CLIPS", 6)
    for clips_each, begins in ((1, [0, 6]), (2, [0, 3, 6, 9]), (100, list(range(10)))):
        made = list(parts(10, clips_each, 1.0, MOST))
        assert [part.begin for part in made] == begins and made[-1].end == 10
        for part in made:
            assert part.pace
            part.pace.close()
