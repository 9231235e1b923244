"""Videos in a real bucket: only the bytes that the frames need, and whatever weather there is, the right frames."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import s3fs
from s3server import S3Server
from storm import Storm
from video_files import HEAVY, MODEL_SIZE, error_class, numbers, write_video

from mlb_batch import storage, storage_errors
from mlb_batch.errors import JobError
from mlb_batch.storage import ANSWER_S
from mlb_batch.video import Frames, Limits, Reader, Sampling, version_of

LONG_FRAMES = 3000


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two minutes, 6 MB, a keyframe every two seconds; its index stands at its end."""
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    return write_video(path, LONG_FRAMES, (144, 192), gop=50, codec_options=HEAVY)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("short") / "short.mp4", 200)


@pytest.fixture
def bucket(s3: S3Server, long: Path, short: Path) -> str:
    name = s3.make_bucket()
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    for path in (long, short):
        fs.pipe_file(f"{name}/{path.name}", path.read_bytes())
    return name


Weather = Callable[..., Storm]


@pytest.fixture
def weather(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Weather]:
    """Call it with a storm's kind, share and seed: this process's requests go through that one from then on."""
    with ExitStack() as stack:

        def through(*kind: Any, **seed: int) -> Storm:
            storm = Storm(s3.port, *kind, **seed)
            stack.enter_context(storm)
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{storm.port}")
            s3fs.S3FileSystem.clear_instance_cache()
            return storm

        yield through
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where requests are counted: a busy machine may take longer than the second after which one is sent again."""
    monkeypatch.setattr(storage_errors, "FIRST_ANSWER_S", ANSWER_S)


def same(there: Frames, here: Frames) -> bool:
    return there.times_s == here.times_s and bool(np.array_equal(there.pixels_FHWC, here.pixels_FHWC))


def reader(count: int = 4, **limits: float) -> Reader:
    return Reader(Sampling(count), MODEL_SIZE, Limits(**limits))


def test_only_the_bytes_that_the_frames_need_are_fetched(
    s3: S3Server, bucket: str, long: Path, weather: Weather, unhurried: None
) -> None:
    calm = weather()
    uri, size = f"s3://{bucket}/long.mp4", long.stat().st_size
    with reader() as there, reader() as here:
        version = version_of(uri)
        whole = there.read(uri, version=version)
        assert numbers(whole.pixels_FHWC) == np.linspace(0, LONG_FRAMES - 1, 4, dtype=int).tolist()
        assert same(whole, here.read(str(long)))
        assert whole.bytes_read == there.bytes_fetched == calm.bytes_sent < 0.25 * size
        first = there.read(uri, 60.0, 62.0, version)
        assert same(first, here.read(str(long), 60.0, 62.0))
        second = there.read(uri, 70.0, 72.0, version)
        assert same(second, here.read(str(long), 70.0, 72.0))
        assert first.bytes_read < 0.05 * size and second.bytes_read < 0.05 * size, "the index was fetched again"
        assert calm.requests["HEAD"] == 1, "that of version_of: what an object is comes along with its first bytes"
        header = there.probe(uri)
        assert header == here.probe(str(long)) and header.num_bytes == size


def test_a_small_object_takes_one_request(bucket: str, short: Path, weather: Weather, unhurried: None) -> None:
    calm, uri = weather(), f"s3://{bucket}/short.mp4"
    with reader() as there, reader() as here:
        assert same(there.read(uri), here.read(str(short)))
        assert calm.requests == {"GET": 1} and calm.bytes_sent == short.stat().st_size


def test_a_clip_of_a_long_video_alone(s3: S3Server, bucket: str, long: Path, weather: Weather, unhurried: None) -> None:
    calm = weather()
    with reader() as there, reader() as here:
        frames = there.read(f"s3://{bucket}/long.mp4", 60.0, 62.0)
        assert same(frames, here.read(str(long), 60.0, 62.0))
        assert frames.bytes_read < 0.15 * long.stat().st_size and calm.requests.total() <= 6


@pytest.mark.parametrize("name", ["v.mkv", "v.ts", "fragments.mp4", "lies.mp4", "cut.mp4"])
def test_what_has_no_plain_index_is_fetched_whole_and_read_as_ever(
    name: str, bucket: str, tmp_path: Path, unhurried: None
) -> None:
    path = tmp_path / name
    given = {"fragments.mp4": {"options": {"movflags": "frag_keyframe+empty_moov"}}}.get(name, {})
    if name == "cut.mp4":
        path.write_bytes(write_video(tmp_path / "f.mp4", 3000, (144, 192), codec_options=HEAVY,
                                     options={"movflags": "faststart"}).read_bytes()[:3_000_000])  # fmt: skip
    else:
        write_video(path, 3000, (144, 192), codec_options=HEAVY, **given)
    if name == "lies.mp4":  # every frame is a keyframe, says the index
        data = path.read_bytes()
        at = data.index(b"stss")
        path.write_bytes(data[:at] + b"free" + data[at + 4 :])
    assert path.stat().st_size > 2 << 20
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    fs.pipe_file(f"{bucket}/{name}", path.read_bytes())
    with reader() as there, reader() as here:
        frames = there.read(f"s3://{bucket}/{name}")
        assert same(frames, here.read(str(path))) and frames.partial == (name == "cut.mp4")
        assert frames.bytes_read == path.stat().st_size


@pytest.mark.parametrize(
    ("kind", "share"), [("slow_down", 0.3), ("error_500", 0.2), ("too_many", 0.2), ("reset", 0.2), ("truncate", 0.3)]
)
def test_bad_weather_changes_no_frame(
    kind: str, share: float, bucket: str, long: Path, short: Path, weather: Weather
) -> None:  # fmt: skip
    storm = weather(kind, share, seed=7)
    with reader(video_s=30) as there, reader() as here:
        for path in (long, short):
            expected = here.read(str(path))
            for _ in range(6):
                assert same(there.read(f"s3://{bucket}/{path.name}"), expected)
    assert storm.faults > 3, "nothing was shown"
    assert storm.requests.total() < 4 * 12 * 5, "a storm of retries"


def test_an_answer_that_never_comes_is_soon_asked_for_again(bucket: str, short: Path, weather: Weather) -> None:
    storm = weather("hang", 0.4, seed=3)
    with reader(video_s=20) as there, reader() as here:
        expected, begun_s = here.read(str(short)), time.monotonic()
        for _ in range(6):
            assert same(there.read(f"s3://{bucket}/short.mp4"), expected)
    assert storm.faults > 3
    assert time.monotonic() - begun_s < storm.faults * ANSWER_S / 2


@pytest.mark.parametrize("name", ["a?versionId=b.mp4", "?versionId=b/c.mp4", "a::b.mp4", "a b/%41+#.mp4"])
def test_a_key_is_a_key_whatever_it_holds(name: str, s3: S3Server, bucket: str, short: Path) -> None:
    fs = fsspec.filesystem("s3", use_listings_cache=False, endpoint_url=s3.endpoint)
    fs.call_s3("put_object", Bucket=bucket, Key=name, Body=short.read_bytes())
    with reader() as there, reader() as here:
        assert same(there.read(f"s3://{bucket}/{name}"), here.read(str(short)))


def test_a_missing_object_is_one_row_at_once(s3: S3Server, bucket: str, weather: Weather, unhurried: None) -> None:
    calm = weather()
    with reader() as one:
        assert error_class(one, f"s3://{bucket}/nothing.mp4") == "not_found"
    assert calm.requests.total() <= 3


def test_an_object_that_is_overwritten_while_it_is_read_is_found_out(
    s3: S3Server, bucket: str, long: Path, short: Path, weather: Weather
) -> None:
    """Whichever request it happens before: the look-up, the index, or the frames."""
    fs = fsspec.filesystem("s3", use_listings_cache=False, endpoint_url=s3.endpoint)
    uri, outcomes = f"s3://{bucket}/long.mp4", []
    version = version_of(uri)
    storm = weather()
    data, other = long.read_bytes(), long.read_bytes()[::-1]
    for moment in range(4):
        fs.pipe_file(f"{bucket}/long.mp4", data)
        storm.before = {storm.requests.total() + moment: lambda: fs.pipe_file(f"{bucket}/long.mp4", other)}
        with reader() as one:
            outcomes.append(error_class(one, uri, version=version))
    assert outcomes == ["changed_during_read"] * 4


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"])
def test_credentials_that_end_are_the_jobs_end_and_no_videos(
    code: str, s3: S3Server, bucket: str, weather: Weather
) -> None:
    storm = weather()
    with reader() as one:
        one.read(f"s3://{bucket}/short.mp4")
        storm.refuse(code)
        storm.paths.clear()
        with pytest.raises(JobError, match="refused") as ended:
            one.read(f"s3://{bucket}/long.mp4")
        with pytest.raises(JobError):
            version_of(f"s3://{bucket}/short.mp4")
        assert "\n" not in str(ended.value)
        assert 0 < len(storm.paths) == len(set(storm.paths)), "what is refused is not asked for again"


def test_one_refused_object_is_that_videos_error(s3: S3Server, bucket: str, weather: Weather) -> None:
    storm = weather()
    storm.refuse("AccessDenied")
    with reader() as one:
        assert error_class(one, f"s3://{bucket}/short.mp4") == "forbidden"


def test_no_such_bucket_and_a_wrong_secret(s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with reader() as one, pytest.raises(JobError, match="bucket exists"):
        one.read(f"s3://{bucket}-not/short.mp4")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-canary-secret")
    s3fs.S3FileSystem.clear_instance_cache()
    with reader() as one, pytest.raises(JobError, match="credentials") as ended:
        one.read(f"s3://{bucket}/short.mp4")
    assert "canary" not in str(ended.value)
    s3fs.S3FileSystem.clear_instance_cache()


def test_an_outage_is_waited_out_and_does_not_use_up_the_videos_time(
    s3: S3Server, bucket: str, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if s3.kind != "ceph":
        pytest.skip("only Ceph's gateway is a process of its own")
    monkeypatch.setattr(storage, "ANSWER_S", 1)
    s3fs.S3FileSystem.clear_instance_cache()
    with reader(video_s=5, patience_s=60) as there, reader() as here:
        there.read(f"s3://{bucket}/short.mp4")
        s3.stand_still()
        back = threading.Timer(8, s3.go_on)
        back.start()
        try:
            begun_s = time.monotonic()
            assert same(there.read(f"s3://{bucket}/short.mp4"), here.read(str(short)))
            assert time.monotonic() - begun_s > 7, "there was no outage"
            s3.stand_still()
            with reader(patience_s=3) as impatient, pytest.raises(JobError, match="didn't answer well for 3 s"):
                impatient.read(f"s3://{bucket}/short.mp4")
        finally:
            back.join()
            s3.go_on()
    s3fs.S3FileSystem.clear_instance_cache()
