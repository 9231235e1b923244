"""What a run leaves beside its rows: runs/<run_id>/ and current.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class RunFolder:
    """OUTPUT/runs/<run_id>/; every file is replaced whole."""

    def __init__(self, output_uri: str, run_id: str) -> None:
        raise NotImplementedError

    def write_spec(self, yaml_text: str) -> None:
        raise NotImplementedError

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """name: plan | progress | summary | environment"""
        raise NotImplementedError

    def read_json(self, name: str) -> dict[str, Any] | None:
        raise NotImplementedError


def publish(output_uri: str, fingerprint: str, run_id: str) -> None:
    """Name the newest complete fingerprint in current.json."""
    raise NotImplementedError


def read_current(output_uri: str) -> dict[str, Any] | None:
    raise NotImplementedError
