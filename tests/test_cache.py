"""The user's cache: there, not there, or nowhere to be written."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from mlb_batch.cache import cache_folder, made_once, writable
from mlb_batch.cost import calibration
from mlb_batch.errors import OutputError


def test_a_user_without_a_home_reads_an_empty_cache_and_is_told_when_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that runs under a number that its passwd does not know."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what it gives there
    assert calibration.load("some-revision", folder=cache_folder("calibrations")) is None
    with pytest.raises(OutputError, match=r"no absolute path.*XDG_CACHE_HOME"):
        writable(cache_folder("calibrations"))
    assert not list(tmp_path.iterdir())


def test_a_cache_that_can_not_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(OutputError, match=rf"{re.escape(str(tmp_path))}.* can't be written .*XDG_CACHE_HOME"):
        made_once("models", "one", lambda folder: None)


def test_what_is_made_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def broken(folder: Path) -> None:
        (folder / "half").touch()
        raise ValueError

    def late(folder: Path) -> None:
        made_once("models", "one", lambda other: (other / "first").touch())
        (folder / "second").touch()

    with pytest.raises(ValueError):
        made_once("models", "one", broken)
    assert not list((tmp_path / "mlb_batch/models").iterdir())
    assert [path.name for path in made_once("models", "one", late).iterdir()] == ["first"]
    assert [path.name for path in (tmp_path / "mlb_batch/models").iterdir()] == ["one"]


def test_what_killed_makers_left_is_swept_by_who_makes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A day later: what is younger may be at work."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    models = tmp_path / "mlb_batch/models"
    for name, hours in ((".one-killed", 25), (".one-at-work", 23), (".another-killed", 25)):
        (models / name).mkdir(parents=True)
        (models / name / "half").touch()
        then = (models / name).stat().st_mtime - hours * 3600
        os.utime(models / name, (then, then))
    made_once("models", "one", lambda folder: None)
    assert sorted(path.name for path in models.iterdir()) == [".another-killed", ".one-at-work", "one"]
