"""How long videos last, and that the clips they are cut into hold every frame of them once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from video_files import MODEL_SIZE, numbers, write_video

from mlb_batch.source.clips import clip_spans
from mlb_batch.spec_parts import ClipsSpec
from mlb_batch.video import Limits, Reader, Sampling, Wanted, probe, read_frames
from mlb_batch.video.clock import deadline_of
from mlb_batch.video.known import Known
from mlb_batch.video.length import lasting_s
from mlb_batch.video.parts import Range, merged, nothing_of
from mlb_batch.video.ranges import listed

EVERY = Sampling(10_000)
MPEG4 = {"codec": "mpeg4", "codec_options": {"bf": "2"}}


def plain(path: Path) -> Path:
    return write_video(path.with_suffix(".mp4"), frames=100)


def live(path: Path) -> Path:
    """As browsers record: its header says nothing."""
    return write_video(path.with_suffix(".webm"), frames=100, codec="libvpx", options={"live": "1"})


def twice(path: Path) -> Path:
    """`cat a.ts a.ts`: the header speaks of the first."""
    once = write_video(path.with_suffix(".ts"), frames=100)
    once.write_bytes(once.read_bytes() * 2)
    return once


def old(path: Path) -> Path:
    """AVI stores no times of showing, and the last frame comes out after its header's end."""
    return write_video(path.with_suffix(".avi"), frames=100, **MPEG4)


def fragments(path: Path) -> Path:
    return write_video(path.with_suffix(".mp4"), frames=100, options={"movflags": "frag_keyframe+empty_moov"})


def programme(path: Path) -> Path:
    return write_video(path.with_suffix(".mpg"), frames=100, codec="mpeg2video", codec_options={"bf": "2"})


def slowing(path: Path) -> Path:
    """Pictures further apart towards the end: the header adds up times of decoding, which with B-frames end earlier."""
    times_ms = [*range(0, 2000, 40), *range(2000, 6500, 450)]
    options = {"x264-params": "b-adapt=0:scenecut=0"}
    return write_video(path.with_suffix(".mp4"), frames=60, times_ms=times_ms, codec_options=options)


MADE: list[tuple[Callable[[Path], Path], float, list[int]]] = [
    (plain, 4.0, list(range(100))),
    (live, 4.0, list(range(100))),
    (twice, 8.0, [*range(100), *range(100)]),
    (old, 4.0, list(range(100))),
    (fragments, 4.0, list(range(100))),
    (programme, 4.0, list(range(100))),
    (slowing, 6.5, list(range(60))),
]


@pytest.mark.parametrize(("made", "seconds", "shown"), MADE, ids=[made.__name__ for made, _, _ in MADE])
def test_a_videos_clips_hold_every_frame_of_it_once(
    made: Callable[[Path], Path], seconds: float, shown: list[int], tmp_path: Path
) -> None:
    path = str(made(tmp_path / "video"))
    with Reader(EVERY, MODEL_SIZE, Limits()) as reader:
        assert numbers(reader.read(path).pixels_FHWC) == shown
        lasting_s = reader.lasting_s(path)
        assert lasting_s == pytest.approx(seconds, abs=0.05)
        spans = clip_spans(lasting_s, ClipsSpec(every_s=1.0))
        assert [n for span in spans for n in numbers(reader.read(path, *span).pixels_FHWC)] == shown


def test_a_clip_of_the_second_recording_is_found(tmp_path: Path) -> None:
    """Where the packets say 4 s, and only the frames that it is 8."""
    path = twice(tmp_path / "video")
    assert probe(path).duration_s == pytest.approx(4.0, abs=0.1)
    frames = read_frames(path, Wanted(EVERY, MODEL_SIZE, Limits(), 5.0, 6.0))
    assert numbers(frames.pixels_FHWC) == list(range(25, 50))


def test_before_the_first_picture_stands_the_first(tmp_path: Path) -> None:
    """The sound begins two seconds earlier."""
    path = write_video(tmp_path / "late.mkv", frames=50, times_ms=range(2000, 4000, 40), audio_s=4.0)
    assert read_frames(path, Wanted(EVERY, MODEL_SIZE, Limits())).times_s[0] == pytest.approx(2.0, abs=0.05)
    for start_s, end_s in ((0.0, 1.0), (1.0, 2.0), (None, 1.0)):
        assert numbers(read_frames(path, Wanted(EVERY, MODEL_SIZE, Limits(), start_s, end_s)).pixels_FHWC) == [0]
    assert numbers(read_frames(path, Wanted(EVERY, MODEL_SIZE, Limits(), 2.0, 3.1)).pixels_FHWC)[:2] == [0, 1]


def test_one_frame_of_h264_in_mxf_is_that_frame(tmp_path: Path) -> None:
    """Its packets' times are in the order of showing, but not those of showing."""
    path = write_video(tmp_path / "v.mxf", frames=60, codec_options={"bf": "2"})
    for n in range(60):
        frames = read_frames(path, Wanted(EVERY, MODEL_SIZE, Limits(), n / 25 - 0.001, n / 25 + 0.02))
        assert numbers(frames.pixels_FHWC) == [n]


def test_how_long_a_file_of_this_machine_lasts_is_found_without_its_pictures(tmp_path: Path) -> None:
    path = write_video(tmp_path / "heavy.mov", frames=100, codec="rawvideo", pix_fmt="rgb24")
    asked: list[Range] = []
    with nothing_of(path) as parts:
        bring = parts.bring
        parts.bring = lambda ranges: (asked.extend(ranges), bring(ranges))[-1]  # type: ignore[method-assign]
        index = listed(parts, Limits(), deadline_of(Limits(), parts))
    assert index is not None and index.duration_s == pytest.approx(4.0)
    assert sum(end - start for start, end in merged(asked, 0)) < 0.2 * path.stat().st_size
    assert lasting_s(path, Limits(), Known()) == index.duration_s
