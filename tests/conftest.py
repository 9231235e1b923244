"""Ray for the tests: clusters of their own, with their own folder, ports and token; only what they started stops.

And the fixtures that several files share.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Ray reads these when it is imported, here and in every process that a test starts; so they are set before anything is.
# The folder's name is short, since Ray's unix sockets lie in it and their paths may have 107 characters.
RAY_FOLDER = Path(tempfile.mkdtemp(prefix="mlb-", dir="/tmp"))
TOKEN = RAY_FOLDER / "token"
TOKEN.write_text(secrets.token_hex(32))
os.environ.update(RAY_TMPDIR=str(RAY_FOLDER), RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(TOKEN))
# Ray's workers are nice to others by default; here that would only let whatever else runs time them out.
os.environ.update(RAY_worker_niceness="0")
os.environ.update(RAY_USAGE_STATS_ENABLED="0", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
os.environ.pop("RAY_ADDRESS", None)

import pytest  # noqa: E402

pytest_plugins = ["s3server", "ledger_rows"]  # fixtures that lie beside what they give


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray with two CPUs in this process, as the smallest machine has; `run` finds it and leaves it running."""
    from mlb_batch.chain.cluster import shut_down, start_local
    from mlb_batch.processes import children

    others = children(os.getpid())
    start_local(num_cpus=2)
    started = [one for one in children(os.getpid()) if one not in others]
    yield
    shut_down(started)


@pytest.fixture
def commands() -> Iterator[list[subprocess.Popen[str]]]:
    """Commands that were started; whatever is left of them in the end is killed."""
    from commands import kill_all

    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        kill_all(process)


@pytest.fixture
def own_calibrations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's own measurements get into a test, and none of a test's are left behind."""
    monkeypatch.setattr("mlb_batch.cost.calibration.store_folder", lambda: tmp_path / "calibrations")


@pytest.fixture(scope="session")
def clips_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of several lengths, which plans are made for."""
    from planned_jobs import videos

    return videos(tmp_path_factory.mktemp("planned"))


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole runs want both cores: with several workers, all of them stay in one, beside the tests that want a core."""
    for item in items:
        if "ray_cluster" in getattr(item, "fixturenames", ()) or item.get_closest_marker("whole_run"):
            item.add_marker(pytest.mark.xdist_group("whole runs"))


def pytest_unconfigure() -> None:
    shutil.rmtree(RAY_FOLDER, ignore_errors=True)
