"""What this machine keeps for every job: downloaded models, random ones, calibrations."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mlb_batch.errors import OutputError

_LEFT_S = 24 * 3600.0


def cache_folder(kind: str) -> Path:
    """Below the user's cache. It need not be there; where the user has no home, as in some containers, nothing is."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111  (pathlib's raises there)
    return Path(cache) / "mlb_batch" / kind


def writable(folder: Path) -> Path:
    """The same folder, for who is about to write in it; OutputError where nobody can."""
    try:
        if not folder.is_absolute():
            raise OSError("it is no absolute path")
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        remedy = "set XDG_CACHE_HOME to a folder that can be written"
        raise OutputError(f"{folder} can't be written ({error.strerror or error}); {remedy}") from None
    return folder


def made_once(kind: str, name: str, make: Callable[[Path], None]) -> Path:
    """A folder of the cache, which `make` fills where it is not there yet: beside its place and renamed, so that a
    reader sees a whole folder or none, and the first of several makers wins.
    """
    target = cache_folder(kind) / name
    if target.is_dir():
        return target
    scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=writable(target.parent)))
    _sweep(scratch, f".{name}-*")
    try:
        make(scratch)
        scratch.chmod(0o755)
        scratch.rename(target)
    except OSError:
        if not target.is_dir():
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _sweep(scratch: Path, others: str) -> None:
    """What killed makers of the same left half made, a day ago by this disk's clock: younger ones may be at work."""
    now = scratch.stat().st_mtime
    for left in scratch.parent.glob(others):
        with suppress(FileNotFoundError):  # another sweeps too
            if now - left.stat().st_mtime > _LEFT_S:
                shutil.rmtree(left, ignore_errors=True)
