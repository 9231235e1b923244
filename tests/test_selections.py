"""Selections as data: a run records them on request, and they can be replayed without the engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from small_jobs import clips, ids, spec

from mlb_batch import run
from mlb_batch.columns import SELECTION_COLUMNS
from mlb_batch.ledger import verify

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_a_run_records_what_it_kept_and_the_same_run_again_adds_nothing(tmp_path: Path) -> None:
    clips(tmp_path / "videos", 3)
    out = tmp_path / "out"
    job = spec(tmp_path, prune={"method": "fastv", "selections": 1.0}, budget={"ratio": 0.5})
    run(job)
    run(job)
    rows = pq.read_table(out / "selections").to_pylist()
    assert sorted(row["annotation_id"] for row in rows) == sorted(ids(out)), "one cut, so one row an answer"
    assert list(rows[0]) == list(SELECTION_COLUMNS) and not verify(str(out))
    for row in rows:
        score = np.array(row["score"])
        best = np.sort(np.argsort(-score, kind="stable")[: len(row["kept"])])
        assert np.array_equal(np.array(row["candidates"])[best], row["kept"]), "fastv keeps the largest scores"
        assert sum(row["kept_by_frame"]) == sum(row["kept_by_place"]) == len(row["kept"])
        assert row["plain_by_frame"] == row["kept_by_frame"], "nothing is debiased in fastv"


@pytest.mark.slow
def test_by_default_nothing_is_recorded_and_a_share_picks_the_same_answers_every_time(tmp_path: Path) -> None:
    clips(tmp_path / "videos", 12)
    run(spec(tmp_path))
    assert not (tmp_path / "out" / "selections").exists()
    found = []
    for name in ("a", "b"):
        out = tmp_path / name
        run(spec(tmp_path, prune={"method": "adatp", "select": "per_video", "selections": 0.5}, budget={"ratio": 0.6},
                 output=str(out)))  # fmt: skip
        found.append(set(pq.read_table(out / "selections")["annotation_id"].to_pylist()))
    assert found[0] == found[1] and 0 < len(found[0]) < 24
