"""The ledger on a local disk and on a real S3 server: nothing doubled, nothing lost, whatever is killed when."""

from __future__ import annotations

import pickle
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faultproxy import FaultProxy
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_rows import FINGERPRINT, OTHER, Place, annotation, error, row_id
from s3server import S3Server
from writer_process import Writer

from mlb_batch.columns import ANNOTATION_COLUMNS, ERROR_COLUMNS
from mlb_batch.errors import JobError, OutputError
from mlb_batch.ledger import Attempt, DoneIds, Ledger, annotation_id, fingerprint, pending, verify
from mlb_batch.ledger.ids import MERGE_AT
from mlb_batch.ledger.parts import FILES_AT_ONCE, handfuls, list_seqs
from mlb_batch.ledger.seal import check_seal
from mlb_batch.source import Prompt
from mlb_batch.spec_parts import RetrySpec
from mlb_batch.storage import open_store

PROMPT = Prompt("q", "qa", "Why?")


def folder(output: str, kind: str = "annotations") -> str:
    return f"{output}/{kind}/{FINGERPRINT}"


# --- one writer


def test_rows_come_back_with_exactly_the_columns_of_the_interface(tmp_path: Path) -> None:
    titles = pa.schema([("title", pa.string()), ("year", pa.int64())])
    ledger = Ledger(str(tmp_path), FINGERPRINT, "run-1", titles)
    rows = [annotation(n, title="Of \x1b[31m =cmd()", year=None) for n in range(3)]
    assert ledger.commit(rows, [error(9)]) == 4

    table = pq.read_table(tmp_path / "annotations")
    assert table.column_names == [*ANNOTATION_COLUMNS, "title", "year"]
    assert table.to_pylist()[2].items() >= rows[2].items()
    assert set(table["run_id"].to_pylist()) == {"run-1"} and set(table["fingerprint"].to_pylist()) == {FINGERPRINT}
    assert pq.read_table(tmp_path / "errors").column_names == list(ERROR_COLUMNS)
    metadata = pq.ParquetFile(next((tmp_path / "annotations").rglob("*.parquet"))).metadata.metadata
    assert metadata[b"mlb_batch.run_id"] == b"run-1" and metadata[b"mlb_batch.fingerprint"] == FINGERPRINT.encode()


def test_a_sum_of_one_file_may_take_more_than_64_bits(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path), FINGERPRINT, "run-1")
    ledger.commit([annotation(n, flops_prefill=2**62) for n in range(3)], [])
    assert len(list((tmp_path / "annotations").rglob("*.parquet"))) == 1
    assert sum(row["flops_prefill"] for row in ledger.rows(["flops_prefill"])) == 3 * 2**62


def test_a_second_commit_of_the_same_rows_writes_nothing(place: Place) -> None:
    ledger = Ledger(place.uri, FINGERPRINT, "run-1")
    rows = [annotation(n) for n in range(5)]
    assert ledger.commit(rows[:3], []) == 3
    assert ledger.commit([*rows, rows[4]], [error(1)]) == 2, "what is new, once; no error for what is annotated"
    again = Ledger(place.uri, FINGERPRINT, "run-2")
    assert again.commit(rows, []) == 0
    assert sorted(place.ids()) == sorted(row_id(n) for n in range(5))
    assert open_store(place.uri).list(f"annotations/{FINGERPRINT}") == ["part-000000.parquet", "part-000001.parquet"]


def test_a_row_with_a_null_or_without_a_column_is_our_own_mistake(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path), FINGERPRINT, "run-1")
    with pytest.raises(AssertionError, match="null in"):
        ledger.commit([annotation(1, choice=None)], [])
    short = annotation(1)
    del short["choice"]
    with pytest.raises(AssertionError, match="choice"):
        ledger.commit([short], [])


def test_files_stay_below_the_target_size(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path), FINGERPRINT, "run-1", target_file_mb=1)
    noise = random.Random(3)
    rows = [annotation(n, text=noise.randbytes(200_000).hex()) for n in range(8)]
    assert ledger.commit(rows, []) == 8
    sizes = [path.stat().st_size for path in Path(folder(str(tmp_path))).iterdir()]
    assert len(sizes) >= 3 and max(sizes) <= 2**20


