"""Which frames were kept, cell by cell: a picture of where each method's tokens come from.

From the selections that the cells record on request (`job.prune.selections`). Beside what was kept stands what the
largest plain attention would have kept, so that its skew, and what a method does about it, can be seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlb_batch.evaluate.cells import Cell
from mlb_batch.evaluate.svg import Heat, heat_maps
from mlb_batch.ledger.parts import rows_of
from mlb_batch.storage import open_store

_COLUMNS = ("annotation_id", "layer", "frames", "kept_by_frame", "plain_by_frame")


@dataclass(frozen=True, eq=False)
class Kept:
    """Mean share of the kept tokens that each frame has, times even."""

    answers: int
    kept_F: NDArray[np.float64]
    plain_F: NDArray[np.float64] | None  # had the largest plain scores been kept; None where no score was read


def kept_by_frame(output: str, fingerprint: str) -> Kept | None:
    """Behind the last cut of each recorded answer; None where nothing was recorded."""
    last: dict[str, dict[str, object]] = {}
    for table in rows_of(open_store(output), "selections", fingerprint, _COLUMNS):
        for row in table.to_pylist():
            before = last.get(row["annotation_id"])
            if before is None or row["layer"] > before["layer"]:
                last[row["annotation_id"]] = row
    if not last:
        return None
    frames = max(len(row["kept_by_frame"]) for row in last.values())  # type: ignore[arg-type]
    same = [row for row in last.values() if len(row["kept_by_frame"]) == frames]  # type: ignore[arg-type]
    plain = [row["plain_by_frame"] for row in same if row["plain_by_frame"]]
    return Kept(
        len(same), _even([row["kept_by_frame"] for row in same]), _even(plain) if len(plain) == len(same) else None
    )


def _even(counts: Sequence[object]) -> NDArray[np.float64]:
    counts_AF = np.array(counts, dtype=float)
    shares_AF = counts_AF / counts_AF.sum(axis=1, keepdims=True)
    return np.asarray(shares_AF.mean(axis=0) * counts_AF.shape[1])


def pictures(cells: Sequence[Cell], fingerprints: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """One file a model that has any."""
    for model in dict.fromkeys(cell.model for cell in cells):
        maps = []
        for cell in cells:
            found = kept_by_frame(cell.job.output.uri, fingerprints[cell.name]) if cell.model == model else None
            if found is not None:
                values, labels = [found.kept_F.tolist()], ["kept"]
                if found.plain_F is not None:
                    values.append(found.plain_F.tolist())
                    labels.append("plain top")
                maps.append(Heat(f"{cell.method} at {100 * cell.ratio:g} % ({found.answers} answers)", values, labels))
        if maps:
            yield f"kept-{model}.svg", heat_maps(f"{model}: kept tokens by frame, times even", maps, neutral=1.0)
