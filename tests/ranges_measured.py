"""Bytes, requests and seconds that reading 8 and 32 frames takes from an S3 server, by several ways.

    python tests/ranges_measured.py [LATENCY_MS]

Ways: the whole object; a plain PyAV loop that seeks to each wanted time in an fsspec file with each of fsspec's caches;
and the project's own (the index first, then the ranges that the frames need). LATENCY_MS is added to every request, as
a bucket that is not on this machine has it. Every way gives the same number of frames; only the last one is checked to
give the same pictures as reading the whole file does.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import s3fs
from s3server import S3Server, start_server
from video_files import CORPUS, MODEL_SIZE, corpus, repeated

from mlb_batch.errors import RowError
from mlb_batch.storage import filesystem
from mlb_batch.video import Limits, Reader, Sampling, fetch

LATENCY_S = float(sys.argv[1] if len(sys.argv) > 1 else 0) / 1000
CACHES: dict[str, dict[str, Any]] = {
    "readahead 5 MB": {"cache_type": "readahead", "block_size": 5 << 20},
    "readahead 256 KB": {"cache_type": "readahead", "block_size": 256 << 10},
    "bytes 256 KB": {"cache_type": "bytes", "block_size": 256 << 10},
    "blockcache 1 MB": {"cache_type": "blockcache", "block_size": 1 << 20},
    "blockcache 256 KB": {"cache_type": "blockcache", "block_size": 256 << 10},
    "background 256 KB": {"cache_type": "background", "block_size": 256 << 10},
}


class Traffic:
    """What goes over s3fs: counted, and delayed."""

    def __init__(self) -> None:
        self.requests = self.bytes = 0
        usual, traffic = s3fs.S3FileSystem._call_s3, self

        async def call(fs: Any, method: str, *rest: Any, **options: Any) -> Any:
            import asyncio

            traffic.requests += 1
            await asyncio.sleep(LATENCY_S)
            answer = await usual(fs, method, *rest, **options)
            if method == "get_object":
                traffic.bytes += answer["ContentLength"]
            return answer

        s3fs.S3FileSystem._call_s3 = call


def plain(uri: str, count: int, start_s: float | None, end_s: float | None, **cache: Any) -> int:
    """What one writes first: seek to each wanted time, read on to the frame."""
    fs, name = filesystem(uri)
    got = 0
    with fs.open(name, "rb", **cache) as file, av.open(file) as container:
        stream = container.streams.video[0]
        first = (start_s or 0.0) / stream.time_base + (stream.start_time or 0)
        length_s = end_s - (start_s or 0.0) if end_s else float(container.duration or 0) / av.time_base
        for n in range(count):
            wanted = int(first + n * length_s / count / stream.time_base)
            container.seek(wanted, stream=stream)
            got += next((1 for frame in container.decode(stream) if frame.pts is None or frame.pts >= wanted), 0)
    return got


def videos(folder: Path) -> Iterator[tuple[str, Path, float | None, float | None]]:
    for entry in corpus():
        if entry["result"] == "ok" and entry["bytes"] > 100_000:
            yield "corpus", CORPUS / entry["file"], None, None
    source = CORPUS / "iejMac+video2dataset" / "test_video.mp4"
    long = repeated(folder / "long.mp4", source, 30)
    yield "1 h whole", long, None, None
    for n in range(5):
        yield "10 s of 1 h", long, 600.0 * n + 5, 600.0 * n + 15


def main() -> None:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server: S3Server = start_server(stack)
        os.environ.update(server.environment())
        bucket = server.make_bucket()
        given = list(videos(folder))
        fs, _ = filesystem(f"s3://{bucket}/x")
        for _, path, _, _ in given:
            fs.pipe_file(f"{bucket}/{path.name}", path.read_bytes())
        traffic = Traffic()
        for count in (8, 32):
            for kind in dict.fromkeys(kind for kind, *_ in given):
                some = [(f"s3://{bucket}/{path.name}", path, a, b) for one, path, a, b in given if one == kind]
                compare(traffic, kind, some, count)


def compare(traffic: Traffic, kind: str, some: list[tuple[str, Path, Any, Any]], count: int) -> None:
    size = sum(path.stat().st_size for _, path, _, _ in some)
    readers = {name: Reader(Sampling(count), MODEL_SIZE, Limits()) for name in ("whole", "own")}
    here = Reader(Sampling(count), MODEL_SIZE, Limits())
    ways: dict[str, Callable[..., Any]] = {name: reader.read for name, reader in readers.items()}
    for name, cache in CACHES.items():
        ways[name] = lambda uri, a, b, cache=cache: plain(uri, count, a, b, **cache)
    for reader in (*readers.values(), here):
        reader.read(str(some[0][1]))
    for name, way in ways.items():
        fetch.WHOLE_BYTES = 1 << 40 if name == "whole" else 2 << 20
        traffic.requests = traffic.bytes = 0
        seconds, failed, differ = 0.0, 0, 0
        for uri, path, a, b in some:
            try:
                begun_s = time.perf_counter()
                frames = way(uri, a, b)
                seconds += time.perf_counter() - begun_s
                if name == "own":
                    differ += not np.array_equal(frames.pixels_FHWC, here.read(str(path), a, b).pixels_FHWC)
            except (RowError, av.FFmpegError, OSError, StopIteration):
                failed += 1
        row = {"kind": kind, "videos": len(some), "frames": count, "way": name, "share": round(traffic.bytes / size, 3),
               "requests_each": round(traffic.requests / len(some), 1), "ms_each": round(1000 * seconds / len(some), 1),
               "failed": failed, "differ": differ}  # fmt: skip
        print(json.dumps(row), flush=True)
    for reader in (*readers.values(), here):
        reader.close()


if __name__ == "__main__":
    main()