def test_rows_of_unlike_size_stay_below_it_and_only_one_that_alone_is_larger_does_not(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path), FINGERPRINT, "run-1", target_file_mb=1)
    noise = random.Random(3)
    lengths = [400_000] * 3 + [1] * 20 + [1_500_000] + [1] * 20
    rows = [annotation(n, text=noise.randbytes(length).hex()) for n, length in enumerate(lengths)]
    assert ledger.commit(rows, []) == len(rows)
    parts = {part: pq.read_metadata(part).num_rows for part in Path(folder(str(tmp_path))).iterdir()}
    assert [held for part, held in parts.items() if part.stat().st_size > 2**20] == [1]
    assert sum(parts.values()) == len(rows) and len(parts) < 16


def test_attempts_are_counted_over_runs_until_a_row_succeeds(place: Place) -> None:
    Ledger(place.uri, FINGERPRINT, "run-1").commit([], [error(1), error(2, error_class="corrupt"), error(3)])
    second = Ledger(place.uri, FINGERPRINT, "run-2")
    assert second.commit([annotation(3)], [error(1, attempt=2), error(1, attempt=1)]) == 2
    attempts = Ledger(place.uri, FINGERPRINT, "run-3").attempts()
    assert attempts == {
        row_id(1): Attempt(2, True),
        row_id(2): Attempt(1, False),
    }


def test_what_is_tried_again() -> None:
    rules, all_again = RetrySpec(attempts=3), RetrySpec(attempts=3, errors=True)
    assert pending(None, rules)
    assert pending(Attempt(2, True), rules)
    assert not pending(Attempt(3, True), rules)
    assert not pending(Attempt(1, False), rules)
    assert pending(Attempt(9, False), all_again)


def test_two_fingerprints_stand_beside_each_other(place: Place) -> None:
    Ledger(place.uri, FINGERPRINT, "run-1").commit([annotation(1)], [])
    ledger = Ledger(place.uri, OTHER, "run-2")
    assert len(ledger.done()) == 0
    ledger.commit([annotation(1, OTHER)], [])
    assert place.ids() == [row_id(1)] and place.ids(OTHER) == [row_id(1, OTHER)]


def test_other_columns_are_refused(tmp_path: Path) -> None:
    Ledger(str(tmp_path), FINGERPRINT, "run-1").commit([annotation(1)], [])
    with pytest.raises(OutputError, match=r"other columns \(title: \w+ then, \w+ now\)"):
        Ledger(str(tmp_path), FINGERPRINT, "run-2", pa.schema([("title", pa.string())]))


def test_another_schema_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlb_batch.ledger.parts.SCHEMA_VERSION", 0)  # what an older version would have written
    Ledger(str(tmp_path), FINGERPRINT, "run-1").commit([annotation(1)], [])
    monkeypatch.undo()
    (tmp_path / "annotations" / "0000000000000000").mkdir()  # of another fingerprint, whose files were deleted by hand
    with pytest.raises(OutputError, match="schema version 0, this is 2"):
        Ledger(str(tmp_path), OTHER, "run-2")


def test_a_full_disk_fails_the_job_and_leaves_nothing_behind(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path), FINGERPRINT, "run-1")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, before[1]))  # a write beyond fails like one on a full disk
    try:
        with pytest.raises(JobError, match="can't write"):
            ledger.commit([annotation(1)], [])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert ledger.commit([annotation(1)], []) == 1


def test_a_place_in_a_bucket_that_cannot_be_listed_is_refused() -> None:
    """A run there saw nothing of what stands, and computed all of it again, night after night."""
    with pytest.raises(OutputError, match=r"s3://bucket//nightly: two slashes stand behind the bucket's name"):
        open_store("s3://bucket//nightly")
    with pytest.raises(OutputError, match=r"s3://: names no bucket"):
        open_store("s3://")
    assert open_store("s3://bucket/annotations//nightly").uri == "s3://bucket/annotations//nightly"


@pytest.mark.parametrize("uri", ["memory://out", "https://localhost/out"])
def test_nothing_is_written_where_two_writers_would_not_know_of_each_other(uri: str) -> None:
    for write in (open_store(uri).create, open_store(uri).replace):
        with pytest.raises(OutputError, match=r"out: nothing is written there; use a folder, s3://, gs:// or az://"):
            write("lease.json", b"{}")


