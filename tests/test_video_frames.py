"""The frames given are those that a full sequential read gives at these times: public files, and made ones."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps
from video_files import (
    CORPUS,
    HEAVY,
    MODEL_SIZE,
    corpus,
    flip,
    numbers,
    picture,
    sequential_pictures,
    sequential_times,
    write_video,
)

from mlb_batch.errors import RowError
from mlb_batch.source import clip_spans
from mlb_batch.spec_parts import ClipsSpec
from mlb_batch.video import Frames, FrameSize, Limits, Sampling, Wanted, packets, probe, read_frames
from mlb_batch.video.container import opened
from mlb_batch.video.known import Known
from mlb_batch.video.packets import Decoder, Trouble

READABLE = [entry["file"] for entry in corpus() if entry["result"] == "ok"]
SLOW_TO_READ = ["iejMac+video2dataset/test_video.mp4"]  # a sequential read of it takes a minute
BROKEN = {
    "mp4parse__tests__bipbop-cenc-audioinit.mp4": "no_video_stream",
    "mp4parse__tests__bipbop_cbcs_audio_init.mp4": "no_video_stream",
    "mp4parse__tests__sine-3s-xhe-aac-44khz-mono.mp4": "no_video_stream",
    "mp4parse_capi__tests__afconvert-aac-0.5s.mp4": "no_video_stream",
    "mp4parse_capi__tests__bipbop_audioinit.mp4": "no_video_stream",
    "mp4parse_capi__tests__opus_audioinit.mp4": "no_video_stream",
    "mp4parse_capi__tests__opus_audioinit_two_desc.mp4": "no_video_stream",
    "mp4parse__tests__bipbop_480wp_1001kbps-cenc-video-key1-init.mp4": "corrupt",  # headers without a frame
    "mp4parse__tests__bipbop_cbcs_video_init.mp4": "corrupt",
    "mp4parse_capi__tests__bipbop_nonfragment_header.mp4": "corrupt",
    "mp4parse_capi__tests__chunk_out_of_range.mp4": "corrupt",
    "mp4parse__tests__invalid_userdata.mp4": "truncated",  # an index, and the frames cut away
    "mp4parse__tests__test_case_1185230.mp4": "truncated",
    "mp4parse_capi__tests__zero_empty_stsc.mp4": "truncated",
    "mp4parse_capi__tests__short-cenc.mp4": "encrypted",
}
PARTIAL = ["dmlc+decord/corrupted.mp4", "mozilla+mp4parse-rust/mp4parse_capi__tests__no_timescale.mp4"]


def read(path: Path, count: int, start_s: float | None = None, end_s: float | None = None, **rest: Any) -> Frames:
    return read_frames(path, Wanted(Sampling(count, **rest), MODEL_SIZE, Limits(), start_s, end_s))


def check_against_sequential(path: Path, times_s: np.ndarray, cases: list[tuple[Frames, np.ndarray]]) -> None:
    """`cases`: what was read, and the positions of the frames that it should be."""
    every = sorted({int(position) for _, wanted in cases for position in wanted})
    pictures = dict(zip(every, sequential_pictures(path, every, (96, 96)), strict=True))
    for frames, wanted in cases:
        assert not frames.partial
        assert frames.wanted == len(wanted)
        np.testing.assert_allclose(frames.times_s, times_s[wanted], atol=1e-6)
        np.testing.assert_array_equal(frames.pixels_FHWC, np.stack([pictures[int(i)] for i in wanted]))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW_TO_READ)) for name in READABLE]
)
def test_public_files_give_what_a_sequential_read_gives(name: str) -> None:
    path = CORPUS / name
    times_s, _ = sequential_times(path)
    cases = [(read(path, n), np.unique(np.linspace(0, len(times_s) - 1, n, dtype=int))) for n in (8, 32)]
    start_s, end_s = 0.25 * times_s[-1], 0.75 * times_s[-1] + 1e-4
    clip = np.flatnonzero((times_s >= start_s) & (times_s < end_s))
    cases.append((read(path, 5, start_s, end_s), clip[np.unique(np.linspace(0, len(clip) - 1, 5, dtype=int))]))
    check_against_sequential(path, times_s, cases)


@pytest.mark.parametrize("name", [e["file"] for e in corpus() if e["result"] != "ok" and e["file"] not in PARTIAL])
def test_public_broken_files_get_their_class(name: str) -> None:
    with pytest.raises(RowError) as caught:
        read(CORPUS / name, 8)
    assert caught.value.error_class == BROKEN[Path(name).name.split("+")[-1]]


@pytest.mark.skipif(not corpus(), reason="the public files are not here")
@pytest.mark.parametrize("name", PARTIAL)
def test_public_damaged_files_give_what_can_be_read_and_say_so(name: str) -> None:
    path = CORPUS / name
    frames = read(path, 32)
    assert frames.partial and 0.25 * 32 <= len(frames.times_s) < 32 == frames.wanted
    times_s, _ = sequential_times(path)
    nearest = np.abs(times_s[None] - np.array(frames.times_s)[:, None])
    assert nearest.min(axis=1).max() < 1e-6  # every frame given is one that a sequential read has too


@pytest.mark.skipif(not corpus(), reason="the public files are not here")
@pytest.mark.parametrize("sampling", [Sampling(7, strategy="keyframes"), Sampling(4)], ids=["keyframes", "uniform"])
def test_pictures_that_ffmpeg_made_up_are_given_and_said(sampling: Sampling) -> None:
    """All frames are there, and most of the first ones grey: a decoder hides what it lacks."""
    frames = read_frames(CORPUS / PARTIAL[1], Wanted(sampling, MODEL_SIZE, Limits()))
    assert frames.partial and len(frames.times_s) == frames.wanted == sampling.count


@pytest.mark.skipif(not corpus(), reason="the public files are not here")
def test_every_public_file_is_tried() -> None:
    assert len(corpus()) == len(READABLE) + len(BROKEN) + len(PARTIAL) == 112


KINDS: dict[str, dict[str, Any]] = {
    "b-frames.mp4": {"codec_options": {"bf": "3"}},
    "b-pyramid.mp4": {"codec_options": {"x264-params": "bframes=8:b-adapt=0:b-pyramid=normal:keyint=50"}},
    "interlaced.mp4": {"codec_options": {"x264-params": "tff=1:bframes=3:b-adapt=0"}},
    "open-gop.mp4": {"codec_options": {"x264-params": "open-gop=1:bframes=3:keyint=10:scenecut=0"}},
    "intra-refresh.mp4": {"codec_options": {"x264-params": "intra-refresh=1:keyint=10"}},
    "intra-refresh.mkv": {"codec_options": {"x264-params": "intra-refresh=1:keyint=10"}},
    "open-gop.ts": {"codec_options": {"x264-params": "open-gop=1:bframes=3:keyint=10:scenecut=0"}},
    "open-gop-hevc.mp4": {"codec": "libx265", "codec_options": {"x265-params": "open-gop=1:keyint=10:log-level=none"}},
    "all-key.mp4": {"gop": 1},
    "one-key.mp4": {"gop": 1000},
    "fragmented.mp4": {"options": {"movflags": "frag_keyframe+empty_moov"}},
    "sound.mp4": {"audio": True},
    "vp8.webm": {"codec": "libvpx", "codec_options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
    "vp9.webm": {"codec": "libvpx-vp9", "codec_options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
    "vp9-alpha.webm": {"codec": "libvpx-vp9", "pix_fmt": "yuva420p"},
    "av1.mkv": {"codec": "libsvtav1", "codec_options": {"svtav1-params": "lookahead=8"}},
    "mkv.mkv": {},
    "ts.ts": {},
    "mpeg2.mpg": {"codec": "mpeg2video", "codec_options": {"bf": "2"}},
    "mpeg4-b.avi": {"codec": "mpeg4", "codec_options": {"bf": "2"}},
    "h264-b.avi": {"codec_options": {"bf": "3"}},
    "flv.flv": {"codec": "flv"},
    "gif.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "wmv.asf": {"codec": "wmv2"},
    "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "alpha.mov": {"codec": "prores_ks", "pix_fmt": "yuva444p10le"},
    "alpha-rle.mov": {"codec": "qtrle", "pix_fmt": "argb"},
    "grey.mp4": {"pix_fmt": "gray"},
    "grey-10bit.mp4": {"pix_fmt": "gray10le"},
    "10bit.mp4": {"pix_fmt": "yuv420p10le"},
    "444.mp4": {"pix_fmt": "yuv444p"},
    "odd.mkv": {"codec": "ffv1", "size": (97, 131)},
    "wide.mkv": {"codec": "ffv1", "size": (8, 4096)},
    "variable.mp4": {"times_ms": [i * i * 10 for i in range(50)]},
    "variable.mkv": {"times_ms": [i * 40 + 300 * (i // 10) for i in range(50)]},
    "late-start.mkv": {"times_ms": [7000 + 40 * i for i in range(50)]},
    "late-start.ts": {"times_ms": [7000 + 40 * i for i in range(50)]},
    "called-keys.avi": {"codec": "h263", "size": (144, 176)},  # every packet of it, whatever it is
    "called-keys.mov": {"codec": "rpza", "pix_fmt": "rgb555le"},
}


@pytest.mark.parametrize("name", KINDS)
def test_made_files_of_every_kind(name: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / name, frames=50, **KINDS[name])
    for count in (8, 50, 64):
        assert numbers(read(path, count).pixels_FHWC) == np.unique(np.linspace(0, 49, count, dtype=int)).tolist()
    times_s, _ = sequential_times(path)
    for strategy in ({}, {"strategy": "fps", "fps": 4.0}):
        frames = read(path, 16, float(times_s[20]), float(times_s[40]), **strategy)
        assert set(numbers(frames.pixels_FHWC)) <= set(range(20, 40))
        expected = [float(times_s[number]) for number in numbers(frames.pixels_FHWC)]
        np.testing.assert_allclose(frames.times_s, expected, atol=1e-6)
        check_against_sequential(path, times_s, [(frames, np.array(numbers(frames.pixels_FHWC)))])


@pytest.mark.parametrize("name", ["b-pyramid.mp4", "mpeg2.mpg"])
def test_frames_that_nobody_leans_on_are_spared(name: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / name, frames=50, **KINDS[name])
    given = []
    for spare in (False, True):
        with opened(path, Limits()) as (container, stream):
            decoder = Decoder(stream, trouble := Trouble())
            frames = [frame for packet in container.demux(stream) if packet.size
                      for frame in decoder.feed(packet, spare=spare)]  # fmt: skip
            given.append(len(frames + decoder.drain()))
            assert not trouble.errors
    assert given[0] == 50 and given[1] < 35


@pytest.mark.parametrize("seed", range(50))
def test_in_damaged_files_nothing_is_spared(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in for a lost picture may come from any other: the frames are those of a reading that spares none."""
    sound = write_video(tmp_path / "sound.mkv", frames=50, **KINDS["b-frames.mp4"])
    path = tmp_path / "damaged.mkv"
    path.write_bytes(sound.read_bytes()[:1000] + flip(sound.read_bytes()[1000:], seed))
    found = []
    for can_spare in (packets.CAN_SPARE, set[str]()):
        monkeypatch.setattr(packets, "CAN_SPARE", can_spare)
        try:
            frames = read(path, 8)
            found.append((frames.times_s, frames.pixels_FHWC.tobytes()))
        except RowError as error:
            found.append(error.error_class)
    assert found[0] == found[1]


