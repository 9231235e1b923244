"""`read`: frames per second of a core, against a plain sequential loop and other readers, on short and long videos.

Ours is timed in this process, where its core seconds can be seen; `sandboxed` is the same in the killable child that a
job reads in, by the clock on the wall. Videos in storage are read twice over: from copies of them, as above, and from
where they are (stored.py).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mlb_batch.bench.loops import LIMITS, SIZE, Loop, loops
from mlb_batch.bench.options import Options
from mlb_batch.bench.rounds import Lap, Spread, alternate, each, times_faster
from mlb_batch.bench.stored import copied, from_storage
from mlb_batch.errors import InputError, RowError, SpecError
from mlb_batch.source.listing import video_uris
from mlb_batch.spec_parts import InputSpec
from mlb_batch.spec_text import explain
from mlb_batch.storage import local_path
from mlb_batch.tiny.clips import write_sample_clips
from mlb_batch.video import Reader, Sampling, Wanted, probe, read_frames

COUNTS = (8, 32)
LONG_S = 60.0


def read(options: Options) -> dict[str, Any]:
    found, absent = loops()
    with tempfile.TemporaryDirectory() as scratch:
        videos, left_out = _readable(_listed(options, Path(scratch)), found)
        if not videos:
            raise InputError(f"--videos: {options.videos} has no video that all readers can read")
        measured: dict[str, Any] = {}
        for name, wanted in _CLASSES.items():
            some = [one for one in videos if wanted(one)]
            for count in COUNTS if some else ():
                measured |= _measured(f"{name}, {count} frames", some, count, found, options.rounds)
    return {"absent": absent, "left_out": left_out, **measured}


@dataclass(frozen=True)
class _Video:
    uri: str
    path: Path  # of the video, or of its copy
    duration_s: float = 0.0

    @property
    def is_stored(self) -> bool:
        return local_path(self.uri) is None


_CLASSES: dict[str, Callable[[_Video], bool]] = {
    "short": lambda video: video.duration_s <= LONG_S,
    "long": lambda video: video.duration_s > LONG_S,
}


def _listed(options: Options, scratch: Path) -> list[_Video]:
    if options.videos is None:
        write_sample_clips(scratch, options.clips, seed=0)
    try:
        given = InputSpec(videos=options.videos or str(scratch))
    except ValidationError as error:
        raise SpecError(f"--{explain(error, InputSpec)}") from None
    uris = video_uris(given)[: options.clips]
    return [_Video(uri, local_path(uri) or copied(uri, scratch / str(number))) for number, uri in enumerate(uris)]


def _readable(listed: Sequence[_Video], found: dict[str, Loop]) -> tuple[list[_Video], dict[str, str]]:
    """Videos that all can read; of the others, who could not."""
    videos, left_out = [], {}
    for video in listed:
        path, name = video.path, video.uri.rpartition("/")[2]
        try:
            duration_s = probe(path, LIMITS).duration_s or 0.0
            _ours(path, COUNTS[0])
        except RowError as error:
            left_out[name] = str(error)
            continue
        failed = next((reader for reader, loop in found.items() if not _reads(loop, path)), None)
        if failed:
            left_out[name] = f"{failed} can't read it"
        else:
            videos.append(replace(video, duration_s=duration_s))
    return videos, left_out


def _reads(loop: Loop, path: Path) -> bool:
    try:
        return all(len(loop.read(str(path), count, SIZE)) > 0 for count in COUNTS)
    except loop.errors:
        return False


def _ours(path: Path, count: int) -> int:
    return len(read_frames(path, Wanted(Sampling(count), SIZE, LIMITS)).times_s)


def _measured(
    name: str, videos: Sequence[_Video], count: int, found: dict[str, Loop], rounds: int
) -> dict[str, Any]:  # fmt: skip
    measured = {name: _class(videos, count, found, rounds)}
    if all(one.is_stored for one in videos):
        copies = {one.uri: one.path for one in videos}
        measured[f"{name}, from storage"] = from_storage(copies, count, found, rounds)
    return measured


def _class(videos: Sequence[_Video], count: int, found: dict[str, Loop], rounds: int) -> dict[str, Any]:
    paths = [one.path for one in videos]
    frames, laps = _frames(paths, count), _laps(paths, count, found, rounds)
    core = {name: [one.core_s for one in some] for name, some in laps.items() if name != "sandboxed"}
    wall = {name: [one.wall_s for one in some] for name, some in laps.items()}
    return {
        "videos": len(paths),
        "hours": sum(one.duration_s for one in videos) / 3600,
        "frames": frames,
        "frames_per_core_s": {name: Spread.of([frames / s for s in some]) for name, some in core.items()},
        "ratios": {f"ours_over_{name}": times_faster(core[name], core["ours"]) for name in found},
        "wall_ratios": {
            **{f"ours_over_{name}": times_faster(wall[name], wall["ours"]) for name in found},
            "sandboxed_over_ours": times_faster(wall["ours"], wall["sandboxed"]),
        },
    }


def _laps(paths: Sequence[Path], count: int, found: dict[str, Loop], rounds: int) -> dict[str, list[Lap]]:
    contenders: dict[str, Callable[[], object]] = {
        name: partial(each, paths, partial(_loop, loop, count)) for name, loop in found.items()
    }
    with Reader(Sampling(count), SIZE, LIMITS) as reader:
        reader.read(str(paths[0]))  # its child starts once, not with every video
        contenders |= {
            "ours": partial(each, paths, lambda path: _ours(path, count)),
            "sandboxed": partial(each, paths, lambda path: reader.read(str(path))),
        }
        return alternate(contenders, rounds, warm=False)


def _loop(loop: Loop, count: int, path: Path) -> object:
    return loop.read(str(path), count, SIZE)


def _frames(paths: Sequence[Path], count: int) -> int:
    return sum(_ours(path, count) for path in paths)
