"""Checks every file and invariant of an output and names what is damaged."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """Something that is wrong: where, what, and what to do."""

    path: str
    problem: str
    remedy: str


def verify(output_uri: str) -> list[Finding]:
    raise NotImplementedError