# --- two writers, and writers that die


def race(place: Place, rounds: int, environment: dict[str, str] | None = None) -> None:
    """Two processes commit the same rows at the same moment, each in its own order, for each of many fingerprints."""
    fingerprints = [f"{n:016x}" for n in range(rounds)]
    writers = [
        Writer(place.uri, 6, 3, fingerprints=fingerprints, paced=True, shift=shift, environment=environment)
        for shift in (0, 3)
    ]
    with writers[0], writers[1]:
        for _ in fingerprints:
            for writer in writers:
                while (line := writer.hear()) != "ready":
                    assert line.startswith("committed"), line
            for writer in writers:
                writer.say()
        for writer in writers:
            assert writer.hear_all()[-1] == "done"
    for one in fingerprints:
        assert sorted(place.ids(one)) == sorted(row_id(n, one) for n in range(6)), one


def test_racing_writers_double_nothing(place: Place) -> None:
    race(place, 10 if place.uri.startswith("s3") else 30)


@pytest.mark.slow
def test_a_hundred_races(place: Place) -> None:
    race(place, 100)


def kill_and_resume(place: Place, rounds: int, seed: int) -> None:
    """Writers are killed with -9 at random moments; after each kill a plain read is sound and holds all that was
    acknowledged, and the last writer completes exactly what is missing."""
    count, batch, dice = rounds * 40, 4, random.Random(seed)  # more than all rounds together can commit
    for _ in range(rounds):
        acknowledged = len(place.ids())
        with Writer(place.uri, count, batch) as writer:
            assert writer.hear() == "ready"
            for _ in range(dice.randint(0, 8)):
                acknowledged += int(writer.hear().removeprefix("committed "))
            writer.signal(signal.SIGKILL)
            writer.process.wait(10)
        ids = place.ids()
        assert len(ids) == len(set(ids)) and len(ids) >= acknowledged
    with Writer(place.uri, count, batch) as writer:
        assert writer.hear_all()[-1] == "done"
    assert sorted(place.ids()) == sorted(row_id(n) for n in range(count))
    names = open_store(place.uri).list(f"annotations/{FINGERPRINT}")
    assert names == [f"part-{n:06d}.parquet" for n in range(len(names))]


def test_kill_nine_and_resume(place: Place) -> None:
    kill_and_resume(place, rounds=3, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_many_kills(place: Place, seed: int) -> None:
    kill_and_resume(place, rounds=10, seed=seed)


def test_a_writer_that_wakes_after_another_wrote_adds_nothing(place: Place) -> None:
    with Writer(place.uri, 20, 5, paced=True) as zombie:
        assert zombie.hear() == "ready"
        zombie.signal(signal.SIGSTOP)
        with Writer(place.uri, 20, 5) as other:
            assert other.hear_all()[-1] == "done"
        zombie.signal(signal.SIGCONT)
        zombie.say()
        assert zombie.hear_all() == [*["committed 0"] * 4, "done"]
    assert sorted(place.ids()) == sorted(row_id(n) for n in range(20))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.sets(st.integers(0, 12), max_size=5)), max_size=15))
def test_any_interleaving_of_writers_writes_each_row_once(steps: list[tuple[int, bool, set[int]]]) -> None:
    """Four writers, each with the view of when it was last opened, commit overlapping rows in any order."""
    with tempfile.TemporaryDirectory() as output:
        writers: dict[int, Ledger] = {}
        wanted: set[str] = set()
        for writer, reopen, numbers in steps:
            if reopen or writer not in writers:
                writers[writer] = Ledger(output, FINGERPRINT, f"run-{writer}")
            written = writers[writer].commit([annotation(n) for n in numbers], [])
            assert written == len({row_id(n) for n in numbers} - wanted)
            wanted |= {row_id(n) for n in numbers}
            assert sorted(Place(output).ids()) == sorted(wanted)
        if wanted:  # a place with nothing in it is refused as a mistyped one
            assert verify(output) == []


# --- a storage that answers badly


@pytest.mark.parametrize("fault", ["drop_reply", "answer_409", "cut_in_half", "answer_503"])
def test_a_bad_answer_to_a_commit_neither_loses_nor_doubles(s3: S3Server, fault: str) -> None:
    _commit_through_faults(s3, fault, commits=10)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["drop_reply", "answer_409", "cut_in_half", "answer_503"])
