"""The Reader lives on: hanging, crashing and greedy children, real ones, end as one error row each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from video_files import CORPUS, MODEL_SIZE, corpus, flip, numbers, write_video

from mlb_batch.errors import RETRYABLE, JobError, RowError
from mlb_batch.spec_types import WEEK_S
from mlb_batch.video import FrameSize, Limits, Prober, Reader, Sampling, Wanted, probe, process, read_frames
from mlb_batch.video.clock import Clock

# A child that does what a video's name tells it, in place of reading it, and reads every other video as usual.
TROUBLEMAKER = """
import ctypes, functools, os, pathlib, sys, time
from mlb_batch.spec_types import WEEK_S
from mlb_batch.video import child
kept = []
def troubled(usual, source, *rest):
    name = os.path.basename(os.readlink(source))
    if name == "abort.mp4": os.abort()
    if name == "segfault.mp4": ctypes.string_at(0)
    if name == "exit.mp4": os._exit(7)
    if name == "loop.mp4":
        while True: pass
    if name == "hold-lock.mp4": ctypes.PyDLL(None).sleep(1000)
    if name == "greedy.mp4": bytearray(8 << 30)
    if name == "leak.mp4": kept.append(bytearray(40 << 20))
    if name == "disobey.mp4": time.sleep = None; os.kill(os.getpid(), 19)
    return usual(source, *rest)
