"""Rows -> the clips of the gallery, each with its answers: all of a small output, a fair sample of a large one.

A sample is drawn by the hash of the clip, so that it is the same at every report; clips whose selection was recorded
come first, since only they show which tokens were kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mlb_batch.columns import ANNOTATION_COLUMNS
from mlb_batch.ledger.ids import DoneIds
from mlb_batch.ledger.parts import rows_of
from mlb_batch.storage import Store

MOST_ROWS = 10_000
CLIP = ("video_id", "video_version", "clip_start_s", "clip_end_s")
INDEX = ("annotation_id", *CLIP, "run_id", "created_at")
SHOWN = (
    "annotation_id", "video_id", "uri", "video_version", "clip_start_s", "clip_end_s", "prompt_id", "prompt", "text",
    "choice", "status", "frames_read", "frame_times_s", "num_visual_tokens", "num_kept_tokens", "flops_planned",
    "flops_vanilla",
)  # fmt: skip
Row = dict[str, Any]
Keys = npt.NDArray[np.uint64]


@dataclass
class Clip:
    """One clip of one version of a video, and all that was answered about it."""

    key: int
    answers: list[Row] = field(default_factory=list)
    cuts: dict[str, list[Row]] = field(default_factory=dict)  # annotation id -> its rows of selections/

    @property
    def first(self) -> Row:
        return self.answers[0]

    @property
    def passthrough(self) -> Row:
        return {name: value for name, value in self.first.items() if name not in ANNOTATION_COLUMNS}


@dataclass(frozen=True)
class Index:
    """A little of every row."""

    keys: Keys  # the clip of each row
    selected: Keys  # clips with a recorded selection
    done: DoneIds
    commits: tuple[tuple[str, float, int], ...]  # (run id, seconds since 1970, rows)


def index(store: Store, fingerprint: str) -> Index:
    sampled = {one for rows in rows_of(store, "selections", fingerprint, ("annotation_id",))
               for one in rows["annotation_id"].to_pylist()}  # fmt: skip
    done, keys, selected = DoneIds(), [np.empty(0, np.uint64)], set()
    commits: dict[tuple[str, float], int] = {}
    for rows in rows_of(store, "annotations", fingerprint, INDEX):
        some = rows.to_pylist()
        keys.append(np.array([clip_key(row) for row in some], np.uint64))
        done.update(row["annotation_id"] for row in some)
        selected |= {clip_key(row) for row in some if row["annotation_id"] in sampled}
        for row in some:
            commit = row["run_id"], row["created_at"].timestamp()
            commits[commit] = commits.get(commit, 0) + 1
    return Index(
        np.concatenate(keys), np.array(sorted(selected), np.uint64), done,
        tuple((run_id, at_s, count) for (run_id, at_s), count in commits.items()),
    )  # fmt: skip


def clip_key(row: Row) -> int:
    name = repr([row[column] for column in CLIP]).encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")


def chosen(found: Index, most_rows: int = MOST_ROWS) -> list[int]:
    """The clips to show, those first that are to have pictures first; whole clips of at most so many rows."""
    keys, counts = np.unique(found.keys, return_counts=True)
    order = np.lexsort((keys, ~np.isin(keys, found.selected)))
    fits = np.cumsum(counts[order]) <= most_rows
    return [int(key) for key in keys[order][fits]]


def clips(store: Store, fingerprint: str, wanted: list[int], passthrough: tuple[str, ...]) -> list[Clip]:
    """In the order of `wanted`, with all their rows."""
    found = {key: Clip(key) for key in wanted}
    for row in _rows(store, fingerprint, found, passthrough):
        found[clip_key(row)].answers.append(row)
    of_answer = {row["annotation_id"]: clip for clip in found.values() for row in clip.answers}
    columns = ("annotation_id", "layer", "frames", "rows", "cols", "kept")
    for rows in rows_of(store, "selections", fingerprint, columns):
        for cut in rows.to_pylist():
            clip = of_answer.get(cut["annotation_id"])
            if clip is not None:
                clip.cuts.setdefault(cut["annotation_id"], []).append(cut)
    return list(found.values())


def _rows(store: Store, fingerprint: str, wanted: dict[int, Clip], passthrough: tuple[str, ...]) -> Iterator[Row]:
    for rows in rows_of(store, "annotations", fingerprint, (*SHOWN, *passthrough)):
        ours = [clip_key(row) in wanted for row in rows.select(CLIP).to_pylist()]
        yield from rows.filter(ours).to_pylist()
