"""`read` of videos in storage: seconds on the wall, against whoever fetches the whole file and reads that."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from mlb_batch.bench.loops import LIMITS, SIZE, Loop
from mlb_batch.bench.rounds import Spread, alternate, each, times_faster, walls
from mlb_batch.errors import InputError
from mlb_batch.storage import CLIENT_TRIES, filesystem
from mlb_batch.storage_errors import first_line, foreign_errors
from mlb_batch.video import Reader, Sampling


def copied(uri: str, path: Path) -> Path:
    """The whole file, as any program would fetch it."""
    fs, name = filesystem(uri, CLIENT_TRIES)
    try:
        fs.get_file(name, str(path))
    except foreign_errors() as error:
        raise InputError(f"--videos: {uri} can't be fetched: {first_line(error)}") from None
    return path


def from_storage(videos: Mapping[str, Path], count: int, found: dict[str, Loop], rounds: int) -> dict[str, Any]:
    """`videos`: uris, and copies of them. The first turn of each is not counted: it opens connections."""
    with ExitStack() as stack:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "video"
        contenders: dict[str, Callable[[], object]] = {
            f"whole_file_by_{name}": partial(each, videos, partial(_by_whole_file, loop, count, path))
            for name, loop in found.items()
        }
        # One for each turn, with its child at work already: a reader keeps what it has of its last video.
        readers = [_started(stack, next(iter(videos.values())), count) for _ in range(rounds + 1)]
        already, fresh = readers[0].bytes_fetched, iter(readers)
        contenders["ours"] = lambda: each(videos, next(fresh).read)
        seconds = {name: walls(some, len(videos)) for name, some in alternate(contenders, rounds).items()}
    ours = seconds.pop("ours")
    return {
        "videos": len(videos),
        "bytes": {
            "whole": sum(copy.stat().st_size for copy in videos.values()),
            "ours": readers[0].bytes_fetched - already,
        },
        "seconds_per_video": {name: Spread.of(some) for name, some in {**seconds, "ours": ours}.items()},
        "wall_ratios": {f"ours_over_{name}": times_faster(theirs, ours) for name, theirs in seconds.items()},
    }


def _started(stack: ExitStack, copy: Path, count: int) -> Reader:
    reader = stack.enter_context(Reader(Sampling(count), SIZE, LIMITS))
    reader.probe(str(copy))
    return reader


def _by_whole_file(loop: Loop, count: int, path: Path, uri: str) -> None:
    loop.read(str(copied(uri, path)), count, SIZE)
    path.unlink()
