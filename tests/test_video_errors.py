"""Every way in which a video can be bad has its class, provoked by a real file; nothing bad passes for good."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from video_files import (
    HEAVY,
    MODEL_SIZE,
    cut,
    not_videos,
    numbers,
    write_audio,
    write_bomb,
    write_encrypted,
    write_video,
)

from mlb_batch.errors import RowError
from mlb_batch.video import Frames, Limits, Sampling, Wanted, probe, read_frames
from mlb_batch.video.container import top_boxes

SESSION = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"


def read(path: Path, count: int = 8, limits: Limits | None = None) -> Frames:
    return read_frames(path, Wanted(Sampling(count), MODEL_SIZE, limits or Limits()))


def error_class(call: Callable[[], object]) -> str:
    with pytest.raises(RowError) as caught:
        call()
    return caught.value.error_class


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(b"")
    assert error_class(lambda: read(path)) == error_class(lambda: probe(path)) == "empty"


def test_what_never_was_a_video(tmp_path: Path) -> None:
    for name, path in not_videos(tmp_path):
        assert error_class(lambda p=path: read(p)) == "not_video", name
        assert error_class(lambda p=path: probe(p)) == "not_video", name


def test_sound_and_cover_pictures_are_no_video(tmp_path: Path) -> None:
    assert error_class(lambda: read(write_audio(tmp_path / "v.m4a"))) == "no_video_stream"
    assert error_class(lambda: read(write_audio(tmp_path / "c.mp4", cover=True))) == "no_video_stream"


def test_a_codec_that_nobody_knows(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4")
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    assert error_class(lambda: read(path)) == "unsupported_codec"


def test_colours_that_cannot_be_turned_into_rgb(tmp_path: Path) -> None:
    """An error that says why is better than a caption of false colours."""
    path = write_video(tmp_path / "v.mp4", codec_options={"x264-params": "colormatrix=YCgCo"})
    with pytest.raises(RowError, match=r"unsupported_codec: .* colours into RGB: 0 of 8"):
        read(path)


def test_encrypted(tmp_path: Path) -> None:
    assert error_class(lambda: read(write_encrypted(tmp_path / "v.mp4"))) == "encrypted"


def test_frames_that_are_noise_are_corrupt(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4")
    data = bytearray(path.read_bytes())
    start, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    data[start:end] = bytes(end - start)
    path.write_bytes(data)
    assert error_class(lambda: read(path)) == "corrupt"


def test_headers_that_are_noise_are_corrupt(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4")
    data = bytearray(path.read_bytes())
    start = data.index(b"moov") + 4
    data[start:] = bytes(len(data) - start)
    path.write_bytes(data)
    assert error_class(lambda: read(path)) == "corrupt"


@pytest.mark.parametrize(
    "name", ["v.mp4", "v.mkv", "v.webm", "v.avi", "v.flv", "v.ivf", "v.mxf", "h264.mxf", "v.rm", "v.asf"]
)
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_file_that_was_cut_is_never_whole(name: str, share: float, tmp_path: Path) -> None:
    codecs = {
        "v.webm": "libvpx",
        "v.avi": "mjpeg",
        "v.flv": "flv",
        "v.ivf": "libvpx",
        "v.mxf": "mpeg2video",
        "v.rm": "rv20",
    }
    codec = codecs.get(name, "libx264")
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    more = {"v.mp4": {"options": {"movflags": "faststart"}}, "v.asf": {"codec_options": HEAVY}}.get(name, {})
    whole = write_video(tmp_path / name, frames=200, codec=codec, pix_fmt=pix_fmt, **more)
    path = cut(whole, tmp_path / f"cut-{name}", share)
    for count in (8, 32):
        try:
            frames = read(path, count)
        except RowError as error:
            assert error.error_class in ("truncated", "corrupt")
            assert share <= 0.5
            continue
        assert frames.partial and len(frames.times_s) < frames.wanted == count
        rule = np.linspace(0, 199, count, dtype=int)
        got = np.array(numbers(frames.pixels_FHWC))
        assert np.abs(got - rule[: len(got)]).max() <= 2  # spread as over the whole video, not over what is left


@pytest.mark.parametrize("audio_s", [None, 20.0])
@pytest.mark.parametrize(("box", "share"), [(b"moof", 0.0), (b"moof", 0.5), (b"mdat", 0.5)])
def test_a_list_of_fragments_that_are_not_there_is_never_whole(
    box: bytes, share: float, audio_s: float | None, tmp_path: Path
) -> None:
    fragments = {"movflags": "frag_keyframe+empty_moov+dash+global_sidx"}
    whole = write_video(tmp_path / "v.mp4", frames=300, audio_s=audio_s, options=fragments)
    assert not read(whole, 32).partial
    boxes = [(start, end) for kind, start, end in top_boxes(whole) if kind == box]
    start, end = boxes[len(boxes) // 2]
    frames = read(cut(whole, tmp_path / "cut.mp4", (start + share * (end - start)) / whole.stat().st_size), 32)
    assert frames.partial and frames.wanted == 32 and frames.duration_s == pytest.approx(12, abs=0.2)
    rule = np.linspace(0, 299, 32, dtype=int)
    got = np.array(numbers(frames.pixels_FHWC))
    assert 12 <= len(got) <= 20 and np.abs(got - rule[: len(got)]).max() <= 2


def test_an_index_that_was_cut_off_is_truncated(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "v.mp4", frames=200)
    for share in (0.1, 0.5, 0.9):
        assert error_class(lambda s=share: read(cut(whole, tmp_path / "c.mp4", s))) == "truncated"


def test_fragments_that_were_cut_in_their_index_are_truncated(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "v.mp4", options={"movflags": "frag_keyframe+empty_moov"})
    _, start, end = next(box for box in top_boxes(whole) if box[0] == b"moof")
    path = cut(whole, tmp_path / "cut.mp4", (start + 0.9 * (end - start)) / whole.stat().st_size)
    assert error_class(lambda: read(path)) == error_class(lambda: probe(path)) == "truncated"


@pytest.mark.parametrize("length", [1 << 62, 1 << 63, (1 << 64) - 1])
def test_a_box_longer_than_any_file_is_typed(length: int, tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    beginning = (16).to_bytes(4, "big") + b"ftypisom\0\0\2\0"
    path.write_bytes(beginning + (1).to_bytes(4, "big") + b"free" + length.to_bytes(8, "big") + b"\xff" * 100)
    assert error_class(lambda: read(path)) == error_class(lambda: probe(path)) == "truncated"


@pytest.mark.parametrize(
    ("codec", "name", "side"), [("png", "b.mov", 12000), ("libx264", "b.mp4", 8192), ("mpeg4", "b.avi", 8176)]
)
def test_bombs_are_refused_before_their_memory_is_asked_for(codec: str, name: str, side: int, tmp_path: Path) -> None:
    path = write_bomb(tmp_path / name, codec, side)
    program = (
        "import re, sys, time; from pathlib import Path\n"
        "from mlb_batch.errors import RowError; from mlb_batch.video import *\n"
        "start = time.process_time()\n"
        "try: read_frames(Path(sys.argv[1]), Wanted(Sampling(8), FrameSize((96, 96)), Limits()))\n"
        "except RowError as error: print(error.error_class)\n"
        "peak_kb = re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]\n"
        "print(int(peak_kb) // 1024, time.process_time() - start)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    kind, numbers_line = done.stdout.splitlines()
    assert kind == "too_large"
    assert float(numbers_line.split()[0]) <= 400
    assert float(numbers_line.split()[1]) <= 2


def test_the_limit_of_time(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4")
    assert error_class(lambda: read(path, limits=Limits(video_s=0.0))) == "timeout"


def test_a_clip_behind_the_end_says_where_the_end_is(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4")
    with pytest.raises(RowError, match=r"starts at 70.* ends at 2\.000 s"):
        read_frames(path, Wanted(Sampling(8), MODEL_SIZE, Limits(), 70.0, 80.0))


def test_a_name_is_never_a_command(tmp_path: Path) -> None:
    """FFmpeg takes `concat:a|b` and `subfile,...:a` for orders to open other files."""
    write_video(tmp_path / "a.mp4")
    for name in ("concat:a.mp4|a.mp4", "subfile,,start,0,end,0,,:a.mp4"):
        path = tmp_path / name
        path.write_bytes((tmp_path / "a.mp4").read_bytes())
        assert numbers(read(path).pixels_FHWC)[-1] == 49


def with_media_elsewhere(path: Path, uri: str) -> Path:
    """An MP4 whose frames are said to lie at `uri`; its index stands last, so that growing it moves no frame."""
    data = write_video(path).read_bytes()
    entry = data.index(b"url \0\0\0\1")
    grown = data[: entry + 4] + bytes(4) + uri.encode() + b"\0" + data[entry + 8 :]
    more = len(grown) - len(data)
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref", b"url "):
        at = grown.index(box) - 4
        size = int.from_bytes(grown[at : at + 4], "big") + more
        grown = grown[:at] + size.to_bytes(4, "big") + grown[at + 4 :]
    path.write_bytes(grown)
    return path


def test_a_file_that_points_elsewhere_opens_nothing_there(tmp_path: Path) -> None:
    with socket.socket() as canary:
        canary.bind(("127.0.0.1", 0))
        canary.listen()
        canary.settimeout(0)
        there = f"http://127.0.0.1:{canary.getsockname()[1]}/v.mp4"
        dash = f'<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><BaseURL>{there}</BaseURL></MPD>'
        for name, text in (("a.mpd", f'<?xml version="1.0"?>{dash}'), ("a.m3u8", f"#EXTM3U\n#EXTINF:1,\n{there}\n"),
                           ("a.mp4", f"ffconcat version 1.0\nfile {there}\n"), ("a.sdp", SESSION)):  # fmt: skip
            (tmp_path / name).write_text(text)
            assert error_class(lambda path=tmp_path / name: read(path)) == "not_video"
        for uri in (there, "file:///etc/passwd", str(write_video(tmp_path / "other.mp4"))):
            elsewhere = with_media_elsewhere(tmp_path / "v.mov", uri)
            assert numbers(read(elsewhere).pixels_FHWC)[-1] == 49, "the frames are its own, whatever it says"
        with pytest.raises(BlockingIOError):
            canary.accept()


def test_resolution_that_changes_on_the_way_keeps_one_shape(tmp_path: Path) -> None:
    small = write_video(tmp_path / "a.ts", frames=25, size=(96, 128))
    large = write_video(tmp_path / "b.ts", frames=25, size=(192, 256), times_ms=[1000 + 40 * i for i in range(25)])
    path = tmp_path / "both.ts"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    frames = read(path, 50)
    assert frames.pixels_FHWC.shape[1:] == (96, 96, 3)
    assert len(frames.times_s) > 25
