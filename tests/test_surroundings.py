"""Whatever time zone, locale and clock a machine has, a run ends as anywhere else."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import pytest
from commands import mlb_batch
from small_jobs import clips, ids, job_file, manifest, table, texts

CLIPS = 12
BARE = {"TZ": "Pacific/Kiritimati", "LC_ALL": "C", "LANG": "C", "PYTHONIOENCODING": "ascii"}
PACKAGE = Path(__file__).parents[1] / "mlb_batch"


def job(folder: Path, name: str) -> Path:
    """Everything that can be in another alphabet is."""
    place = folder / "vidéos 日本"
    if not place.exists():
        clips(place, CLIPS)
    rows = [{"uri": str(path), "id": f"ид{n}", "title": "Ünï"} for n, path in enumerate(sorted(place.iterdir()))]
    given = {"manifest": str(manifest(folder / "liste ü.jsonl", rows)), "id_column": "id", "columns": ["title"]}
    prompts = [{"id": "c", "kind": "caption", "text": "{title}: décris."}]
    return job_file(folder, input=given, prompts=prompts, output={"uri": str(folder / name), "commit_rows": 2})


@pytest.mark.whole_run
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


def test_nothing_that_is_waited_for_hangs_on_the_wall_clock() -> None:
    """Which may jump: only how old a progress file is, which another machine wrote, is told by it."""
    users = {path.name for path in PACKAGE.rglob("*.py") if re.search(r"time\.time(_ns)?\(", path.read_text())}
    assert users == {"progress.py"}
