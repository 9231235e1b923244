"""`mlb-batch run` in which captioners note what they are given, and in which some clips are poison.

    python tests/noted_run.py NOTES JOB.yaml [--set key.sub=value ...]

NOTES gets a line "loaded" and the process for every captioner that comes to work, and two lines a batch, "asked" and
"answered", each with its annotation ids. What stands behind a video's last
frame tells the process that reads it to die or to hang (see `poisoned`), and a clip's prompt tells its captioner to die
or to raise. Everything else is the run as it is. For tests to start: they set Ray's folder and token.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from mlb_batch import cli, stages
from mlb_batch.video import Reader

DIE, RAISE = "kill the captioner", "raise in the captioner"
ABORT, HANG = b"poison: abort", b"poison:  hang"
TROUBLEMAKER = f"""
import functools, os
from mlb_batch.video import child
def troubled(usual, source, *rest):
    with open(source, "rb") as file:
        file.seek(-{len(ABORT)}, os.SEEK_END)
        told = file.read()
    if told == {ABORT}: os.abort()
    while told == {HANG}: pass
    return usual(source, *rest)
child.read_frames = functools.partial(troubled, child.read_frames)
child.main()
"""


def poisoned(video: bytes, told: bytes) -> bytes:
    """An MP4 file with a word behind it, in a box that readers pass over."""
    return video + struct.pack(">I", 8 + len(told)) + b"free" + told


class Noting:
    """A captioner, with notes of what it is asked and what it has answered."""

    def __init__(self, captioner: Any, notes: str) -> None:
        self._captioner, self._notes = captioner, Path(notes)

    @property
    def without_result(self) -> int:
        return int(self._captioner.without_result)

    def annotate(self, clips: Sequence[Any]) -> Any:
        asks = [ask for clip in clips for ask in clip.asks]
        self._note("asked", asks)
        if any(DIE in ask.text for ask in asks):
            os.kill(os.getpid(), signal.SIGKILL)
        if any(RAISE in ask.text for ask in asks):
            raise RuntimeError("as it was told")
        answers = self._captioner.annotate(clips)
        self._note("answered", asks)
        return answers

    def _note(self, what: str, asks: Sequence[Any]) -> None:
        note(self._notes, what, *(ask.annotation_id for ask in asks))


def note(notes: Path, *words: str) -> None:
    with notes.open("a") as file:
        file.write(" ".join(words) + "\n")


class Caption(stages.Caption):
    notes = ""

    def _loaded(self) -> Any:
        captioner = super()._loaded()
        note(Path(self.notes), "loaded", str(os.getpid()))
        return Noting(captioner, self.notes)


class ReadFrames(stages.ReadFrames):
    def __init__(self, spec: Any, sampling: Any, size: Any, *rest: Any) -> None:
        super().__init__(spec, sampling, size, *rest)
        limits = self._reader._limits
        self._reader = Reader(sampling, size, limits, entry=("-c", TROUBLEMAKER))


if __name__ == "__main__":
    Caption.notes = sys.argv.pop(1)
    import_module("mlb_batch.run").Caption = Caption  # (the package has a function of that name)
    import_module("mlb_batch.chain.reading").ReadFrames = ReadFrames
    cli.annotate()
