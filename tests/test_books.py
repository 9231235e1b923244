"""The books of the driver: counts that add up, rows that reach the ledger on every way out, the unfinished work."""

from __future__ import annotations

import random
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ledger_rows import FINGERPRINT, annotation, error, read_plainly
from small_jobs import clips, ids, manifest, spec

from mlb_batch.books import Uncommitted
from mlb_batch.chain.feed import FLUSH_VIDEOS, SENT_TOGETHER, together, unfinished
from mlb_batch.chain.parts import Part
from mlb_batch.chain.strikes import STRIKES, Strikes
from mlb_batch.errors import JobError
from mlb_batch.ledger import Attempt, DoneIds, Lease, Ledger, annotation_id
from mlb_batch.source import clip_spans, inspect, videos
from mlb_batch.spec_parts import RetrySpec
from mlb_batch.stages import ReadFrames
from mlb_batch.video import FrameSize, Limits, Reader, Sampling
from mlb_batch.work import Counts, History, Outcome, item_table, items, reads


def test_rows_are_committed_by_number(tmp_path: Path) -> None:
    with Uncommitted(Ledger(str(tmp_path), FINGERPRINT, "run"), 3, lambda _: None) as rows:
        rows.add([Outcome([annotation(n)]) for n in range(2)])
        assert ids(tmp_path) == []
        rows.add([Outcome(errors=[error(2)])])
        assert len(ids(tmp_path)) == 2 and rows.written == 3


@pytest.mark.parametrize("way_out", [None, JobError("the chain broke"), KeyboardInterrupt()])
def test_what_is_finished_is_committed_on_every_way_out(tmp_path: Path, way_out: BaseException | None) -> None:
    def work() -> None:
        with Uncommitted(Ledger(str(tmp_path), FINGERPRINT, "run"), 256, lambda _: None) as rows:
            rows.add([Outcome([annotation(n)]) for n in range(5)])
            if way_out is not None:
                raise way_out

    if way_out is None:
        work()
    else:
        with pytest.raises(type(way_out)):
            work()
    assert len(read_plainly(str(tmp_path / "annotations"))) == 5


def test_where_the_ledger_refuses_it_is_not_asked_again(tmp_path: Path) -> None:
    with Lease(str(tmp_path), "mine") as lease:
        ledger = Ledger(str(tmp_path), FINGERPRINT, "run", lease=lease)
        (tmp_path / "lease.json").unlink()
        lease._renew()  # the heart's next beat
        with pytest.raises(JobError, match="lost its lease"), Uncommitted(ledger, 1, lambda _: None) as rows:
            rows.add([Outcome([annotation(1)])])
    assert ids(tmp_path) == []


def works(folder: Path, history: History, *of: Part) -> list[Any]:
    job, found = spec(folder), inspect(spec(folder))
    return [work for part in of or (Part(),) for work in unfinished(job, found, history, part)]


def history(done: list[str] | None = None, attempts: dict[str, Attempt] | None = None) -> History:
    return History(FINGERPRINT, RetrySpec(), DoneIds(done or ()), attempts or {})


def test_only_unfinished_work_is_sent_and_the_counts_of_the_rest_ride_on_it(tmp_path: Path) -> None:
    clips(tmp_path / "videos", 12)
    everything = [ask.annotation_id for work in works(tmp_path, history()) for ask in work.asks]
    assert len(everything) == len(set(everything)) == 24
    chosen = random.Random(0).sample(everything, 13)
    done, failed = chosen[:9], {key: Attempt(1, False) for key in chosen[9:]}
    sent = works(tmp_path, history(done, failed))
    assert sorted(ask.annotation_id for work in sent for ask in work.asks) == sorted(set(everything) - set(chosen))
    total = sum((work.counts + work.before for work in sent), Counts())
    assert total == Counts(videos=12, expected=24, skipped_done=9, skipped_failed=4)


def test_when_everything_is_done_only_counts_are_sent(tmp_path: Path) -> None:
    clips(tmp_path / "videos", 5)
    everything = [ask.annotation_id for work in works(tmp_path, history()) for ask in work.asks]
    sent = works(tmp_path, history(everything))
    assert len(sent) == 1 < FLUSH_VIDEOS and sent[0].asks == ()
    assert sent[0].counts + sent[0].before == Counts(videos=5, expected=10, skipped_done=10)
    assert sum(len(work.asks) for work in works(tmp_path, history(), Part(end=2))) == 4
    pairs = [Part(begin=first, end=first + 2) for first in (0, 2, 4)]
    in_parts = [ask for work in works(tmp_path, history(), *pairs) for ask in work.asks]
    assert [ask.annotation_id for ask in in_parts] == everything


def test_a_row_whose_prompts_are_partly_bad_is_one_video(tmp_path: Path) -> None:
    """The last one too, of which a part comes when all others have been sent."""
    a, b = clips(tmp_path / "videos", 2)
    rows = [{"uri": str(a), "q": [None, "Why?"]}, {"uri": str(b), "q": ["Why?", None]}]
    listed = {"manifest": str(manifest(tmp_path / "m.jsonl", rows)), "allow": ["/"]}
    job = spec(tmp_path, input=listed, prompts=[{"id": "q", "kind": "qa", "column": "q"}])
    for past in (history(), history([one.annotation_id for work in unfinished(job, inspect(job), history(), Part())
                                     for one in work.asks])):  # fmt: skip
        sent = list(unfinished(job, inspect(job), past, Part()))
        total = sum((work.counts + work.before for work in sent), Counts())
        assert (total.videos, total.expected) == (2, 4)