def test_fifty_bad_answers(s3: S3Server, fault: str) -> None:
    _commit_through_faults(s3, fault, commits=50)


def _commit_through_faults(server: S3Server, fault: str, commits: int) -> None:
    """Every first PUT of a file meets the fault."""
    place = Place(f"s3://{server.make_bucket()}/out")
    with FaultProxy(server.port, fault, r"/annotations/.*part-\d+\.parquet") as proxy:
        with Writer(place.uri, commits * 2, 2, environment=server.environment(proxy.port)) as writer:
            lines = writer.hear_all()
        assert lines[-1] == "done" and lines.count("committed 2") == commits
        assert proxy.faults == commits
    assert sorted(place.ids()) == sorted(row_id(n) for n in range(commits * 2))
    assert len(open_store(place.uri).list(f"annotations/{FINGERPRINT}")) == commits


def test_an_outage_is_waited_out(s3: S3Server) -> None:
    _commit_through_an_outage(s3, outage_s=3)


@pytest.mark.slow
def test_an_outage_longer_than_a_request_may_take(s3: S3Server) -> None:
    _commit_through_an_outage(s3, outage_s=60)


def _commit_through_an_outage(server: S3Server, outage_s: float) -> None:
    """The server stands still (SIGSTOP) in the middle of the commits."""
    place = Place(f"s3://{server.make_bucket()}/out")
    with Writer(place.uri, 40, 2) as writer:
        assert writer.hear() == "ready" and writer.hear() == "committed 2"
        server.stand_still()
        try:
            time.sleep(outage_s)  # the outage itself: nothing is waited for
        finally:
            server.go_on()
        assert writer.hear_all()[-1] == "done"
    assert sorted(place.ids()) == sorted(row_id(n) for n in range(40))


