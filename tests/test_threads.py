"""Who is stopped, or has waited long enough, is held by no call that nothing answers: not there, and not at its end."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from commands import MLB_BATCH, start
from small_jobs import job_file

from mlb_batch import storage, web
from mlb_batch.errors import RowError
from mlb_batch.threads import Threads
from mlb_batch.video import Limits, Prober, Several, version_of

READS = """
import sys
from mlb_batch.errors import RowError
from mlb_batch.video import FrameSize, Limits, Reader, Sampling
with Reader(Sampling(4), FrameSize(32), Limits(video_s=1)) as reader:
    try:
        reader.read(sys.argv[1])
    except RowError as error:
        print(error.error_class)
"""
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\nAccept-Ranges: bytes\r\n\r\n"


@contextmanager
def host(serve: Callable[[socket.socket], object]) -> Iterator[int]:
    """A port at which each connection is served on a thread of its own."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer(connection: socket.socket) -> None:
            with suppress(OSError):  # who asked has gone
                serve(connection)

        def accept() -> None:
            with suppress(OSError):  # the test has ended
                while True:
                    threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def test_calls_are_answered_in_order_and_their_errors_raised() -> None:
    with Threads(3) as threads:
        assert list(threads.map(divmod, [7, 8, 9], [2, 3, 4])) == [(3, 1), (2, 2), (2, 1)]
        with pytest.raises(ZeroDivisionError):
            threads.submit(divmod, 1, 0).result()


def test_who_is_stopped_leaves_what_nothing_answers_and_drops_what_waits() -> None:
    answers, called = threading.Event(), []

    def ask(number: int) -> None:
        called.append(number)
        answers.wait()

    with pytest.raises(KeyboardInterrupt), Threads(2) as threads:
        asked = [threads.submit(ask, number) for number in range(5)]
        raise KeyboardInterrupt
    answers.set()
    for one in asked[:2]:
        one.result()
    assert sorted(called) == [0, 1] and all(one.cancelled() for one in asked[2:])


def test_a_reader_that_is_still_at_work_is_closed_by_who_has_it() -> None:
    closed: list[Prober] = []

    class Noted(Prober):
        def close(self) -> None:
            closed.append(self)
            super().close()

    with Several(lambda: Noted(Limits()), 2) as readers:
        left = readers.one()
        mine = left.__enter__()
    assert len(closed) == 1 and mine not in closed
    left.__exit__(None, None, None)
    assert closed[1:] == [mine]


def test_a_plan_is_stopped_while_a_bucket_is_silent(tmp_path: Path) -> None:
    pytest.importorskip("s3fs")
    asked, kept = threading.Event(), []
    (tmp_path / "videos.jsonl").write_text('{"uri": "s3://bucket/v.mp4"}\n')
    job = job_file(tmp_path, input={"manifest": str(tmp_path / "videos.jsonl"), "allow": ["s3://bucket/"]})
    with host(lambda connection: (kept.append(connection), asked.set())) as port:
        keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
        process = start(MLB_BATCH, "plan", str(job), AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}", **keys)
        assert asked.wait(60)
        process.terminate()
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (143, "", "")


@contextmanager
def trickling(begin: bytes) -> Iterator[str]:
    """A video on a host that goes on byte by byte, for longer than any limit here."""
    over = threading.Event()

    def trickle(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(begin)
        for _ in range(200):
            if over.wait(0.2):
                return
            connection.sendall(b"a")

    with host(trickle) as port:
        yield f"http://localhost:{port}/v.mp4"
        over.set()


def test_a_body_that_trickles_keeps_nobody_from_ending() -> None:
    with trickling(HEAD) as uri:
        done = subprocess.run([sys.executable, "-c", READS, uri], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "timeout\n"), done.stderr


def test_an_answer_that_trickles_before_it_begins_is_like_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "CONNECT_S", 0.3)
    monkeypatch.setattr(storage, "ANSWER_S", 0.3)
    with trickling(HEAD[:30]) as uri, Prober(Limits(patience_s=1)) as prober:
        for ask in (prober.probe, version_of):
            with pytest.raises(RowError, match="did not begin to answer") as caught:
                ask(uri)
            assert caught.value.error_class == "storage"
