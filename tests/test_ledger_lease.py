"""Two runs at once: the second refuses while the first lives, and takes over when it is dead."""

from __future__ import annotations

import json
import signal
import threading
import time
from pathlib import Path

import pytest
import s3fs
from ledger_rows import FINGERPRINT, Place, annotation, row_id
from s3server import S3Server
from storm import Storm
from writer_process import Writer

from mlb_batch.errors import JobError, OutputError
from mlb_batch.ledger import Lease, Ledger
from mlb_batch.storage import open_store

TTL_S = 3.0


def test_a_second_run_is_refused_while_the_first_lives(place: Place) -> None:
    with Lease(place.uri, "run-1", TTL_S) as first:
        with (
            pytest.raises(OutputError, match="another run is writing here: run run-1 on"),
            Lease(place.uri, "b", TTL_S),
        ):
            pass
        first.check()
    with Lease(place.uri, "run-2", TTL_S) as second:  # given back, it is free at once
        second.check()
    assert "lease.json" not in open_store(place.uri).list("")


def test_a_killed_run_is_replaced_at_once(place: Place) -> None:
    with Writer(place.uri, 4, 2, lease_ttl_s=30, paced=True) as writer:
        assert writer.hear() == "ready"
        writer.signal(signal.SIGKILL)
        writer.process.wait(10)
    started_s = time.monotonic()
    with Lease(place.uri, "run-2", ttl_s=30):
        assert time.monotonic() - started_s < 10, "its process is gone: nothing is to be waited for"


def test_a_run_on_another_machine_that_stands_still_is_replaced_after_its_ttl(tmp_path: Path) -> None:
    with Lease(str(tmp_path), "run-1", TTL_S):
        lease = json.loads((tmp_path / "lease.json").read_text())
    (tmp_path / "lease.json").write_text(json.dumps({**lease, "machine": "elsewhere", "host": "elsewhere"}))
    started_s = time.monotonic()
    with Lease(str(tmp_path), "run-2", TTL_S):
        assert time.monotonic() - started_s >= TTL_S


def test_a_stopped_run_loses_its_lease_and_adds_nothing_when_it_wakes(place: Place) -> None:
    with Writer(place.uri, 6, 2, lease_ttl_s=TTL_S, paced=True) as zombie:
        assert zombie.hear() == "ready"
        zombie.signal(signal.SIGSTOP)
        with Lease(place.uri, "run-2", TTL_S) as lease:
            Ledger(place.uri, FINGERPRINT, "run-2", lease=lease).commit([annotation(n) for n in range(4)], [])
            zombie.signal(signal.SIGCONT)
            zombie.say()
            assert "JobError" in (said := zombie.hear_all()[-1]) and "lost its lease to run run-2" in said
            lease.check()
    assert sorted(place.ids()) == sorted(row_id(n) for n in range(4))


def test_a_run_that_was_stopped_in_the_middle_of_a_renewal_does_not_get_the_lease_back(tmp_path: Path) -> None:
    """It wakes between its look and its write, and writes over the run that took over."""
    with Lease(str(tmp_path), "run-1", ttl_s=60) as first:
        stale = json.loads((tmp_path / "lease.json").read_text())
        (tmp_path / "lease.json").write_text(json.dumps(stale | {"pid_started": "an earlier process"}))
        with Lease(str(tmp_path), "run-2", ttl_s=0.6) as second:
            (tmp_path / "lease.json").write_text(json.dumps(stale | {"counter": 7}))
            deadline_s = time.monotonic() + 20
            while json.loads((tmp_path / "lease.json").read_text())["run_id"] != "run-2":
                assert time.monotonic() < deadline_s, "the lease was not taken back"
            second.check()
            first._renewed_at_s = -1e9  # its next look, whenever its beats come
            with pytest.raises(JobError, match="lost its lease to run run-2"):
                first.check()


def test_of_two_runs_that_took_over_in_the_same_term_only_one_goes_on(tmp_path: Path) -> None:
    """The other one's write came after this one had looked whose lease stands."""
    with Lease(str(tmp_path), "run-1", ttl_s=60) as lease:
        mine = json.loads((tmp_path / "lease.json").read_text())
        (tmp_path / "lease.json").write_text(json.dumps(mine | {"token": "another", "run_id": "run-2"}))
        lease._renewed_at_s = -1e9  # its next look, whenever its beats come
        with pytest.raises(JobError, match="lost its lease to run run-2"):
            lease.check()
    assert json.loads((tmp_path / "lease.json").read_text())["run_id"] == "run-2", "it is the other one's"


def test_a_lease_that_ran_out_while_the_storage_was_away_is_waited_for(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else could take it meanwhile, so a commit that is due in an outage is as patient as all storage is."""
    with Storm(s3.port) as storm:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{storm.port}")
        s3fs.S3FileSystem.clear_instance_cache()
        with Lease(f"s3://{s3.make_bucket()}/out", "run-1", ttl_s=1.0) as lease:
            storm.become("slow_down", 1.0)
            end = threading.Timer(3.0, storm.become, ("calm", 0.0))  # the fault itself, three times the lease's life
            end.start()
            lease._renewed_at_s = -1e9  # its next look, whenever its beats come
            lease.check()
            assert storm.faults and not end.is_alive()
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_deleted_lease_stops_the_next_commit(tmp_path: Path) -> None:
    with Lease(str(tmp_path), "run-1", ttl_s=0.3) as lease:
        ledger = Ledger(str(tmp_path), FINGERPRINT, "run-1", lease=lease)
        (tmp_path / "lease.json").unlink()
        lease._heart.join(10)  # the next beat sees it
        with pytest.raises(JobError, match=r"lease\.json was deleted"):
            ledger.commit([annotation(1)], [])


def test_leftovers_of_a_killed_writer_are_cleaned(tmp_path: Path) -> None:
    (tmp_path / ".tmp").mkdir()
    (tmp_path / ".tmp" / "half").write_bytes(b"half a file")
    with Lease(str(tmp_path), "run-1"):
        assert list((tmp_path / ".tmp").iterdir()) == []


def test_a_damaged_lease_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "lease.json").write_text("{")
    with pytest.raises(OutputError, match=r"lease\.json is damaged; delete it"), Lease(str(tmp_path), "run-1"):
        pass


def test_who_cleans_up_takes_nothing_from_who_writes(tmp_path: Path) -> None:
    """The moment in which two commands start on one output: one has the lease and sweeps, the other asks for it."""
    store, ended = open_store(str(tmp_path)), threading.Event()

    def sweep() -> None:
        while not ended.is_set():
            store.clean()
            ended.wait(0.02)

    sweeping = threading.Thread(target=sweep)
    sweeping.start()
    try:
        assert all(store.create(f"{n}.json", b"{}") for n in range(300))
    finally:
        ended.set()
        sweeping.join()
    assert len(store.list("")) == 301, "and the folder that is swept"


def test_a_lease_that_can_neither_be_made_nor_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "lease.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match=r"lease\.json stands there and can't be read"), Lease(str(tmp_path), "run-1"):
        pass
