"""`read`: frames per second of a core, against a plain sequential loop and other readers, on short and long videos.

Ours is timed in this process, where its core seconds can be seen; `sandboxed` is the same in the killable child that a
job reads in, by the clock on the wall.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mlb_batch.bench.loops import Loop, loops
from mlb_batch.bench.options import Options
from mlb_batch.bench.rounds import Spread, alternate, times_faster
from mlb_batch.errors import InputError, RowError
from mlb_batch.tiny.clips import write_sample_clips
from mlb_batch.video import FrameSize, Limits, Reader, Sampling, probe, read_frames

COUNTS = (8, 32)
SIZE = FrameSize((384, 384))
LONG_S = 60.0
LIMITS = Limits(video_s=600.0)
SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".mpg", ".ts", ".flv")


def read(options: Options) -> dict[str, Any]:
    found, absent = loops()
    with ExitStack() as stack:
        folder = options.videos or _made(Path(stack.enter_context(tempfile.TemporaryDirectory())), options.clips)
        videos, left_out = _readable(_listed(folder, options.clips), found)
        if not videos:
            raise InputError(f"--videos: {folder} has no video that all readers can read")
        measured = {
            f"{name}, {count} frames": _class([one for one in videos if wanted(one)], count, found, options.rounds)
            for name, wanted in _CLASSES.items()
            for count in COUNTS
            if any(wanted(one) for one in videos)
        }
    return {"absent": absent, "left_out": left_out, **measured}


@dataclass(frozen=True)
class _Video:
    path: Path
    duration_s: float


_CLASSES: dict[str, Callable[[_Video], bool]] = {
    "short": lambda video: video.duration_s <= LONG_S,
    "long": lambda video: video.duration_s > LONG_S,
}


def _made(folder: Path, clips: int) -> Path:
    write_sample_clips(folder, clips, seed=0)
    return folder


def _listed(folder: Path, most: int) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)[:most]


def _readable(paths: Sequence[Path], found: dict[str, Loop]) -> tuple[list[_Video], dict[str, str]]:
    """Videos that all can read; of the others, who could not."""
    videos, left_out = [], {}
    for path in paths:
        try:
            duration_s = probe(path, LIMITS).duration_s or 0.0
            _ours(path, COUNTS[0])
        except RowError as error:
            left_out[path.name] = str(error)
            continue
        failed = next((name for name, loop in found.items() if not _reads(loop, path)), None)
        if failed:
            left_out[path.name] = f"{failed} can't read it"
        else:
            videos.append(_Video(path, duration_s))
    return videos, left_out


def _reads(loop: Loop, path: Path) -> bool:
    try:
        return len(loop.read(str(path), COUNTS[0], SIZE)) > 0
    except loop.errors:
        return False


def _ours(path: Path, count: int) -> int:
    return len(read_frames(path, Sampling(count), SIZE, LIMITS).times_s)


def _class(videos: Sequence[_Video], count: int, found: dict[str, Loop], rounds: int) -> dict[str, Any]:
    paths = [one.path for one in videos]
    reader = Reader(Sampling(count), SIZE, LIMITS)
    reader.read(str(paths[0]))  # its child starts once, not with every video
    contenders: dict[str, Callable[[], object]] = {
        name: partial(_all, paths, partial(_loop, loop, count)) for name, loop in found.items()
    }
    contenders |= {
        "ours": partial(_all, paths, lambda path: _ours(path, count)),
        "sandboxed": partial(_all, paths, lambda path: reader.read(str(path))),
    }
    frames = _frames(paths, count)
    laps = alternate(contenders, rounds, warm=False)
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


def _all(paths: Sequence[Path], one: Callable[[Path], object]) -> None:
    for path in paths:
        one(path)


def _loop(loop: Loop, count: int, path: Path) -> object:
    return loop.read(str(path), count, SIZE)


def _frames(paths: Sequence[Path], count: int) -> int:
    return sum(_ours(path, count) for path in paths)
