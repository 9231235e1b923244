"""What is still unresolved of one fingerprint: the failures in errors/ that nothing later has made good."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Set
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mlb_batch.ledger.ids import DoneIds
from mlb_batch.ledger.parts import as_python, rows_of
from mlb_batch.ledger.runs import every_sound
from mlb_batch.source.questions import USED_TWICE
from mlb_batch.storage import Store

Row = dict[str, Any]
Asked = tuple[str, str]
Alike = tuple[str, str, bool]  # the prompt, the video's version, whether provisional
_ASKED = ("video_id", "prompt_id")
_WHERE = ("annotation_id", *_ASKED, "prompt", "video_version", "clip_start_s", "clip_end_s", "run_id", "created_at")
_FAILURE = (*_WHERE, "provisional", "attempt", "error_class", "uri", "message")


def unresolved(store: Store, fingerprint: str, done: DoneIds) -> tuple[list[Row], int]:
    """The last failure of each annotation that isn't done, and how many attempts failed in all."""
    last: dict[str, Row] = {}
    failures = 0
    for rows in rows_of(store, "errors", fingerprint, _FAILURE):
        failures += rows.num_rows
        for row in as_python(rows):
            before = last.get(row["annotation_id"])
            if row["annotation_id"] not in done and (before is None or before["attempt"] < row["attempt"]):
                last[row["annotation_id"]] = row
    outdated = _outdated(store, fingerprint, last.values())
    left = [row for key, row in last.items() if key not in outdated]
    return _still_asked(store, fingerprint, left) if left else left, failures


def _still_asked(store: Store, fingerprint: str, failed: list[Row]) -> list[Row]:
    """Without what failed before a run that went through the whole input and met no failure: it has left the input.

    Where the last run counts more than are left then, some of it is back: that is not written down again.
    """
    ends = [one for one in every_sound(store, "summary") if one.get("fingerprint") == fingerprint]
    clean = max((one["run_id"] for one in ends if one.get("complete") and one["errors"] == 0), default="")
    left = [row for row in failed if row["run_id"] > clean]  # ids begin with their time
    return left if clean and len(left) >= ends[-1]["errors"] else failed


def _outdated(store: Store, fingerprint: str, failed: Iterable[Row]) -> set[str]:
    """The ids that no run asks for any more: their video was found at last, or has changed, or became clips."""
    failures: dict[Asked, dict[Alike, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in failed:
        failures[_asked(row)][row["prompt"], row["video_version"], row["provisional"]].append(row)
    return {
        row["annotation_id"]
        for kind in ("annotations", "errors")
        for later in _rows_about(failures.keys(), store, kind, fingerprint)
        for alike, rows in failures[_asked(later)].items()
        if alike != (later["prompt"], later["video_version"], False)  # clips of one video end none of each other
        for row in rows
        if later["run_id"] != row["run_id"]  # one run asks for nothing that it has done with
        and later["created_at"] > row["created_at"]
        and _replaces(later, row)
    }


def _rows_about(asked: Set[Asked], store: Store, kind: str, fingerprint: str) -> Iterator[Row]:
    videos = pa.array({video_id for video_id, _ in asked}, pa.string())
    for rows in rows_of(store, kind, fingerprint, _WHERE) if asked else ():
        some = rows.filter(pc.is_in(rows["video_id"], videos))
        yield from (row for row in as_python(some) if _asked(row) in asked)


def _asked(row: Row) -> Asked:
    return row["video_id"], row["prompt_id"]


def _replaces(later: Row, row: Row) -> bool:
    """Another version of the video, what became of a part of it that couldn't be looked up, or cut, before, or other
    words in the place of those that could not be asked: not what is asked beside them, under an id used for both.
    """
    start_s, end_s = _span(row)
    first_s, last_s = _span(later)
    overlap = first_s < end_s and start_s < last_s
    if later["prompt"] != row["prompt"]:
        return bool(overlap and row["error_class"] == "bad_prompt" and USED_TWICE not in row["message"])
    versions = {later["video_version"], row["video_version"]}
    if len(versions) == 2:
        return overlap or "" not in versions
    return bool(row["provisional"] and overlap and later["annotation_id"] != row["annotation_id"])


def _span(row: Row) -> tuple[float, float]:
    return row["clip_start_s"], row["clip_end_s"] or math.inf
