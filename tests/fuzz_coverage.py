"""A coverage-guided fuzzer on the reading of videos: it keeps what leads our code where no mutant led it before.

    python tests/fuzz_coverage.py FOLDER [SECONDS]

libFuzzer, through atheris, follows the branches of mlb_batch.video with the frames read in its own process. A video
that crashes libav or makes it hang takes that process along - which is why the product reads in a child - so it is
started again for as long as there is time, and what did it is read by the real reader, which has to give it a class and
live. Findings are that, exceptions without a class, and frames that are not sound; all are kept in FOLDER. The same
command goes on with what FOLDER has learned. The last line of stdout is one JSON object; exit code 1 with findings.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["mlb_batch.video"]):  # before anything else imports it
    from mlb_batch.video.frames import Wanted, read_frames

from fuzz import FRAMES, LATE_S, memory_mb, read, sound
from video_files import CORPUS, MODEL_SIZE, corpus

from mlb_batch.errors import RowError
from mlb_batch.video import Limits, Reader, Sampling

SECONDS, VIDEO_S, HANGS_S = 600, 5.0, 15
LARGEST = 100_000
MEMORY_MB = 1024


def target(found: Path) -> None:
    """Never returns: libFuzzer calls `one` until its time is over, and ends the process."""
    scratch = tempfile.NamedTemporaryFile(suffix=".mp4")  # noqa: SIM115 (lives as long as the process)
    path, limits = Path(scratch.name), Limits(video_s=VIDEO_S)

    def one(data: bytes) -> None:
        path.write_bytes(data)
        try:
            frames = read_frames(path, Wanted(Sampling(FRAMES), MODEL_SIZE, limits))
            assert sound(frames), "unsound frames"
        except (RowError, MemoryError):
            pass
        except Exception:
            name = hashlib.sha256(data).hexdigest()[:16]
            (found / f"untyped-{name}").write_bytes(data)
            (found / f"untyped-{name}.txt").write_text(traceback.format_exc())

    atheris.Setup([sys.argv[0], *sys.argv[3:]], one)
    atheris.Fuzz()


def fuzz(folder: Path, until_s: float) -> list[int]:
    """How often a process of it ended, and how: 0 at the end of its time."""
    ends = []
    while (left_s := int(until_s - time.monotonic())) > 0:
        options = [f"-max_total_time={left_s}", f"-timeout={HANGS_S}", f"-max_len={LARGEST}", "-detect_leaks=0",
                   f"-rss_limit_mb={2 * MEMORY_MB}", f"-artifact_prefix={folder}/found/"]  # fmt: skip
        command = [sys.executable, __file__, "--target", str(folder / "found"), *options, str(folder / "learned")]
        with (folder / "log.txt").open("a") as log:
            ends.append(subprocess.run(command, stdout=log, stderr=log, check=False).returncode)
    return ends


def judged(folder: Path) -> tuple[dict[str, str], list[str]]:
    """What the real reader says of everything that took the fuzzer along, and the findings."""
    said: dict[str, str] = {}
    findings = [path.name for path in sorted((folder / "found").glob("untyped-*.txt"))]
    with Reader(Sampling(FRAMES), MODEL_SIZE, Limits(video_s=VIDEO_S)) as reader:
        for path in sorted((folder / "found").iterdir()):
            if path.suffix == ".txt":
                continue
            outcome, seconds = read(reader, str(path))
            said[path.name] = outcome if isinstance(outcome, str) else "frames"
            if said[path.name].startswith("untyped") or seconds > VIDEO_S + LATE_S:
                findings.append(f"{path.name}: {said[path.name]} after {seconds:.1f} s")
    return said, findings


def main(folder: Path, seconds: float) -> int:
    learned = folder / "learned"
    for place in (learned, folder / "found"):
        place.mkdir(parents=True, exist_ok=True)
    for name in (one["file"] for one in corpus() if one["bytes"] < LARGEST):
        (learned / name.replace("/", "-")).write_bytes((CORPUS / name).read_bytes())
    seeds = len(list(learned.iterdir()))
    ends = fuzz(folder, time.monotonic() + seconds)
    said, findings = judged(folder)
    told = {"seconds": seconds, "seeds": seeds, "learned": len(list(learned.iterdir())), "ends": ends,
            "took_it_along": said, "memory_mb": memory_mb(), "findings": findings}  # fmt: skip
    print(json.dumps(told))
    return int(bool(findings) or told["memory_mb"] > MEMORY_MB)


if __name__ == "__main__":
    if sys.argv[1] == "--target":
        target(Path(sys.argv[2]))
    sys.exit(main(Path(sys.argv[1]).absolute(), float(sys.argv[2]) if len(sys.argv) > 2 else SECONDS))
