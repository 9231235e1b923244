"""What a run was made with: versions and machines, for runs/<run id>/environment.json."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = ("mlb-batch", "ray", "torch", "transformers", "pyarrow", "av", "fsspec", "s3fs", "numpy", "pillow")


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
