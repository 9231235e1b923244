"""From a uri to a file: local, in memory, and over HTTP from a real server that refuses, lies, breaks off and hangs."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import fsspec
import numpy as np
import pytest
from loopback import Handler, Server
from video_files import MODEL_SIZE, error_class, numbers, write_video

from mlb_batch.video import Limits, Reader, Sampling, remote, version_of


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("good") / "good.mp4", frames=200, size=(192, 256))


@pytest.fixture
def reader() -> Iterator[Reader]:
    with Reader(Sampling(8), MODEL_SIZE, Limits(video_s=20, patience_s=1)) as one:
        yield one


class Web(Server):
    """/<status>/v.mp4 answers with that status; /short/ breaks off the first two bodies half way; /200/ is honest, and
    /whole/ too, but gives no parts; nor do the others, of which a body ends where its connection does: /endless/ breaks
    off, /more/ goes on for 64 MB behind its end, and /unsaid/ says at no time how long it is.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(_Handler)
        self.data, self.sent, self.breaks = data, 0, itertools.count()


class _Handler(Handler):
    server: Web

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        web, kind = self.server, self.path.split("/")[1]
        if kind.isdigit() and kind != "200":
            self.send_error(int(kind))
            return
        first, last = 0, len(web.data) - 1
        in_parts = kind in ("200", "short")
        wanted = self.headers.get("Range") if in_parts else None
        if wanted:
            low, _, high = wanted.removeprefix("bytes=").partition("-")
            first, last = int(low), min(last, int(high or last))
        self.send_response(206 if wanted else 200)
        if kind != "unsaid" and not (body and kind in ("endless", "more")):
            self.send_header("Content-Length", str(last - first + 1))
        self.send_header("Accept-Ranges", "bytes" if in_parts else "none")
        self.send_header("ETag", '"abc"')
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(web.data)}")
        self.end_headers()
        if body:
            part = web.data[first : last + 1]
            if kind in ("short", "endless") and next(web.breaks) < 2:
                part = part[: len(part) // 2]
                self.close_connection = True
            self._send(part)
            for _ in range(64 if kind == "more" else 0):
                self._send(bytes(1 << 20))

    def _send(self, part: bytes) -> None:
        with suppress(ConnectionError):  # whoever has heard enough hangs up
            self.wfile.write(part)
            self.server.sent += len(part)


@pytest.fixture
def web(good: Path) -> Iterator[Web]:
    with Web(good.read_bytes()) as one:
        yield one


def test_any_storage_gives_the_same_frames(reader: Reader, good: Path, web: Web) -> None:
    with fsspec.open("memory://videos/good.mp4", "wb") as file:
        file.write(good.read_bytes())
    local = reader.read(str(good))
    assert numbers(local.pixels_FHWC) == np.linspace(0, 199, 8, dtype=int).tolist()
    for uri in (f"file://{good}", "memory://videos/good.mp4", f"{web.uri}/200/v.mp4"):
        there = reader.read(uri)
        np.testing.assert_array_equal(there.pixels_FHWC, local.pixels_FHWC)
        assert there.bytes_read == good.stat().st_size


def test_what_storage_refuses_has_its_class(reader: Reader, web: Web, tmp_path: Path) -> None:
    assert error_class(reader, str(tmp_path / "nothing.mp4")) == "not_found"
    assert error_class(reader, str(tmp_path)) == "not_found"
    assert error_class(reader, "memory://videos/nothing.mp4") == "not_found"
    assert error_class(reader, f"{web.uri}/404/v.mp4") == "not_found"
    assert error_class(reader, f"{web.uri}/403/v.mp4") == "forbidden"
    assert error_class(reader, f"{web.uri}/500/v.mp4") == "storage"
    assert error_class(reader, "http://127.0.0.1:9/v.mp4") == "storage"  # nobody listens there
    assert error_class(reader, "nosuchscheme://v.mp4") == "not_found"


def test_a_pipe_in_a_videos_place_is_not_waited_for(reader: Reader, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    writer = os.open(tmp_path / "pipe.mp4", os.O_RDWR)  # without one, a reader that opens it would never come back
    try:
        assert error_class(reader, str(tmp_path / "pipe.mp4")) == "not_video"
    finally:
        os.close(writer)


def test_an_empty_object_is_empty(reader: Reader) -> None:
    with fsspec.open("memory://videos/empty.mp4", "wb"):
        pass
    assert error_class(reader, "memory://videos/empty.mp4") == "empty"


def test_answers_that_break_off_are_asked_for_again(reader: Reader, web: Web) -> None:
    assert len(reader.read(f"{web.uri}/short/v.mp4").times_s) == 8


def test_a_whole_file_that_breaks_off_is_asked_for_again(reader: Reader, good: Path, web: Web) -> None:
    frames = reader.read(f"{web.uri}/endless/v.mp4")
    np.testing.assert_array_equal(frames.pixels_FHWC, reader.read(str(good)).pixels_FHWC)
    assert web.sent == 2 * len(web.data), "two halves, and all of it"


def test_a_server_that_gives_no_parts_is_asked_for_all_once(reader: Reader, good: Path, web: Web) -> None:
    web.data += (3 << 20).to_bytes(4, "big") + b"free" + bytes((3 << 20) - 8)
    frames = reader.read(f"{web.uri}/whole/v.mp4")
    np.testing.assert_array_equal(frames.pixels_FHWC, reader.read(str(good)).pixels_FHWC)
    assert web.sent == frames.bytes_read == len(web.data)


def test_more_than_was_said_is_not_listened_to(web: Web) -> None:
    with Reader(Sampling(8), MODEL_SIZE, Limits(patience_s=0)) as impatient:
        assert error_class(impatient, f"{web.uri}/more/v.mp4") == "storage"
    assert web.sent < 16 << 20


def test_what_may_be_of_any_size_is_kept_out_of_memory(
    reader: Reader, good: Path, web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = reader.read(f"{web.uri}/unsaid/v.mp4")
    np.testing.assert_array_equal(frames.pixels_FHWC, reader.read(str(good)).pixels_FHWC)
    monkeypatch.setattr("tempfile.tempdir", "/proc")  # a disk that takes nothing
    assert error_class(reader, f"{web.uri}/unsaid/another.mp4") == "storage"


def test_large_files_go_to_a_nameless_file(
    reader: Reader, web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "IN_MEMORY_BYTES", 1000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert len(reader.read(f"{web.uri}/200/v.mp4").times_s) == 8
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("tempfile.tempdir", "/proc")  # a disk that takes nothing
    assert error_class(reader, f"{web.uri}/200/another.mp4") == "storage"


def test_the_clips_of_a_large_file_without_an_index_fetch_it_once(
    reader: Reader, web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "IN_MEMORY_BYTES", 1000)
    made = write_video(tmp_path / "v.ts", frames=100)
    web.data = made.read_bytes() + bytes(3 << 20)
    assert reader.lasting_s(f"{web.uri}/200/v.ts") == pytest.approx(4.0, abs=0.1)
    sent = web.sent
    assert sent >= len(web.data)
    for start_s in range(4):
        frames = reader.read(f"{web.uri}/200/v.ts", start_s, start_s + 1)
        assert numbers(frames.pixels_FHWC)[0] == 25 * start_s and frames.bytes_read == 0
    assert web.sent == sent


NO_ROOM = """
import os, sys
import fsspec
from mlb_batch.errors import RowError
from mlb_batch.video import FrameSize, Limits, Reader, Sampling
data = open(sys.argv[1], "rb").read()
for name, more in (("large", 70 << 20), ("small", 0)):
    with fsspec.open(f"memory://{name}.mkv", "wb") as file:
        file.write(data + bytes(more))
with Reader(Sampling(8), FrameSize((96, 96)), Limits(patience_s=1)) as reader:
    for name in ("large", "small", "large"):
        try:
            print(name, len(reader.read(f"memory://{name}.mkv").times_s))
        except RowError as error:
            print(name, error.error_class, error.message)
    print("left", os.listdir(os.environ["TMPDIR"]), os.statvfs(os.environ["TMPDIR"]).f_bfree > 1000)
"""


def test_a_full_disk_is_that_videos_error_and_nothing_is_left_on_it(tmp_path: Path) -> None:
    """TMPDIR is a disk of 8 MB, in a namespace of its own."""
    video = write_video(tmp_path / "v.mkv")
    inside = 'mount -t tmpfs -o size=8m none $TMPDIR && exec $0 -c "$1" $2'
    (tmp_path / "scratch").mkdir()
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", inside, sys.executable, NO_ROOM, str(video)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"TMPDIR": str(tmp_path / "scratch")}
    )
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"this machine lets nobody mount a disk: {done.stderr.strip()}")
    first, small, again, left = done.stdout.splitlines()
    assert first.startswith("large storage no room for a copy") and again == first, done.stdout + done.stderr
    assert (small, left) == ("small 8", "left [] True")


def test_versions_tell_a_changed_file(reader: Reader, good: Path, web: Web, tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(good.read_bytes())
    version = version_of(str(path))
    assert version == version_of(f"file://{path}")
    assert len(reader.read(str(path), version=version).times_s) == 8
    path.write_bytes(good.read_bytes() + b"more")
    assert version_of(str(path)) != version
    assert error_class(reader, str(path), version=version) == "changed_during_read"
    assert version_of(f"{web.uri}/200/v.mp4") == "abc"
    assert error_class(reader, f"{web.uri}/200/v.mp4", version="abd") == "changed_during_read"


def test_headers_are_read_by_ranges(reader: Reader, web: Web, good: Path) -> None:
    there, here = reader.probe(f"{web.uri}/200/v.mp4"), reader.probe(str(good))
    assert there == here and here.frames == 200 and here.num_bytes == good.stat().st_size