child.read_frames = functools.partial(troubled, child.read_frames)
child.probe = functools.partial(troubled, child.probe)
child.main()
"""
TRACES = """
import ctypes, sys
SEIZE = 0x4206
print(ctypes.CDLL(None).ptrace(SEIZE, int(sys.argv[1]), None, None), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write_video(tmp_path / "good.mp4")


@pytest.fixture
def reader() -> Iterator[Reader]:
    with Reader(Sampling(8), MODEL_SIZE, Limits(video_s=20)) as one:
        yield one


def test_the_longest_that_a_job_may_give_a_clip_is_within_what_timers_hold(good: Path) -> None:
    with Reader(Sampling(8), MODEL_SIZE, Limits(video_s=WEEK_S)) as one:
        assert len(one.read(str(good)).pixels_FHWC) == 8


def test_what_lies_in_the_working_folder_is_no_module_of_the_childs(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's workers have the driver's working folder in their path."""
    for name in ("random", "types", "json", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with Prober(Limits()) as prober:
        assert prober.probe(str(good)).frames == 50


def test_where_no_process_can_be_had_no_video_is_to_blame(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with Prober(Limits()) as prober, pytest.raises(JobError, match="no process to read videos in"):
        prober.probe(str(good))


# The clock of a video.


def test_time_that_storage_took_is_given_back_once_however_many_waited_for_it() -> None:
    clock, now = Clock(60), time.monotonic()
    for since in (now - 10, now - 8, now - 10):
        clock.stand(since)
        clock.go_on()
    assert 69 < clock.left_s <= 70.1


def test_the_clock_is_right_for_many_threads() -> None:
    clock, begun, failed = Clock(60), time.monotonic(), list[BaseException]()

    def wait() -> None:
        try:
            for _ in range(3000):
                clock.stand(time.monotonic() - 0.001)
                assert clock.left_s < 1000
                clock.go_on()
        except BaseException as error:
            failed.append(error)

    switching = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=wait) for _ in range(8)]
    try:
        for thread in threads:
            thread.start()
    finally:
        for thread in threads:
            thread.join()
        sys.setswitchinterval(switching)
    assert not failed
    assert 59.9 - (time.monotonic() - begun) <= clock.left_s <= 60.01


def test_the_child_reads_what_the_process_itself_reads(reader: Reader, good: Path) -> None:
    for start_s, end_s in ((None, None), (0.5, 1.5)):
        ours = read_frames(good, Wanted(Sampling(8), MODEL_SIZE, Limits(), start_s, end_s))
        theirs = reader.read(str(good), start_s, end_s)
        np.testing.assert_array_equal(theirs.pixels_FHWC, ours.pixels_FHWC)
        assert (theirs.times_s, theirs.wanted, theirs.duration_s, theirs.partial, theirs.bytes_read) == (
            (ours.times_s, ours.wanted, ours.duration_s, ours.partial, ours.bytes_read)
        )


def test_one_child_serves_many_videos_and_errors(reader: Reader, good: Path, tmp_path: Path) -> None:
    reader.read(str(good))
    child = reader.child_pid
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(RowError):
        reader.read(str(tmp_path / "text.mp4"))
    frames = [reader.read(str(good)) for _ in range(3)]
    assert reader.child_pid == child
    reader.close()
    assert all(numbers(one.pixels_FHWC) == [0, 7, 14, 21, 28, 35, 42, 49] for one in frames)  # also after the child


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("abort.mp4", "decoder_crash"),
        ("segfault.mp4", "decoder_crash"),
        ("exit.mp4", "decoder_crash"),
        ("loop.mp4", "timeout"),
        ("hold-lock.mp4", "timeout"),
        ("disobey.mp4", "timeout"),
        ("greedy.mp4", "out_of_memory"),
    ],
)
def test_a_child_in_trouble_is_one_error(name: str, expected: str, good: Path, tmp_path: Path) -> None:
    bad = tmp_path / name
    bad.write_bytes(good.read_bytes())
    limits = Limits(video_s=2)
    with Reader(Sampling(8), MODEL_SIZE, limits, entry=("-c", TROUBLEMAKER)) as reader:
        assert len(reader.read(str(good)).times_s) == 8
        start = time.monotonic()
        with pytest.raises(RowError) as caught:
            reader.read(str(bad))
        assert caught.value.error_class == expected
        assert time.monotonic() - start < limits.video_s + 10
        assert len(reader.read(str(good)).times_s) == 8


def test_a_child_that_keeps_memory_is_replaced_before_it_has_none_left(good: Path, tmp_path: Path) -> None:
    leak = tmp_path / "leak.mp4"
    leak.write_bytes(good.read_bytes())
    children = set()
    with Reader(Sampling(8), MODEL_SIZE, Limits(memory_mb=200), entry=("-c", TROUBLEMAKER)) as reader:
        for _ in range(12):
            assert len(reader.read(str(leak)).times_s) == 8
            children.add(reader.child_pid)
    assert 3 <= len(children - {None}) <= 5


def test_headers_are_read_in_the_child_too(good: Path, tmp_path: Path) -> None:
    for name, expected in (("segfault.mp4", "decoder_crash"), ("loop.mp4", "timeout")):
        bad = tmp_path / name
        bad.write_bytes(good.read_bytes())
        with Prober(Limits(video_s=2), entry=("-c", TROUBLEMAKER)) as prober:
            assert prober.probe(str(good)).frames == 50
            with pytest.raises(RowError) as caught:
                prober.probe(str(bad))
            assert caught.value.error_class == expected
            assert prober.probe(str(good)) == probe(good)


def test_a_child_that_cannot_start_is_not_the_videos_fault(good: Path) -> None:
    with (
        Reader(Sampling(8), MODEL_SIZE, Limits(), entry=("-c", "import nothing_of_this_name")) as reader,
        pytest.raises(JobError),
    ):
        reader.read(str(good))


def test_a_stopped_child_is_a_timeout(good: Path) -> None:
    with Reader(Sampling(8), MODEL_SIZE, Limits(video_s=1)) as reader:
        reader.read(str(good))
        assert reader.child_pid is not None
        os.kill(reader.child_pid, signal.SIGSTOP)
        with pytest.raises(RowError) as caught:
            reader.read(str(good))
        assert caught.value.error_class == "timeout"
        assert len(reader.read(str(good)).times_s) == 8


def test_who_took_too_long_is_told_the_limit(good: Path) -> None:
    """Whoever notices: the child is given what is left of it."""
    with Reader(Sampling(8), MODEL_SIZE, Limits(video_s=0.002)) as reader:
        for _ in range(3):
            with pytest.raises(RowError, match=r"longer than 0\.002 s$"):
                reader.read(str(good))


def test_a_child_killed_between_videos_is_replaced_unseen(reader: Reader, good: Path) -> None:
    reader.read(str(good))
    assert reader.child_pid is not None
    os.kill(reader.child_pid, signal.SIGKILL)
    os.waitid(os.P_PID, reader.child_pid, os.WEXITED | os.WNOWAIT)
    assert len(reader.read(str(good)).times_s) == 8


def test_more_memory_than_allowed_is_out_of_memory(tmp_path: Path, good: Path) -> None:
    large = write_video(tmp_path / "large.mp4", frames=4, size=(2160, 3840))
    with Reader(Sampling(8), MODEL_SIZE, Limits(memory_mb=48)) as reader:
        with pytest.raises(RowError) as caught:
            reader.read(str(large))
        assert caught.value.error_class == "out_of_memory"
        assert len(reader.read(str(good)).times_s) == 8


def test_the_child_knows_no_secret_and_has_no_network(
    reader: Reader, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-secret")
    first = good.with_name("first.mp4")
    first.write_bytes(good.read_bytes())
    reader.read(str(first))
    reader.read(str(good))
    environment = Path(f"/proc/{reader.child_pid}/environ").read_bytes()
    assert b"canary" not in environment and b"AWS" not in environment
    open_files = {str(link.readlink()) for link in Path(f"/proc/{reader.child_pid}/fd").iterdir()}
    assert sum(name.startswith("socket:") for name in open_files) == 1  # to its supervisor
    assert not any("first.mp4" in name for name in open_files)


def test_a_child_that_is_killed_and_cannot_end_is_left(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a disk that hangs. Here who traces it keeps it: until that ends too, the child has not ended for us."""
    monkeypatch.setattr(process, "DYING_S", 0.2)
    reader = Reader(Sampling(8), MODEL_SIZE, Limits())
    reader.read(str(good))
    pipe = subprocess.PIPE
    tracer = subprocess.Popen([sys.executable, "-c", TRACES, str(reader.child_pid)], stdin=pipe, stdout=pipe)
    with tracer:
        assert tracer.stdout is not None
        if tracer.stdout.readline() != b"0\n":
            pytest.skip("nobody may trace a process here")
        closing = threading.Thread(target=reader.close, daemon=True)
        closing.start()
        closing.join(10)
        assert not closing.is_alive()


def test_a_child_outlives_neither_its_supervisor_nor_its_deadline(good: Path) -> None:
    reader = Reader(Sampling(8), MODEL_SIZE, Limits())
    reader.read(str(good))
    assert reader._child is not None
    child = reader._child
    child.socket.close()  # what the kernel does when a supervisor dies
    assert child.process.wait(timeout=10) == 0


@pytest.mark.parametrize("size", [MODEL_SIZE, FrameSize((2048, 2048))], ids=["kept", "too large to be kept"])
def test_frames_that_somebody_looks_at_are_not_written_over(size: FrameSize, tmp_path: Path) -> None:
    """Whichever of them are given up, in whatever order, while others follow."""
    paths = [write_video(tmp_path / f"{n}.mp4", frames=30 + n, size=(96, 128 + 16 * n)) for n in range(4)]
    own = [read_frames(path, Wanted(Sampling(8), size, Limits())).pixels_FHWC for path in paths]
    draw, looked_at = np.random.default_rng(0), deque()
    with Reader(Sampling(8), size, Limits(video_s=20)) as one:
        for number in draw.integers(0, len(paths), 40 if size is MODEL_SIZE else 8):
            start_s, end_s, frames = (None, None, slice(None)) if draw.random() < 0.6 else (0.0, 0.04, slice(0, 1))
            looked_at.append((one.read(str(paths[number]), start_s, end_s), own[number][frames]))
            looked_at.rotate(int(draw.integers(0, 4)))
            while len(looked_at) > draw.integers(0, 4):
                looked_at.popleft()
            assert all(np.array_equal(frames.pixels_FHWC, expected) for frames, expected in looked_at)


def test_memory_that_nobody_looks_at_serves_again(reader: Reader, good: Path) -> None:
    def pieces() -> set[str]:
        """Nameless memory that the child has, by its number."""
        lines = Path(f"/proc/{reader.child_pid}/maps").read_text().splitlines()
        return {line.split()[4] for line in lines if "/memfd:frames" in line}

    last, seen = reader.read(str(good)), pieces()
    for _ in range(10):
        last = reader.read(str(good))
        seen |= pieces()
    assert len(seen) == 2, "one is looked at while the next is filled"
    assert last.pixels_FHWC.any()


def test_nothing_leaks(reader: Reader, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    (tmp_path / "text.mp4").write_text("no video")

    def use(times: int) -> tuple[int, int, int, int]:
        for _ in range(times):
            reader.read(str(good))
            with pytest.raises(RowError):
                reader.read(str(tmp_path / "text.mp4"))
        child_files = len(list(Path(f"/proc/{reader.child_pid}/fd").iterdir()))
        child_threads = len(list(Path(f"/proc/{reader.child_pid}/task").iterdir()))
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count(), child_files, child_threads

    before = use(3)
    assert use(60) == before
    assert list(scratch.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_five_thousand_videos_leave_memory_files_and_threads_as_they_were(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process; the child is replaced when it has kept too much, which is looked at apart."""
    scratch, bad = tmp_path / "scratch", tmp_path / "text.mp4"
    scratch.mkdir()
    bad.write_text("no video")
    monkeypatch.setenv("TMPDIR", str(scratch))
    with Reader(Sampling(8), MODEL_SIZE, Limits(video_s=20)) as reader:

        def use(times: int) -> tuple[int, int, int]:
            for n in range(times):
                with suppress(RowError):
                    reader.read(str(bad if n % 10 == 9 else good))
            status = Path("/proc/self/status").read_text()
            files = len(list(Path("/proc/self/fd").iterdir()))
            return int(status.split("RssAnon:")[1].split()[0]), files, threading.active_count()

        before_kb, *before = use(500)
        after_kb, *after = use(4500)
    with capsys.disabled():
        print(f"\n{(after_kb - before_kb) / 4500:.2f} KB a video, files and threads {before} -> {after}")
    assert (after_kb - before_kb) / 4500 < 5 and after == before and list(scratch.iterdir()) == []


@pytest.mark.slow
def test_a_video_that_reads_slowly_ends_at_its_deadline(tmp_path: Path) -> None:
    """One keyframe, and the last frames wanted: everything has to be read, at whatever pace this machine has."""
    heavy = str(write_video(tmp_path / "heavy.mp4", frames=300, size=(1080, 1920), gop=10_000))
    with Reader(Sampling(8), MODEL_SIZE, Limits()) as reader:
        reader.probe(heavy)
        begun_s = time.monotonic()
        reader.read(heavy)
        whole_s = time.monotonic() - begun_s
    for share in (0.2, 0.5):
        with Reader(Sampling(8), MODEL_SIZE, Limits(video_s=share * whole_s)) as reader:
            reader.probe(heavy)
            assert reader.child_pid is not None
            os.setpriority(os.PRIO_PROCESS, reader.child_pid, 19)  # and nice to others
            begun_s = time.monotonic()
            with pytest.raises(RowError) as caught:
                reader.read(heavy)
        assert caught.value.error_class == "timeout" and abs(time.monotonic() - begun_s - share * whole_s) <= 2


def mutants(seeds: range) -> Iterator[tuple[str, bytes]]:
    """Public videos, each with up to 1,000 bytes changed."""
    small = [entry["file"] for entry in corpus() if entry["result"] == "ok" and entry["bytes"] < 800_000]
    for seed in seeds:
        name = small[seed % len(small)]
        yield f"{seed} {name}", flip((CORPUS / name).read_bytes(), seed)


@pytest.mark.skipif(not corpus(), reason="the public files are not here")
@pytest.mark.parametrize(
    "seeds", [range(200), pytest.param(range(200, 2400), marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
def test_flipped_bytes_are_typed_and_kill_nobody(seeds: range, tmp_path: Path) -> None:
    path = tmp_path / "mutant.mp4"
    with Reader(Sampling(8), MODEL_SIZE, Limits(video_s=20)) as reader:
        for name, data in mutants(seeds):
            path.write_bytes(data)
            try:
                frames = reader.read(str(path))
            except RowError as error:
                assert error.error_class in RETRYABLE, name
                assert error.error_class not in ("timeout", "decoder_crash", "out_of_memory"), (name, error)
                continue
            assert 0 < len(frames.times_s) == len(frames.pixels_FHWC) <= frames.wanted, name
            assert frames.partial or len(frames.times_s) == frames.wanted, name
            assert list(frames.times_s) == sorted(frames.times_s), name