def test_refused_credentials_are_one_line_at_once(s3: S3Server) -> None:
    place = f"s3://{s3.make_bucket()}/out"
    code = f"from mlb_batch.ledger import Ledger; Ledger({place!r}, {FINGERPRINT!r}, 'run')"
    environment = {**s3.environment(), "AWS_SECRET_ACCESS_KEY": "wrong", "PATH": "/usr/bin"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    last = done.stderr.strip().splitlines()[-1]
    assert "JobError" in last and "check the credentials" in last


@pytest.mark.parametrize("listens", [False, True])
@pytest.mark.parametrize("call", ["read('a')", "replace('a', b'1')", "create('a', b'1')", "list('a')"])
def test_a_storage_that_never_answers_ends_the_job(listens: bool, call: str) -> None:
    """Nobody is at its port, or somebody who takes every request and says nothing."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listens:
            silent.listen()
        code = (
            "from mlb_batch import storage, storage_errors\nstorage.ANSWER_S = 1\n"
            f"with storage_errors.patience_of(1):\n    storage.open_store('s3://bucket/out').{call}\n"
        )
        environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
            "PATH": "/usr/bin",
        }
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
        )
    assert "run the same command again to resume" in done.stderr.strip().splitlines()[-1]


# --- memory


def test_a_log_of_large_files_is_read_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, dice = Ledger(str(tmp_path), FINGERPRINT, "run-1"), random.Random(3)
    for n in range(12):
        ledger.commit([annotation(n, text=dice.randbytes(2**19).hex())], [])
    size = max(path.stat().st_size for path in (tmp_path / "annotations").rglob("*.parquet"))
    monkeypatch.setattr("mlb_batch.ledger.parts.BYTES_AT_ONCE", 2 * size)
    assert verify(str(tmp_path)) == []  # what is loaded with the first one is no file's
    with most_held() as held:
        assert len(Ledger(str(tmp_path), FINGERPRINT, "run-2").done()) == 12 and verify(str(tmp_path)) == []
        assert held() < 6 * size


def test_a_checksum_copies_no_file(tmp_path: Path) -> None:
    long = random.Random(3).randbytes(2**19).hex()
    Ledger(str(tmp_path), FINGERPRINT, "run-1").commit([annotation(1, text=long)], [])
    data = next((tmp_path / "annotations").rglob("*.parquet")).read_bytes()
    with most_held() as held:
        check_seal(data)
        assert held() < len(data) / 10


@contextmanager
def most_held() -> Iterator[Callable[[], int]]:
    """The most bytes that Python's own objects took inside."""
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_many_small_files_are_read_at_once(tmp_path: Path) -> None:
    for n in range(20):
        Ledger(str(tmp_path), FINGERPRINT, f"run-{n}").commit([annotation(n)], [])
    store = open_store(str(tmp_path))
    every = list_seqs(store, "annotations", FINGERPRINT)
    some = list(handfuls(store, "annotations", FINGERPRINT, every))
    assert [len(one) for one in some] == [FILES_AT_ONCE, 20 - FILES_AT_ONCE] and [*some[0], *some[1]] == every


# --- ids


@settings(deadline=None)
@given(st.sets(st.binary(min_size=16, max_size=16)), st.binary(min_size=16, max_size=16))
def test_done_ids_are_a_set(ids: set[bytes], other: bytes) -> None:
    done = pickle.loads(pickle.dumps(DoneIds(one.hex() for one in ids)))
    done.update(one.hex() for one in ids)
    assert len(done) == len(ids)
    assert all(one.hex() in done for one in ids)
    assert (other.hex() in done) == (other in ids)


def test_a_million_done_ids_are_sixteen_megabytes() -> None:
    dice = random.Random(5)
    ids = [dice.randbytes(16).hex() for _ in range(3 * MERGE_AT)]
    assert len(pickle.dumps(DoneIds(ids))) < 17 * len(ids)


def test_done_ids_of_sixteen_times_the_rows_take_little_more_than_sixteen_times_as_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mlb_batch.ledger.ids.MERGE_AT", 2048)
    dice = random.Random(6)

    def seconds_of_this_process(count: int) -> float:
        ids, done = [dice.randbytes(16).hex() for _ in range(count)], DoneIds()
        begun_s = time.process_time()
        for start in range(0, count, 1000):
            done.update(ids[start : start + 1000])
        assert len(done) == count and ids[0] in done
        return time.process_time() - begun_s

    few, many = (seconds_of_this_process(count) for count in (16_000, 256_000))
    assert many < 50 * few, "where each new piece sorts all that came before it is about 200 times"


ALTERED: list[Callable[[], str]] = [
    lambda: annotation_id("w", "1", 0.0, 5.0, PROMPT, "f"),
    lambda: annotation_id("v", "2", 0.0, 5.0, PROMPT, "f"),
    lambda: annotation_id("v", "1", None, 5.0, PROMPT, "f"),
    lambda: annotation_id("v", "1", 0.0, 5.5, PROMPT, "f"),
    lambda: annotation_id("v", "1", 0.0, 5.0, Prompt("q2", "qa", "Why?"), "f"),
    lambda: annotation_id("v", "1", 0.0, 5.0, Prompt("q", "choice", "Why?"), "f"),
    lambda: annotation_id("v", "1", 0.0, 5.0, Prompt("q", "qa", "How?"), "f"),
    lambda: annotation_id("v", "1", 0.0, 5.0, Prompt("q", "qa", "Why?", ("a",)), "f"),
    lambda: annotation_id("v", "1", 0.0, 5.0, PROMPT, "g"),
]


def test_whatever_makes_another_annotation_makes_another_id() -> None:
    first = annotation_id("v", "1", 0.0, 5.0, PROMPT, "f")
    assert len({first, *(make() for make in ALTERED)}) == 1 + len(ALTERED)
    assert annotation_id("v", "1", 0.0, 5.0, Prompt("q", "qa", "Why?"), "f") == first
    assert len(first) == 32


def test_a_fingerprint_is_of_the_content_not_of_its_order() -> None:
    assert fingerprint({"a": 1, "b": {"c": [1, 2.5], "d": None}}) == fingerprint(
        {"b": {"d": None, "c": [1, 2.5]}, "a": 1}
    )
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert len(fingerprint({})) == 16


def test_what_a_disk_refuses_is_said_in_one_line(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "whole").write_bytes(b"12345")
    (tmp_path / "rows" / "dangling").symlink_to(tmp_path / "nowhere")
    assert store.sizes("rows") == {"whole": 5}
    with pytest.raises(JobError, match=r"can't delete .*rows: "):
        store.delete("rows")
