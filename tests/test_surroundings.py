"""Whatever time zone, locale and clock a machine has, a run ends as anywhere else."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from ray_nodes import until
from small_jobs import MLB_BATCH, clips, ids, job_file, kill_all, manifest, mlb_batch, start, table, texts

from mlb_batch.ledger import verify

CLIPS = 12
BARE = {"TZ": "Pacific/Kiritimati", "LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "ascii"}  # fmt: skip
FAKE = next(iter(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)


def job(folder: Path, name: str) -> Path:
    """Everything that can be in another alphabet is."""
    place = folder / "vidéos 日本"
    if not place.exists():
        clips(place, CLIPS)
    rows = [{"uri": str(path), "id": f"ид{n}", "title": "Ünï"} for n, path in enumerate(sorted(place.iterdir()))]
    given = {"manifest": str(manifest(folder / "liste ü.jsonl", rows)), "id_column": "id", "columns": ["title"]}
    prompts = [{"id": "c", "kind": "caption", "text": "{title}: décris."}]
    return job_file(folder, input=given, prompts=prompts, output={"uri": str(folder / name), "commit_rows": 2})


@pytest.mark.slow
def test_a_bare_locale_far_from_greenwich_changes_no_row(tmp_path: Path) -> None:
    for name, environment in (("usual", {}), ("bare", BARE)):
        code, _, err = mlb_batch("run", str(job(tmp_path, name)), **environment)
        assert code == 0, err[-2000:]
        for command in ("report", "status", "verify"):
            assert mlb_batch(command, str(tmp_path / name), **environment)[0] == 0, command
    assert texts(tmp_path / "bare") == texts(tmp_path / "usual") and len(ids(tmp_path / "bare")) == CLIPS
    for row in table(tmp_path / "bare"):
        assert row["title"] == "Ünï" and row["video_id"].startswith("ид")
        age = datetime.datetime.now(datetime.UTC) - row["created_at"]
        assert datetime.timedelta() <= age < datetime.timedelta(minutes=20), "in UTC"


@pytest.mark.slow
@pytest.mark.skipif(FAKE is None, reason="faketime is not installed")
def test_a_clock_that_jumps_by_an_hour_stops_and_hastens_nothing(tmp_path: Path) -> None:
    """The wall clock of every process jumps forward after the first commit, and two hours back after the next."""
    clock = tmp_path / "clock"
    clock.write_text("+0")
    path, out = job(tmp_path, "out"), tmp_path / "out"
    faked = {"LD_PRELOAD": str(FAKE), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1",
             "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"}  # fmt: skip
    process = start(MLB_BATCH, "run", str(path), "--set", "limits.deadline_h=0.9", **faked)
    try:
        for jump in ("+3600", "-3600"):
            before = len(ids(out))
            until(lambda seen=before: len(ids(out)) > seen or process.poll() is not None, "a commit")
            clock.write_text(jump)
        _, err = process.communicate(timeout=400)
    finally:
        kill_all(process)
    assert process.returncode == 0, err[-2000:]
    assert len(ids(out)) == len(set(ids(out))) == CLIPS and not table(out, "errors") and verify(str(out)) == []
