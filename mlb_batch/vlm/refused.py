"""What transformers makes of a checkpoint's small files, or one line on what it says of damaged ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from mlb_batch.errors import ModelError
from mlb_batch.vlm.checkpoint import Checkpoint

MOST_CHARS = 300

T = TypeVar("T")


def or_refused(checkpoint: Checkpoint, problem: str, remedy: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except Exception as error:  # its checks have errors of their own, and its parsers raise bare ones too
        said = " ".join(str(error).split())[:MOST_CHARS] or type(error).__name__
        raise ModelError(f"{checkpoint.name}: {problem} ({said}); {remedy}") from error
