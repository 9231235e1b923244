"""The report: numbers from an output's rows."""

from __future__ import annotations

from typing import Any


def report(output_uri: str) -> dict[str, Any]:
    raise NotImplementedError


def to_text(numbers: dict[str, Any]) -> str:
    raise NotImplementedError


def how_to_read(output_uri: str, fingerprint: str) -> str:
    raise NotImplementedError
