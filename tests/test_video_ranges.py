"""Reading a file of which only the wanted parts are here gives what reading all of it gives; public and made videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from video_files import CORPUS, HEAVY, MODEL_SIZE, corpus, flip, numbers, write_video

from mlb_batch.errors import RowError
from mlb_batch.video import Frames, Limits, Sampling, Wanted, read_frames
from mlb_batch.video.known import Known
from mlb_batch.video.length import lasting_s
from mlb_batch.video.parts import MOST_BYTES, Parts, Range, merged
from mlb_batch.video.remote import _missing

PUBLIC = [entry["file"] for entry in corpus() if entry["file"].endswith((".mp4", ".mov", ".mkv", ".webm", ".avi"))]


class Holes:
    """A copy of a file into which only what is asked for is written."""

    def __init__(self, source: Path, folder: Path) -> None:
        self._data, self._path = source.read_bytes(), folder / "holes"
        self._path.write_bytes(bytes(len(self._data)))
        self.brought: list[Range] = []

    def parts(self) -> Parts:
        return Parts(self._path, len(self._data), self._bring)

    def _bring(self, ranges: Sequence[Range]) -> None:
        with self._path.open("r+b") as file:
            for start, end in ranges:
                file.seek(start)
                file.write(self._data[start:end])
        self.brought += ranges

    @property
    def share(self) -> float:
        return sum(end - start for start, end in merged(self.brought, 0)) / len(self._data)


def both(source: Path, folder: Path, count: int, *span: float) -> tuple[Frames | str, Frames | str, float]:
    holes = Holes(source, folder)
    out: list[Frames | str] = []
    with holes.parts() as parts:
        for one in (source, parts):
            try:
                out.append(read_frames(one, Wanted(Sampling(count), MODEL_SIZE, Limits(), *span)))
            except RowError as error:
                out.append(error.error_class)
    return out[0], out[1], holes.share


def check(whole: Frames | str, parts: Frames | str) -> None:
    if isinstance(whole, str) or isinstance(parts, str):
        assert whole == parts
        return
    assert (whole.times_s, whole.wanted, whole.partial) == (parts.times_s, parts.wanted, parts.partial)
    assert whole.duration_s == parts.duration_s
    np.testing.assert_array_equal(whole.pixels_FHWC, parts.pixels_FHWC)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_videos(name: str, tmp_path: Path) -> None:
    whole, parts, _ = both(CORPUS / name, tmp_path, 4)
    check(whole, parts)


@pytest.mark.skipif(not PUBLIC, reason="the public files are not here")
def test_clips_of_public_videos_need_a_part_of_them(tmp_path: Path) -> None:
    long = CORPUS / "iejMac+video2dataset" / "test_video.mp4"
    for start_s in (0.0, 31.7, 90.2):
        whole, parts, share = both(long, tmp_path, 8, start_s, start_s + 5)
        check(whole, parts)
        assert share < 0.25


@pytest.mark.skipif(not PUBLIC, reason="the public files are not here")
@pytest.mark.parametrize("seeds", [(*range(40), 362), pytest.param(range(40, 1000), marks=pytest.mark.slow)])
def test_a_damaged_index_never_gives_other_frames(seeds: Sequence[int], tmp_path: Path) -> None:
    """Bytes are changed in the index only: it lies about places, times and keyframes."""
    small = [name for name in PUBLIC if name.endswith(".mp4") and (CORPUS / name).stat().st_size < 300_000]
    for seed in seeds:
        data = (CORPUS / small[seed % len(small)]).read_bytes()
        at = data.find(b"moov")
        end = at + int.from_bytes(data[at - 4 : at], "big") if at > 0 else 0
        path = tmp_path / "mutant.mp4"
        path.write_bytes(data[:at] + flip(data[at:end], seed)[: end - at] + data[end:] if end > at else data)
        whole, parts, _ = both(path, tmp_path, 4)
        check(whole, parts)


def test_where_every_frame_lies_decides_what_is_brought(tmp_path: Path) -> None:
    for name, options in (("end.mp4", {}), ("start.mp4", {"options": {"movflags": "faststart"}})):
        path = write_video(tmp_path / name, 1500, (96, 128), gop=25, codec_options=HEAVY, **options)  # type: ignore[arg-type]
        whole, parts, share = both(path, tmp_path, 4)
        check(whole, parts)
        assert share < 0.3, name


def test_how_long_it_lasts_is_known_by_the_index(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", 800, times_ms=[n * n for n in range(800)], codec_options=HEAVY)
    holes = Holes(path, tmp_path)
    with holes.parts() as parts:
        lasts_s = lasting_s(parts, Limits(), Known())
    assert lasts_s == lasting_s(path, Limits(), Known()) > 799**2 / 1000
    assert holes.share < 0.2


def test_what_is_read_on_and_on_is_brought_in_larger_pieces_up_to_the_largest(tmp_path: Path) -> None:
    source = tmp_path / "long"
    source.write_bytes(bytes(4 * MOST_BYTES))
    holes = Holes(source, tmp_path)
    with holes.parts() as parts:
        while parts.read(64 << 10):
            pass
    pieces = [end - start for start, end in holes.brought]
    assert sum(pieces) == 4 * MOST_BYTES and pieces[0] < max(pieces) == MOST_BYTES


def test_what_is_damaged_before_a_clips_keyframe_is_no_damage_of_the_clip(tmp_path: Path) -> None:
    """Frames of an open GOP that are shown before its keyframe are read, not needed: no more of the file is brought."""
    open_gop = {**HEAVY, "x264-params": f"{HEAVY['x264-params']}:open-gop=1:bframes=3:b-adapt=0:keyint=24:scenecut=0"}
    path = write_video(tmp_path / "v.mp4", frames=500, codec_options=open_gop)
    data, key_pts, keys_s = bytearray(path.read_bytes()), 0, []
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            if packet.is_keyframe and packet.pts is not None:
                key_pts = packet.pts
                keys_s.append(float(packet.pts * packet.time_base))
            elif packet.size and packet.pts < key_pts:
                data[packet.pos + 4 : packet.pos + packet.size] = bytes(packet.size - 4)
    assert data != path.read_bytes()
    path.write_bytes(data)
    whole, parts, share = both(path, tmp_path, 3, keys_s[10], keys_s[10] + 0.3)
    check(whole, parts)
    assert isinstance(parts, Frames) and not parts.partial and share < 0.3


def test_an_index_that_proved_wrong_is_believed_no_more(tmp_path: Path) -> None:
    """Nor is one that proved nothing doubted: of a clip that isn't there nothing was read."""
    path = write_video(tmp_path / "v.mp4", frames=500, codec_options=HEAVY)
    path.write_bytes(path.read_bytes().replace(b"stss", b"free", 1))  # every frame is a keyframe, says the index
    holes, known = Holes(path, tmp_path), Known()

    def brings(start_s: float) -> list[Range]:
        holes.brought = []
        with holes.parts() as parts:
            clip = Wanted(Sampling(3), MODEL_SIZE, Limits(), start_s, start_s + 1)
            assert numbers(read_frames(parts, clip, known).pixels_FHWC)[0] == 25 * start_s
        return holes.brought

    whole = (0, path.stat().st_size)
    with pytest.raises(RowError, match="ends at 20"):
        brings(70.0)
    assert whole not in holes.brought
    by_index, *_, instead = brings(5.0)
    assert by_index != whole == instead
    assert brings(10.0) == [whole]
    holes.brought = []
    with holes.parts() as parts:
        assert lasting_s(parts, Limits(), known) == 20.0
    assert holes.brought == [whole]


ranges = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)).map(lambda one: (one[0], one[0] + one[1])))


@given(ranges, ranges.filter(bool))
def test_what_is_missing_is_exactly_what_is_not_here(here: list[Range], wanted: list[Range]) -> None:
    have = {byte for start, end in here for byte in range(start, end)}
    for one in wanted:
        missing = [byte for start, end in _missing(one, here) for byte in range(start, end)]
        assert sorted(missing) == sorted(set(range(*one)) - have)