def test_what_an_earlier_run_could_have_is_known_from_then_on(tmp_path: Path) -> None:
    paths = [str(path) for path in clips(tmp_path / "videos", 4)]
    every = [[ask.annotation_id for ask in work.asks] for work in works(tmp_path, history())]
    sent = works(tmp_path, history([*every[1], every[3][0]]))
    assert [work.stands for work in sent] == ["", paths[1], paths[3]]


def test_a_share_is_of_the_first_rows_that_a_limit_names(tmp_path: Path) -> None:
    clips(tmp_path / "videos", 40)
    first = [work.video.uri for work in works(tmp_path, history(), Part(end=30)) if work.asks]
    some = [work.video.uri for work in works(tmp_path, history(), Part(share=0.5, end=30)) if work.asks]
    assert len(first) == 30 and 0 < len(some) < 30 and set(some) <= set(first)


def test_neighbours_about_one_clip_are_sent_together_a_few_at_a_time(tmp_path: Path) -> None:
    clips(tmp_path / "videos", 3)
    a, b, c = works(tmp_path, history())
    later = replace(a, start_s=1.0)
    row = [a, *[b] * (2 * SENT_TOGETHER + 1), a, later, replace(a, version="new"), c, c]
    sent = list(together(row))
    assert [work for some in sent for work in some] == row
    assert [len(some) for some in sent] == [1, SENT_TOGETHER, SENT_TOGETHER, 1, 1, 1, 1, 2]


def test_outcomes_come_out_of_their_table_as_they_went_in() -> None:
    outcome = Outcome([annotation(1)], [error(2)], counts=Counts(1, 2, 3, 4), read_s=0.5, model_s=1.5, idle_s=2.5)
    assert list(items(item_table([outcome, Outcome()]))) == [outcome, Outcome()]


@pytest.mark.usefixtures("ray_cluster")
def test_a_neighbour_about_the_clip_that_was_just_read_costs_nothing(tmp_path: Path) -> None:
    clips(tmp_path / "videos", 1)
    (video,) = videos(job := spec(tmp_path))
    work = history().work(video, "", (None, None))
    with closing(Strikes()) as strikes:
        step = ReadFrames(job, Sampling(1), FrameSize((8, 8), None, "bilinear"), strikes, None)
        first, again = [read for table in step(item_table([work, work])) for read in reads(table)]
    assert first.frames and again.frames and first.read_s > 0 and first.bytes_fetched > 0
    assert (again.read_s, again.bytes_fetched) == (0, 0)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("done", [0, 1, 3, -1])
def test_clips_that_ask_for_nothing_ride_on_the_first_that_does(done: int, tmp_path: Path) -> None:
    """A long video whose clips are all done is one table, not thousands; and that it could be had is known."""
    (path,) = clips(tmp_path / "videos", 1)
    job, small = spec(tmp_path, clips={"every_s": 0.1}), FrameSize((8, 8), None, "bilinear")
    (video,) = videos(job)
    with Reader(Sampling(1), small, Limits()) as reader:
        spans = clip_spans(reader.lasting_s(str(path)), job.clips)
    assert len(spans) >= 4
    done = len(spans) if done < 0 else done
    keys = [annotation_id(video.video_id, "v", *span, prompt, FINGERPRINT)
            for span in spans[:done] for prompt in video.prompts]  # fmt: skip
    past = history(keys)
    whole = replace(past.work(video, "v", (None, None)), before=Counts(videos=7, expected=1))
    with closing(Strikes()) as strikes:
        step = ReadFrames(job, Sampling(1), small, strikes, ray.put(past))
        sent = [read.work for table in step(item_table([whole])) for read in reads(table)]
    left = len(spans) - done
    assert len(sent) == max(1, left) and sent[0].stands == (video.uri if done else "")
    assert sum((work.counts + work.before for work in sent), Counts()) == Counts(7, 1 + 2 * len(spans), 2 * done)
    assert sum(len(work.asks) for work in sent) == 2 * left


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(("cut", "step"), [(None, "read"), ({"every_s": 0.1}, "length")])
def test_a_video_that_reading_processes_died_on_was_there(
    cut: dict[str, Any] | None, step: str, tmp_path: Path
) -> None:
    """As one is on which a decoder crashes: others that are refused are so for themselves, if it still can be had."""
    clips(tmp_path / "videos", 1)
    job, past = spec(tmp_path, clips=cut), history()
    (video,) = videos(job)
    work = past.work(video, "v", (None, None))
    with closing(Strikes()) as strikes:
        ray.get([strikes.record.begin.remote([f"{step} {work.key}"]) for _ in range(STRIKES)])
        reader = ReadFrames(job, Sampling(1), FrameSize((8, 8), None, "bilinear"), strikes, ray.put(past))
        (read,) = [read for table in reader(item_table([work])) for read in reads(table)]
    assert read.problem is not None
    assert (read.problem.error_class, read.in_storage) == ("decoder_crash", "found")
