"""What a run was made with: versions and machines, for runs/<run id>/environment.json; and the run's name."""

from __future__ import annotations

import platform
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = ("mlb-batch", "ray", "torch", "transformers", "pyarrow", "av", "fsspec", "s3fs", "numpy", "pillow")


def new_run_id() -> str:
    """Begins with its time, so that names sort by it."""
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(3)}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


VERSION = _version("mlb-batch")


def environment(nodes: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "nodes": [dict(node) for node in nodes],
    }
