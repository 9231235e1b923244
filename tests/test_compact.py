"""Compaction on a local disk and on a real S3 server: readers see every row once, whatever is killed when."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import mlb_batch
from compacting import Reader
from faultproxy import FaultProxy
from ledger_rows import FINGERPRINT, OTHER, Place, annotation, error, row_id
from s3server import S3Server
from writer_process import Writer

from mlb_batch.errors import OutputError
from mlb_batch.ledger import Lease, Ledger, RunFolder, compact, publish, read_current, tidy, verify
from mlb_batch.ledger.compact import SHUT, STAGE
from mlb_batch.ledger.parts import Seqs, list_seqs, rows_of, standing
from mlb_batch.ledger.runs import in_place, last_target_mb, point
from mlb_batch.page import write_page
from mlb_batch.report import report
from mlb_batch.storage import Store, open_store

SCRIPT = str(Path(__file__).with_name("compacting.py"))
MB = 2**20


def filled(uri: str, files: int, rows: int = 2, first: int = 0, fingerprint: str = FINGERPRINT) -> list[str]:
    """Commits that many small files more; the ids of all that is there then."""
    ledger = Ledger(uri, fingerprint, f"run-{first}")
    for n in range(first, first + files):
        ledger.commit([annotation(n * rows + i, fingerprint) for i in range(rows)], [])
    return [row_id(n, fingerprint) for n in range((first + files) * rows)]


def names(uri: str, kind: str = "annotations", fingerprint: str = FINGERPRINT) -> list[str]:
    return open_store(uri).list(f"{kind}/{fingerprint}")


def rows(uri: str) -> list[dict[str, Any]]:
    """Every row, whole and in order, by a plain read of the folder."""
    store = open_store(uri)
    parts = [store.read(f"annotations/{FINGERPRINT}/{name}") for name in names(uri)]
    tables = [pq.read_table(pa.BufferReader(data)) for data in parts]
    return sorted((row for one in tables for row in one.to_pylist()), key=lambda row: row["annotation_id"])


# --- what it leaves


def test_small_files_become_few_and_every_row_stays_as_it_was(place: Place) -> None:
    ids = filled(place.uri, 12)
    ledger = Ledger(place.uri, FINGERPRINT, "run-x")
    for attempt in (1, 2, 3):
        ledger.commit([], [error(90, attempt), error(91, attempt)])
    filled(place.uri, 3, fingerprint=OTHER)
    publish(place.uri, FINGERPRINT, "run-0")
    before, current = rows(place.uri), read_current(place.uri)

    done = compact(place.uri, "compaction", 256, grace_s=0)

    assert (done.files_before, done.files_after, done.merged) == (18, 3, 3)
    assert names(place.uri) == ["part-000000-000011.parquet"]
    assert names(place.uri, "errors") == ["part-000000-000002.parquet"]
    assert names(place.uri, fingerprint=OTHER) == ["part-000000-000002.parquet"]
    assert rows(place.uri) == before and sorted(place.ids()) == sorted(ids)
    assert read_current(place.uri) == current, "after a compaction the files are where they were"
    assert verify(place.uri) == [] and open_store(place.uri).list(STAGE) == []


def test_the_ledger_goes_on_from_what_was_merged(place: Place) -> None:
    filled(place.uri, 4)
    Ledger(place.uri, FINGERPRINT, "run-1").commit([], [error(90), error(91)])
    Ledger(place.uri, FINGERPRINT, "run-1").commit([], [error(90, attempt=2)])
    before = Ledger(place.uri, FINGERPRINT, "run-2")
    compact(place.uri, "compaction", 256, grace_s=0)
    after = Ledger(place.uri, FINGERPRINT, "run-3")
    assert after.attempts() == before.attempts() and len(after.done()) == len(before.done()) == 8
    assert after.commit([annotation(n) for n in range(9)], []) == 1, "what is done is known"
    assert names(place.uri) == ["part-000000-000003.parquet", "part-000004.parquet"]
    assert sum(row["num_new_tokens"] for row in after.rows(["num_new_tokens"])) == 9
    filled(place.uri, 2, rows=9, first=1)
    compact(place.uri, "compaction-2", 256, grace_s=0)
    assert names(place.uri) == ["part-000000-000006.parquet"]
    assert sorted(place.ids()) == sorted(row_id(n) for n in range(27)) and verify(place.uri) == []


def test_with_nothing_to_merge_nothing_is_written(tmp_path: Path) -> None:
    filled(str(tmp_path), 3)
    compact(str(tmp_path), "first", 256, grace_s=0)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert compact(str(tmp_path), "second", 256, grace_s=60).merged == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


def test_files_grow_to_the_target_and_not_beyond_and_large_ones_stay(tmp_path: Path) -> None:
    dice = random.Random(4)
    ledger = Ledger(str(tmp_path), FINGERPRINT, "run")
    sizes = [100, 150, 700, 300, 300, 300, 200, 50]  # kB that don't compress
    for n, size in enumerate(sizes):
        ledger.commit([annotation(n, text=dice.randbytes(size * 1000).hex())], [])
    compact(str(tmp_path), "compaction", 1, grace_s=0)
    sizes_by_name = {path.name: path.stat().st_size for path in (tmp_path / "annotations" / FINGERPRINT).iterdir()}
    assert sorted(sizes_by_name) == [
        "part-000000-000001.parquet", "part-000002.parquet", "part-000003-000005.parquet", "part-000006-000007.parquet"
    ]  # fmt: skip
    assert max(sizes_by_name.values()) <= MB
    assert sorted(Place(str(tmp_path)).ids()) == sorted(row_id(n) for n in range(8)) and verify(str(tmp_path)) == []


def test_a_file_of_many_rows_has_few_row_groups(tmp_path: Path) -> None:
    filled(str(tmp_path), 30, rows=3)
    compact(str(tmp_path), "compaction", 256, grace_s=0)
    [path] = (tmp_path / "annotations").rglob("*.parquet")
    file = pq.ParquetFile(path)
    assert (file.metadata.num_row_groups, file.metadata.num_rows) == (1, 90)
    keys = [key for key in file.metadata.metadata if key.startswith(b"mlb_batch.")]
    assert len(keys) == len(set(keys)) == 6 and file.metadata.metadata[b"mlb_batch.fingerprint"] == FINGERPRINT.encode()


def test_the_command_takes_the_target_from_the_job(tmp_path: Path) -> None:
    filled(str(tmp_path), 3)
    RunFolder(str(tmp_path), "run-0").write_spec("output: {uri: x, target_file_mb: 1}\n")
    code, said, err = mlb_batch("compact", str(tmp_path))
    assert (code, said["files_before"], said["files_after"]) == (0, 3, 1) and "3 files before, 1 now" in err
    code, _, err = mlb_batch("compact", str(tmp_path / "nowhere"))
    assert code == 2 and "no annotations are here" in err and not (tmp_path / "nowhere").exists()


def test_the_target_is_that_of_the_newest_job_file_and_a_damaged_one_is_not_believed(tmp_path: Path) -> None:
    default = last_target_mb(str(tmp_path))
    RunFolder(str(tmp_path), "run-0").write_spec("output: {uri: x, target_file_mb: 16}\n")
    (tmp_path / "runs" / "run-1").mkdir()  # a compaction's: it has no job file
    assert last_target_mb(str(tmp_path)) == 16
    RunFolder(str(tmp_path), "run-2").write_spec("output: x\n")
    assert last_target_mb(str(tmp_path)) == default
    RunFolder(str(tmp_path), "run-3").write_spec("output: {uri: x, target_file_mb: 32}\n")
    spec = tmp_path / "runs" / "run-3" / "spec.yaml"
    spec.write_bytes(spec.read_bytes().replace(b"mb: 32", b"mb: 92"))
    with pytest.raises(OutputError, match=r"run-3/spec\.yaml: .*checksum differs.*; delete it"):
        last_target_mb(str(tmp_path))


def test_it_refuses_where_a_run_is_at_work_or_a_file_is_damaged(tmp_path: Path) -> None:
    filled(str(tmp_path), 4)
    with Lease(str(tmp_path), "the-run"), pytest.raises(OutputError, match="the-run"):
        compact(str(tmp_path), "compaction", 256, grace_s=0)
    path = tmp_path / "annotations" / FINGERPRINT / "part-000002.parquet"
    sound = path.read_bytes()
    path.write_bytes(sound[:200] + bytes([sound[200] ^ 4]) + sound[201:])
    with pytest.raises(OutputError, match=r"part-000002\.parquet: .*checksum differs.*nothing was merged"):
        compact(str(tmp_path), "compaction", 256, grace_s=0)
    assert len(names(str(tmp_path))) == 4
    record = next((tmp_path / "runs").glob("*/ledger.json"))
    said, stray = record.read_bytes(), tmp_path / "runs" / "damaged" / "ledger.json"
    path.write_bytes(sound)
    stray.parent.mkdir()
    stray.write_bytes(said[:-9])
    with pytest.raises(OutputError, match=r"damaged/ledger\.json"):
        compact(str(tmp_path), "compaction", 256, grace_s=0)
    assert len(names(str(tmp_path))) == 4
    shutil.rmtree(stray.parent)
    path.unlink()  # that it is gone must go on showing
    compact(str(tmp_path), "compaction", 256, grace_s=0)
    assert names(str(tmp_path)) == ["part-000000-000001.parquet", "part-000003.parquet"]
    assert {finding.path.rpartition("/")[2] for finding in verify(str(tmp_path))} == {path.name, FINGERPRINT}


def test_rows_that_stand_twice_are_not_merged(tmp_path: Path) -> None:
    filled(str(tmp_path), 2)
    filled(str(tmp_path / "elsewhere"), 3, first=-2)  # its last file holds the rows of our first
    there, here = (root / "annotations" / FINGERPRINT for root in (tmp_path / "elsewhere", tmp_path))
    (there / "part-000002.parquet").rename(here / "part-000002.parquet")
    before = names(str(tmp_path))
    with pytest.raises(OutputError, match="rows stand twice; nothing was merged"):
        compact(str(tmp_path), "compaction", 256, grace_s=0)
    assert names(str(tmp_path)) == before and len(before) == 3


def test_void_files_are_known_by_their_names() -> None:
    every = [Seqs(0, 9), Seqs(3, 3), Seqs(0, 4), Seqs(10, 10), Seqs(11, 20), Seqs(11, 11), Seqs(20, 20), Seqs(21, 21)]
    assert standing(reversed(every)) == [Seqs(0, 9), Seqs(10, 10), Seqs(11, 20), Seqs(21, 21)]


# --- readers


@contextmanager
def reading(uri: str, way: str, ids: list[str]) -> Iterator[dict[str, int]]:
    """A process that reads without a pause; what it saw is there when the block has ended."""
    job = json.dumps({"output": uri, "way": way, "ids": ids})
    process = subprocess.Popen(
        [sys.executable, SCRIPT, "read", job], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    seen: dict[str, int] = {}
    try:
        assert process.stdout is not None and process.stdout.readline() == "reading\n"
        yield seen
        out, _ = process.communicate("enough\n", timeout=60)
        seen.update({"right": 0, "wrong": 0, "refused": 0} | json.loads(out))
    finally:
        process.kill()
        process.wait(10)


def compactions_under_readers(place: Place, rounds: int, files: int, grace_s: float) -> dict[str, dict[str, int]]:
    """Two readers over the rows of now, while they are merged again and again; each round begins with small files."""
    seen: dict[str, dict[str, int]] = {way: {"right": 0, "wrong": 0, "refused": 0} for way in ("current", "plain")}
    for round_ in range(rounds):
        ids = filled(place.uri, files, first=round_ * files)
        publish(place.uri, FINGERPRINT, "run-0")
        with reading(place.uri, "current", ids) as current, reading(place.uri, "plain", ids) as plain:
            assert compact(place.uri, f"compaction-{round_}", 256, grace_s).merged == 1
        for way, counts in (("current", current), ("plain", plain)):
            assert counts["right"] > 0, counts
            seen[way] = {key: seen[way][key] + counts[key] for key in counts}
    assert verify(place.uri) == []
    print(seen)
    return seen


def check_readers(seen: dict[str, dict[str, int]]) -> None:
    assert seen["current"]["wrong"] == seen["current"]["refused"] == 0
    assert seen["plain"]["wrong"] == 0, "a plain read is right or an error, never a wrong answer"


def test_readers_see_every_row_once_while_files_are_merged(tmp_path: Path) -> None:
    check_readers(compactions_under_readers(Place(str(tmp_path)), rounds=2, files=12, grace_s=2))


@pytest.mark.slow
def test_readers_of_many_compactions(place: Place) -> None:
    check_readers(compactions_under_readers(place, rounds=20, files=15, grace_s=2))


def test_a_report_in_the_middle_of_compactions_counts_right(tmp_path: Path) -> None:
    filled(str(tmp_path), 6)
    turn = threading.Semaphore()  # a compaction begins once a report has ended, and the next report beside it

    def compactions() -> None:
        for round_ in range(8):
            turn.acquire()
            compact(str(tmp_path), f"compaction-{round_}", 256, grace_s=0)
            Ledger(str(tmp_path), FINGERPRINT, "run").commit([annotation(1000 + round_)], [])

    at_work = threading.Thread(target=compactions, daemon=True)
    at_work.start()
    counts = []
    for _ in range(8):
        counts.append(report(str(tmp_path), FINGERPRINT)["annotations"])
        turn.release()
    at_work.join()
    assert counts == sorted(counts) and counts[0] >= 12 and counts[-1] <= 20
    assert report(str(tmp_path), FINGERPRINT)["annotations"] == 20


def test_a_page_is_read_again_where_files_are_exchanged_under_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = str(tmp_path / "out")
    filled(output, 6)

    def exchanged(store: Store, kind: str, *rest: Any) -> Iterator[pa.Table]:
        listed = rows_of(store, kind, *rest)
        if kind == "annotations" and len(names(output)) > 1:
            compact(output, "compaction", 256, grace_s=0)
        return listed

    monkeypatch.setattr("mlb_batch.page.cards.rows_of", exchanged)
    monkeypatch.setattr("mlb_batch.ledger.parts._EXCHANGE_S", 0.0)
    assert write_page(output, tmp_path / "page.html")["annotations"] == 12
    assert "All 12 answers" in (tmp_path / "page.html").read_text()


# --- kills


def cut(uri: str, steps: int) -> bool:
    """A compaction that is killed before its step of that number; whether it came to the end before."""
    job = json.dumps({"output": uri, "steps": steps})
    done = subprocess.run([sys.executable, SCRIPT, "cut", job], capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode == 0


def kills(place: Place, first: int, step: int) -> int:
    """A kill before every `step`-th write of a compaction: readers, the next run and the next compaction are right."""
    for steps in range(first, 100, step):
        uri = f"{place.uri}-{steps}"
        ids = filled(uri, 3)
        Ledger(uri, FINGERPRINT, "run").commit([], [error(90)])
        Ledger(uri, FINGERPRINT, "run").commit([], [error(90, attempt=2)])
        publish(uri, FINGERPRINT, "run-0")
        whole = cut(uri, steps)
        reader = Reader(uri)
        assert sorted(reader.ids(reader.files_of_current())) == sorted(ids), f"killed before step {steps}"
        _sound_or_shut(uri, ids)
        if steps % 2:  # a run comes next, or a compaction
            with Lease(uri, "run-1") as lease:
                tidy(uri)
                ledger = Ledger(uri, FINGERPRINT, "run-1", lease=lease)
                assert len(ledger.done()) == 6 and ledger.attempts()[row_id(90)].attempts == 2
                assert ledger.commit([annotation(n) for n in range(7)], []) == 1
                ids = [*ids, row_id(6)]
            publish(uri, FINGERPRINT, "run-1")
            assert sorted(Place(uri).ids()) == sorted(ids) == sorted(reader.ids(reader.files_of_current()))
        compact(uri, "again", 256, grace_s=0)
        compact(uri, "and-again", 256, grace_s=0)  # what a reader might have been at then is swept up now
        assert sorted(Place(uri).ids()) == sorted(ids) == sorted(reader.ids(reader.files_of_current()))
        assert verify(uri) == [] and len(names(uri)) <= 2 and open_store(uri).list(STAGE) == []
        if whole:
            return steps
    raise AssertionError("a compaction has fewer steps")


def _sound_or_shut(uri: str, ids: list[str]) -> None:
    """A plain read after the kill is right, unless the folder says that it is shut; verify says that it was cut off."""
    findings = [finding for finding in verify(uri) if "cut off" not in finding.problem]
    assert findings == []
    if SHUT in names(uri):
        with pytest.raises(Exception, match="magic bytes"):
            Place(uri).ids()
    else:
        assert sorted(Place(uri).ids()) == sorted(ids)


def test_killed_anywhere_it_leaves_what_the_next_run_or_compaction_mends(tmp_path: Path) -> None:
    steps = kills(Place(f"{tmp_path}/out"), first=1, step=3)
    assert steps > 12, "the kills should fall on every window"


@pytest.mark.parametrize("remedy", ["compact", "run"])
def test_what_was_cut_off_is_mended_too_where_its_folder_was_deleted_by_hand(remedy: str, tmp_path: Path) -> None:
    uri, store = str(tmp_path), open_store(str(tmp_path))
    ids = filled(uri, 3)
    publish(uri, FINGERPRINT, "run-0")
    gone = f"{STAGE}/cut.annotations.{FINGERPRINT}.part-000000-000002.parquet"
    point(store, {**in_place(FINGERPRINT), "annotations": [gone]})  # as a compaction leaves it that is killed here
    assert [finding.path for finding in verify(uri)] == [gone]
    if remedy == "compact":
        compact(uri, "again", 256, grace_s=0)
    else:
        tidy(uri)
    reader = Reader(uri)
    assert sorted(reader.ids(reader.files_of_current())) == sorted(ids) and verify(uri) == []


@pytest.mark.slow
def test_killed_before_every_single_write(place: Place) -> None:
    kills(place, first=0, step=1)


# --- writers that wake too late


def test_a_write_that_lands_after_others_wrote_and_merged_is_withdrawn(s3: S3Server) -> None:
    """A run's put hangs on the way; its lease runs out, another run writes more, all is merged; then the put lands."""
    place = Place(f"s3://{s3.make_bucket()}/out")
    filled(place.uri, 2)
    with (
        FaultProxy(s3.port, "hold", r"/annotations/.*part-000002\.parquet") as proxy,
        Writer(place.uri, 10, 2, lease_ttl_s=1.5, asleep_s=1.0, environment=s3.environment(proxy.port)) as late,
    ):
        assert late.hear() == "ready" and proxy.caught.wait(30)
        late.signal(signal.SIGSTOP)
        stopped_s = time.monotonic()
        with Lease(place.uri, "run-2", ttl_s=1.5) as lease:
            other = Ledger(place.uri, FINGERPRINT, "run-2", lease=lease)
            assert [other.commit([annotation(n), annotation(n + 1)], []) for n in (4, 6)] == [2, 2]
        compact(place.uri, "compaction", 256, grace_s=0)
        assert time.monotonic() - stopped_s > 1.0, "only a write that took long is looked at again"
        proxy.release.set()
        late.signal(signal.SIGCONT)
        said = late.hear_all()
    assert "others wrote here and compacted" in said[-1], said
    assert sorted(place.ids()) == sorted(row_id(n) for n in range(8))
    assert names(place.uri) == ["part-000000-000003.parquet"] and verify(place.uri) == []


def test_what_was_written_too_late_is_void(tmp_path: Path) -> None:
    filled(str(tmp_path), 4)
    compact(str(tmp_path), "compaction", 256, grace_s=0)
    late = Ledger(str(tmp_path / "elsewhere"), FINGERPRINT, "late")
    late.commit([annotation(1), annotation(50)], [])
    folder = tmp_path / "annotations" / FINGERPRINT
    (tmp_path / "elsewhere" / "annotations" / FINGERPRINT / "part-000000.parquet").rename(
        folder / "part-000002.parquet"
    )
    ledger = Ledger(str(tmp_path), FINGERPRINT, "run-2")
    assert len(ledger.done()) == 8 and row_id(50) not in ledger.done()
    assert "in another file" in next(one.problem for one in verify(str(tmp_path)) if "000002" in one.path)
    assert list_seqs(open_store(str(tmp_path)), "annotations", FINGERPRINT) == [Seqs(0, 3)]
    compact(str(tmp_path), "again", 256, grace_s=0)
    assert verify(str(tmp_path)) == [] and names(str(tmp_path)) == ["part-000000-000003.parquet"]
