"""Mutants of the public videos through the real reading: none may hang it, take it along, or end without a class.

    python tests/fuzz.py FOLDER [MUTANTS]

A mutant follows from its number alone. Each is read through the killable child twice, as a local file and in ranges
from a web server, and both have to come to the same frames or the same class; every 25th then goes through a whole run.
FOLDER/results.jsonl has a line a mutant, and the same command goes on behind the last one. Mutants that came to
something bad, or cost a child, are kept beside it. The last line of stdout is one JSON object; exit code 1 with
findings.
"""

from __future__ import annotations

import conftest  # noqa: F401  (Ray's folder and token)

# isort: split

import json
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from commands import mlb_batch
from loopback import Handler, Server
from small_jobs import job_file, table
from video_files import CORPUS, MODEL_SIZE, corpus, flip

from mlb_batch.errors import RowError
from mlb_batch.video import Frames, Limits, Reader, Sampling, fetch

MUTANTS, RUN_EVERY = 5000, 25
FRAMES, VIDEO_S, LATE_S = 8, 10.0, 2.0
LARGEST = 1_500_000
CHILD_LOST = {"timeout", "decoder_crash", "out_of_memory"}
EXTREMES = (0, 1, 2, 7, 8, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
BOXES = (
    b"moov|trak|mdia|minf|stbl|edts|udta|mvex|moof|traf|mdat|ftyp|mvhd|tkhd|mdhd|hdlr|elst|stsd|stts|ctts|stss|stsc|"
    b"stsz|stco|co64|sgpd|sbgp|trex|mfhd|tfhd|tfdt|trun|sidx|avc1|avcC|hev1|hvc1|hvcC|av01|vp09|mp4v|esds|pasp|colr"
)
FIELDS = rb"mvhd|tkhd|mdhd|elst|stts|ctts|stss|stsc|stsz|stco|co64|trex|tfhd|tfdt|trun|sidx|avcC|hvcC|pasp|colr"

Chance = random.Random


# ---- mutations: (chance, the video, another one) -> a mutant


def flipped(chance: Chance, data: bytes, _other: bytes) -> bytes:
    return flip(data, chance.getrandbits(32))


def cut(chance: Chance, data: bytes, _other: bytes) -> bytes:
    return data[: chance.randrange(1, len(data))]


def spliced(chance: Chance, data: bytes, other: bytes) -> bytes:
    """The beginning of one and the end of another."""
    return data[: chance.randrange(1, len(data))] + other[chance.randrange(len(other)) :]


def index_fields(chance: Chance, data: bytes, _other: bytes) -> bytes:
    """Numbers of the index become others; of files without boxes, numbers near the beginning or the end."""
    found = [match.start() for match in re.finditer(FIELDS, data)]
    edge = min(4096, len(data) - 4)
    mutant = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.choice(found) + 4 * chance.randint(1, 40) if found else chance.choice(
            (chance.randrange(edge), len(data) - 4 - chance.randrange(edge)))  # fmt: skip
        mutant[at : at + 4] = chance.choice(EXTREMES).to_bytes(4, "big")
    return bytes(mutant[: len(data)])


def box_sizes(chance: Chance, data: bytes, _other: bytes) -> bytes:
    found = [match.start() - 4 for match in re.finditer(BOXES, data) if match.start() >= 4]
    if not found:
        return index_fields(chance, data, _other)
    mutant = bytearray(data)
    for at in chance.sample(found, min(len(found), chance.randint(1, 3))):
        size = int.from_bytes(data[at : at + 4], "big")
        new = chance.choice((*EXTREMES, size + 1, max(0, size - 1), 2 * size, size // 2))
        mutant[at : at + 4] = (new & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(mutant)


def _chunk(chance: Chance, data: bytes) -> tuple[int, int]:
    start = chance.randrange(len(data))
    return start, min(len(data), start + 1 + int(len(data) * 0.25 * chance.random() ** 3))


def doubled(chance: Chance, data: bytes, _other: bytes) -> bytes:
    start, end = _chunk(chance, data)
    return data[:end] + data[start:end] * chance.randint(1, 3) + data[end:]


def deleted(chance: Chance, data: bytes, _other: bytes) -> bytes:
    start, end = _chunk(chance, data)
    return data[:start] + data[end:]


def blanked(chance: Chance, data: bytes, _other: bytes) -> bytes:
    start, end = _chunk(chance, data)
    return data[:start] + bytes([chance.choice((0, 0xFF))]) * (end - start) + data[end:]


MUTATIONS: tuple[Callable[[Chance, bytes, bytes], bytes], ...] = (
    flipped, cut, spliced, index_fields, box_sizes, doubled, deleted, blanked)  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    number: int
    kind: str
    source: str
    data: bytes


def mutant(number: int, sources: list[str]) -> Mutant:
    chance = Chance(number)
    mutation, source, other = chance.choice(MUTATIONS), chance.choice(sources), chance.choice(sources)
    data = mutation(chance, (CORPUS / source).read_bytes(), (CORPUS / other).read_bytes())
    return Mutant(number, mutation.__name__, source, data)


# ---- reading


class Web(Server):
    """Has one file, whatever it is called, and gives the ranges of it that it is asked for."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.data = b""


class _Handler(Handler):
    server: Web
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        data = self.server.data
        low, _, high = (self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")
        part = data[int(low) : int(high) + 1 if high else None]
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(len(part) if self.command == "GET" else len(data)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {low}-{int(low) + len(part) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(part)

    do_HEAD = do_GET


def read(reader: Reader, uri: str) -> tuple[Frames | str, float]:
    """Its frames, or its class of error, and the seconds that it took; anything else that is raised is a finding."""
    begun_s = time.monotonic()
    try:
        outcome: Frames | str = reader.read(uri)
    except RowError as error:
        outcome = error.error_class
    except Exception as error:
        outcome = f"untyped {type(error).__name__}: {error}"
    return outcome, time.monotonic() - begun_s


def same(one: Frames | str, other: Frames | str) -> bool:
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    told = [(f.times_s, f.wanted, f.partial, f.duration_s) for f in (one, other)]
    return told[0] == told[1] and np.array_equal(one.pixels_FHWC, other.pixels_FHWC)


def sound(frames: Frames) -> bool:
    times = list(frames.times_s)
    return 0 < len(times) == len(frames.pixels_FHWC) <= frames.wanted and times == sorted(times)


def findings(ways: list[tuple[Frames | str, float]]) -> list[str]:
    found = []
    for outcome, seconds in ways:
        if seconds > VIDEO_S + LATE_S:
            found.append(f"hung {seconds:.1f} s")
        if isinstance(outcome, str) and outcome.startswith("untyped"):
            found.append(outcome)
        if not isinstance(outcome, str) and not sound(outcome):
            found.append("unsound frames")
    outcomes = [outcome for outcome, _ in ways]
    lost = any(isinstance(one, str) and one in CHILD_LOST for one in outcomes)
    if not same(*outcomes) and not lost:
        found.append(f"ranges differ: {[one if isinstance(one, str) else len(one.times_s) for one in outcomes]}")
    return found


def label(outcome: Frames | str) -> str:
    if isinstance(outcome, str):
        return outcome
    return "partial" if outcome.partial else "ok"


def fuzz(folder: Path, numbers: range) -> None:
    sources = [one["file"] for one in corpus() if one["bytes"] < LARGEST]
    fetch.WHOLE_BYTES = 0  # these videos are small: without it each would come in one piece
    limits = Limits(video_s=VIDEO_S, patience_s=1)
    path, kept = folder / "mutant.mp4", folder / "kept"
    for place in (kept, folder / "videos"):
        place.mkdir(exist_ok=True)
    with (
        Web() as web,
        Reader(Sampling(FRAMES), MODEL_SIZE, limits) as here,
        Reader(Sampling(FRAMES), MODEL_SIZE, limits) as there,
        (folder / "results.jsonl").open("a") as results,
    ):
        for number in numbers:
            one = mutant(number, sources)
            path.write_bytes(one.data)
            web.data = one.data
            ways = [read(here, str(path)), read(there, f"{web.uri}/{number}.mp4")]
            found, labels = findings(ways), [label(outcome) for outcome, _ in ways]
            line = {"number": number, "kind": one.kind, "source": one.source, "labels": labels, "findings": found,
                    "seconds": [round(seconds, 3) for _, seconds in ways]}  # fmt: skip
            print(json.dumps(line), file=results, flush=True)
            if found or CHILD_LOST & set(labels):
                (kept / f"{number}.mp4").write_bytes(one.data)
                print(f"{number} {one.kind} of {one.source}: {labels} {found}", flush=True)
            if number % RUN_EVERY == 0:
                (folder / "videos" / f"{number:06}.mp4").write_bytes(one.data)
            if number % 250 == 0:
                print(f"{time.strftime('%X')} {number} of {numbers.stop}, {memory_mb()} MB", flush=True)


def memory_mb() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


def whole_run(folder: Path) -> dict[str, Any]:
    """The share of mutants that was kept for it, as one job: every prompt of every mutant has one outcome."""
    code, summary, err = mlb_batch("run", str(job_file(folder, limits={"video_s": VIDEO_S})))
    rows, errors = table(folder / "out"), table(folder / "out", "errors")
    expected = 2 * len(list((folder / "videos").iterdir()))
    outcomes = {row["annotation_id"] for row in rows} | {row["annotation_id"] for row in errors}
    left = [json.loads(path.read_text()) for path in (folder / "out" / "strikes").glob("*.json")]
    accounted = len(outcomes) == expected == summary.get("expected") and code in (0, 3)
    lost = [key for one in left for key in one["begun"]]
    return {"exit_code": code, "expected": expected, "annotated": len(rows), "errors": len(errors),
            "deaths": lost, "sound": accounted and not lost, "said": "" if accounted else err[-1000:]}  # fmt: skip


def tally(folder: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    seconds = sorted(second for line in lines for second in line["seconds"])
    return {
        "mutants": len(lines),
        "classes": dict(Counter(line["labels"][0] for line in lines).most_common()),
        "kinds": dict(Counter(line["kind"] for line in lines)),
        "findings": [line for line in lines if line["findings"]],
        "children_lost": sum(bool(CHILD_LOST & set(line["labels"])) for line in lines),
        "p50_s": seconds[len(seconds) // 2],
        "p99_s": seconds[len(seconds) * 99 // 100],
        "longest_s": seconds[-1],
        "memory_mb": memory_mb(),
    }


def main(folder: Path, mutants: int) -> int:
    if not corpus():
        print(json.dumps({"skipped": f"no videos in {CORPUS}"}))
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / "results.jsonl"
    done = len(results.read_text().splitlines()) if results.exists() else 0
    fuzz(folder, range(done, mutants))
    told = {**tally(folder), "run": whole_run(folder)}
    print(json.dumps(told))
    return int(bool(told["findings"]) or not told["run"]["sound"])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute(), int(sys.argv[2]) if len(sys.argv) > 2 else MUTANTS))