def test_one_frame_is_a_whole_video(tmp_path: Path) -> None:
    frames = read(write_video(tmp_path / "one.mp4", frames=1), 32)
    assert (numbers(frames.pixels_FHWC), frames.wanted, frames.partial) == ([0], 1, False)
    assert frames.duration_s == pytest.approx(0.04, abs=0.001)


def test_keyframes_are_the_keyframes(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", frames=100, gop=10, codec_options={"x264-params": "scenecut=0"})
    assert numbers(read(path, 32, strategy="keyframes").pixels_FHWC) == list(range(0, 100, 10))
    assert numbers(read(path, 4, strategy="keyframes").pixels_FHWC) == [0, 30, 60, 90]
    assert numbers(read(path, 32, 0.5, 0.7, strategy="keyframes").pixels_FHWC) == [13]  # none inside: its first frame


def test_keyframes_are_not_what_the_container_calls_so(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.avi", **KINDS["called-keys.avi"])
    assert numbers(read(path, 64, strategy="keyframes").pixels_FHWC) == [0, 12, 24, 36, 48]


def test_fps_takes_what_is_on_screen_and_caps(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", frames=100)
    assert numbers(read(path, 32, strategy="fps", fps=1.0).pixels_FHWC) == [0, 25, 50, 75]
    assert numbers(read(path, 32, strategy="fps", fps=2.0).pixels_FHWC) == [0, 12, 25, 37, 50, 62, 75, 87]
    assert numbers(read(path, 3, strategy="fps", fps=2.0).pixels_FHWC) == [0, 49, 99]
    assert numbers(read(path, 200, strategy="fps", fps=1000.0).pixels_FHWC) == list(range(100))


def test_a_clip_begins_with_the_frame_that_is_shown_at_its_start(tmp_path: Path) -> None:
    """To the bit, which it is not where the length of a tick is rounded before it is multiplied."""
    path = write_video(tmp_path / "v.mp4", frames=150, fps=10, size=(16, 16))
    every, known = Wanted(Sampling(1000), MODEL_SIZE, Limits()), Known()
    assert read_frames(path, every, known).times_s == tuple(n / 10 for n in range(150))
    for n in range(150):
        assert numbers(read_frames(path, replace(every, start_s=n / 10, end_s=(n + 1) / 10), known).pixels_FHWC) == [n]


def test_a_clip_between_two_frames_is_the_one_on_screen(tmp_path: Path) -> None:
    path = write_video(tmp_path / "slides.mkv", frames=3, times_ms=[0, 10_000, 20_000])
    frames = read(path, 8, 12.0, 15.0)
    assert (numbers(frames.pixels_FHWC), frames.times_s, frames.duration_s) == ([1], (10.0,), 3.0)


UNIT = 1 << 16
AS_IT_IS = (1, 0, 0, 1)
# ISO/IEC 14496-12: (x, y) is shown at (a x + c y, b x + d y), y pointing down; here as (a, b, c, d), and what is meant
TURNS = {
    "none": ((UNIT, 0, 0, UNIT), AS_IT_IS),
    "right": ((0, UNIT, -UNIT, 0), (0, 1, -1, 0)),
    "half": ((-UNIT, 0, 0, -UNIT), (-1, 0, 0, -1)),
    "left": ((0, -UNIT, UNIT, 0), (0, -1, 1, 0)),
    "mirrored": ((-UNIT, 0, 0, UNIT), (-1, 0, 0, 1)),
    "upside down": ((UNIT, 0, 0, -UNIT), (1, 0, 0, -1)),
    "transposed": ((0, UNIT, UNIT, 0), (0, 1, 1, 0)),
    "transposed the other way": ((0, -UNIT, -UNIT, 0), (0, -1, -1, 0)),
    "right but for rounding": ((1, UNIT, -UNIT, 1), (0, 1, -1, 0)),
    "mirrored and shrunk": ((-UNIT // 2, 0, 0, UNIT // 5), (-1, 0, 0, 1)),
    "askew": ((UNIT // 2, UNIT // 2, -UNIT // 2, UNIT // 2), AS_IT_IS),  # not a quarter turn: ignored
    "nearly right": ((UNIT // 20, UNIT, -UNIT, UNIT // 20), AS_IT_IS),  # three degrees from it: ignored
}


def shown(stored_44: np.ndarray, a: int, b: int, c: int, d: int) -> np.ndarray:
    """By the standard's formula, block by block."""
    shown_44 = np.empty_like(stored_44)
    for y, x in np.ndindex(4, 4):
        shown_44[b * x + d * y + 3 * (b + d < 0), a * x + c * y + 3 * (a + c < 0)] = stored_44[y, x]
    return shown_44


@pytest.mark.parametrize("turn", TURNS)
def test_turned_pictures_stand_upright(turn: str, tmp_path: Path) -> None:
    (a, b, c, d), meant = TURNS[turn]
    path = write_video(tmp_path / "v.mp4", frames=30, matrix=[a, b, 0, c, d, 0, 0, 0, 1 << 30])
    frames = read_frames(path, Wanted(Sampling(2), FrameSize(48), Limits()))
    bits_44 = np.array([29 >> bit & 1 for bit in range(16)]).reshape(4, 4)
    expected = sum(int(bit) << place for place, bit in enumerate(shown(bits_44, *meant).ravel()))
    assert numbers(frames.pixels_FHWC)[1] == expected
    assert frames.pixels_FHWC.shape[1:3] == ((48, 64) if meant[0] else (64, 48))


@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8])
def test_pictures_with_exif_are_read_and_stand_upright(orientation: int | None, tmp_path: Path) -> None:
    """As cameras write them into Motion JPEG: a kind of side data that PyAV has no name for."""
    exif, upright = Image.Exif(), []
    exif[ExifTags.Base.Make] = "a camera"
    if orientation:
        exif[ExifTags.Base.Orientation] = orientation
    with av.open(str(tmp_path / "v.avi"), "w") as out:
        video = out.add_stream("mjpeg", rate=25)
        video.width, video.height, video.pix_fmt = 128, 96, "yuvj420p"
        for number in range(30):
            Image.fromarray(picture(number, 96, 128)).save(jpeg := io.BytesIO(), "jpeg", quality=95, exif=exif)
            upright.append(np.asarray(ImageOps.exif_transpose(Image.open(jpeg))))
            packet = av.Packet(jpeg.getvalue())
            packet.pts = packet.dts = number
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 25), video, True
            out.mux(packet)
    frames = read_frames(tmp_path / "v.avi", Wanted(Sampling(8), FrameSize(48), Limits()))
    assert numbers(frames.pixels_FHWC) == [numbers(upright[n][None])[0] for n in np.linspace(0, 29, 8, dtype=int)]


@pytest.mark.parametrize(("hours", "within_s"), [(3, 30), pytest.param(24, 5, marks=pytest.mark.slow)])
def test_hours_at_one_frame_a_second_take_seconds(hours: int, within_s: int, tmp_path: Path) -> None:
    count = hours * 3600
    path = write_video(tmp_path / "v.mp4", frames=count, size=(16, 16), fps=1, codec="mpeg4", gop=60)
    frames = read_frames(path, Wanted(Sampling(8), MODEL_SIZE, Limits(video_s=within_s)))
    expected = np.linspace(0, count - 1, 8, dtype=int)
    assert numbers(frames.pixels_FHWC) == (expected % (1 << 16)).tolist()
    np.testing.assert_allclose(frames.times_s, expected)


LONG: dict[str, dict[str, Any]] = {
    "v.mp4": {"codec_options": {"x264-params": "open-gop=1:bframes=3:keyint=60", "preset": "ultrafast"}},
    "v.mkv": {"codec_options": {"bf": "2"}},
    "v.ts": {"codec_options": {"bf": "2"}},
    "v.webm": {"codec": "libvpx"},
    "v.avi": {"codec": "mpeg4"},
    "v.mpg": {"codec": "mpeg2video", "codec_options": {"bf": "2"}},
    "v.flv": {"codec": "flv"},
    "v.asf": {"codec": "wmv2"},
}


@pytest.mark.parametrize("name", LONG)
def test_jumps_land_right_in_every_container(name: str, tmp_path: Path) -> None:
    """Gaps of thousands of packets between the wanted frames."""
    path = write_video(tmp_path / name, frames=3000, size=(32, 32), gop=50, **LONG[name])
    for frames, rule in ((read(path, 3), [0, 1499, 2999]), (read(path, 2, 100.02, 119.98), [2501, 2999])):
        assert numbers(frames.pixels_FHWC) == rule
        assert not frames.partial


class Counted(io.FileIO):
    """A file that counts what is read of it."""

    taken = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size) or b""
        self.taken += len(data)
        return data


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv"])  # to somewhat before the keyframe, and right to it
def test_what_lies_between_is_jumped_over_and_not_read(name: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / name, frames=1500, gop=25, codec_options=HEAVY)
    known = Known()
    with Counted(path) as file:
        read_frames(file, Wanted(Sampling(1), MODEL_SIZE, Limits()), known)
        assert file.taken >= path.stat().st_size, "the first clip looks at every packet"
        file.taken = 0
        frames = read_frames(file, Wanted(Sampling(3), MODEL_SIZE, Limits()), known)
    assert numbers(frames.pixels_FHWC) == [0, 749, 1499] and file.taken < 0.3 * path.stat().st_size


def test_probe_says_what_the_headers_say(tmp_path: Path) -> None:
    header = probe(write_video(tmp_path / "v.mp4"))
    assert (header.width, header.height, header.codec, header.frames, header.average_fps) == (128, 96, "h264", 50, 25)
    assert header.duration_s == pytest.approx(2.0)
    with (tmp_path / "v.mp4").open("rb") as file:
        assert probe(file) == header
    ts = probe(write_video(tmp_path / "v.ts"))
    assert ts.frames is None


@pytest.mark.parametrize("start_s", [0, 1])
@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.ts", "v.avi"])
def test_clips_are_cut_where_there_are_pictures(name: str, start_s: int, tmp_path: Path) -> None:
    """The sound goes on for two seconds more, and that is what the container's header says."""
    codec = {"codec": "mjpeg", "pix_fmt": "yuvj420p"} if name == "v.avi" else {}
    times_ms = [1000 * start_s + 40 * n for n in range(100)]
    path = write_video(tmp_path / name, 100, (32, 32), times_ms=times_ms, audio_s=start_s + 6, **codec)
    with av.open(str(path)) as container:
        assert container.duration > (start_s + 5.8) * av.time_base
    duration_s = probe(path).duration_s
    assert duration_s is not None and duration_s == pytest.approx(read(path, 1).duration_s, abs=0.05)
    for span in clip_spans(duration_s, ClipsSpec(every_s=2)):
        assert not read(path, 4, *span).partial


@pytest.mark.parametrize("later_s", [0.013, 0.0, 1.0, -0.9])
@pytest.mark.parametrize("name", ["v.ts", "v.mpg"])
def test_a_recording_behind_another_goes_on_where_that_ends(name: str, later_s: float, tmp_path: Path) -> None:
    """The second's times begin anew, somewhere among those of the first."""
    kind = {"codec": "mpeg2video" if name == "v.mpg" else "libx264", "codec_options": {"bf": "2"}}
    parts = [write_video(tmp_path / f"{frames}-{name}", frames, options={"output_ts_offset": str(start_s)}, **kind)
             for frames, start_s in ((50, 1.0), (75, 1.0 + later_s))]  # fmt: skip
    path = tmp_path / name
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    for count in (8, 125):
        rule = np.unique(np.linspace(0, 124, count, dtype=int))
        frames = read(path, count)
        assert numbers(frames.pixels_FHWC) == np.where(rule < 50, rule, rule - 50).tolist()
        # MPEG-PS has no times of the last frames before the break
        np.testing.assert_allclose(frames.times_s, 0.04 * rule, atol=0.1)
        assert frames.duration_s == pytest.approx(5.0, abs=0.1) and not frames.partial


def test_sound_that_comes_up_on_the_way_ends_nothing(tmp_path: Path) -> None:
    """PyAV asks for its last packet, too, and does not know of it."""
    silent = [write_video(tmp_path / f"{frames}.ts", frames, codec_options=HEAVY) for frames in (50, 150)]
    parts = [silent[0], write_video(tmp_path / "loud.ts", 20, audio=True), silent[1]]
    path = tmp_path / "v.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    with av.open(str(path)) as container:
        assert len(container.streams) == 1
    assert numbers(read(path, 8).pixels_FHWC) == [0, 31, 12, 23, 55, 86, 117, 149]


@pytest.mark.parametrize(("name", "codec"), [("v.avi", "rawvideo"), ("v.mov", "rawvideo"), ("v.mov", "smc")])
def test_a_palette_holds_for_all_that_follows_it(name: str, codec: str, tmp_path: Path) -> None:
    """It comes with the first packet, and a clip begins at a later one."""
    path = tmp_path / name
    greys_P4 = np.repeat(np.arange(256, dtype=np.uint8)[::-1, None], 4, axis=1)
    with av.open(str(path), "w") as out:
        video = out.add_stream(codec, rate=25)
        video.width, video.height, video.pix_fmt = 128, 96, "pal8"
        for number in range(50):
            out.mux(
                video.encode(av.VideoFrame.from_ndarray((255 - picture(number, 96, 128)[..., 0], greys_P4), "pal8"))
            )
        out.mux(video.encode(None))
    assert numbers(read(path, 3, 1.0, 1.5).pixels_FHWC) == [25, 31, 37]


def test_no_frame_is_made_up_where_its_keyframe_is_missing(tmp_path: Path) -> None:
    """As FFmpeg does where some frames are spared, and not where all are read."""
    path = write_video(tmp_path / "v.mp4", frames=100, codec_options={"x264-params": "bframes=3:b-adapt=0:scenecut=0"})
    whole = path.read_bytes()
    with av.open(str(path)) as container:
        keys = [packet.pos for packet in container.demux(video=0) if packet.is_keyframe]
    assert len(keys) == 9
    for key in keys[1:]:
        path.write_bytes(whole[: key + 4] + bytes([whole[key + 4] ^ 0x1F]) + whole[key + 5 :])  # a kind of no use
        times_s, _ = sequential_times(path)
        frames = read(path, 8)
        assert set(frames.times_s) <= set(times_s.tolist())
        assert numbers(frames.pixels_FHWC) == [round(25 * time_s) for time_s in frames.times_s]
        assert frames.partial == (len(frames.times_s) < 8)


def flv_tags(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(time in ms, what stands behind the tag's time)."""
    at = int.from_bytes(data[5:9]) + 4
    while at < len(data):
        end = at + 11 + int.from_bytes(data[at + 1 : at + 4]) + 4
        yield int.from_bytes(bytes([data[at + 7], *data[at + 4 : at + 7]])), data[at:end]
        at = end


def test_headers_that_change_on_the_way_are_followed(tmp_path: Path) -> None:
    """A live stream that another encoder took up again: the first one's headers don't fit its frames."""
    joined = b""
    for name, size, later_ms in (("a.flv", (96, 128), 0), ("b.flv", (48, 64), 2000)):
        data = write_video(tmp_path / name, size=size, codec_options={"bf": "0"}).read_bytes()
        joined = joined or data[: int.from_bytes(data[5:9]) + 4]
        for time_ms, tag in flv_tags(data):
            if tag[0] == 9 and tag[12] < 2:  # video, and not its end
                joined += tag[:4] + (time_ms + later_ms).to_bytes(3) + tag[7:]
    path = tmp_path / "v.flv"
    path.write_bytes(joined)
    assert numbers(read(path, 100).pixels_FHWC) == [*range(50), *range(50)]
    assert numbers(read(path, 5, 2.5, 3.1).pixels_FHWC) == [13, 16, 20, 23, 27]


def test_frames_between_two_whose_times_are_told_stand_evenly(tmp_path: Path) -> None:
    """A programme stream tells one time in several frames, the more seldom the smaller they are."""
    path = write_video(tmp_path / "v.vob", frames=100, codec_options={"bf": "2"})
    np.testing.assert_allclose(read(path, 100).times_s, np.arange(100) / 25, atol=0.001)
    assert numbers(read(path, 5, 1.999, 2.199).pixels_FHWC) == [50, 51, 52, 53, 54]


def test_an_open_file_reads_like_a_path(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mkv")
    with path.open("rb") as file:
        frames = read_frames(file, Wanted(Sampling(8), MODEL_SIZE, Limits()))
    np.testing.assert_array_equal(frames.pixels_FHWC, read(path, 8).pixels_FHWC)
    assert frames.bytes_read == path.stat().st_size


def test_pictures_carry_their_numbers() -> None:
    assert numbers(np.stack([picture(n, 96, 96) for n in (0, 1, 77, 65535)])) == [0, 1, 77, 65535]
