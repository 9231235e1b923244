"""The values that go into the captioner and come out of it.

Shapes: F frames, H x W pixels, C colours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mlb_batch.cost.allocate import ContentRule
from mlb_batch.cost.schedule import ClipShape
from mlb_batch.prune import Pruning
from mlb_batch.vlm.billing import Shares
from mlb_batch.vlm.checkpoint import Checkpoint


@dataclass(frozen=True)
class Ask:
    """One prompt to a clip. Its id also seeds its sampling, so that a text does not depend on the batch."""

    annotation_id: str
    kind: str  # caption | qa | choice
    text: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Clip:
    pixels_FHWC: np.ndarray  # uint8, at the model's input size
    asks: tuple[Ask, ...]


# A clip by the id of its first ask, its shape, and the keep that it would take -> the keep that it gets.
Grant = Callable[[str, ClipShape, int], int]


@dataclass(frozen=True)
class Settings:
    """How a job wants its clips annotated."""

    method: Pruning
    keep: int  # millionths
    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    device_share: float = 1.0  # of its memory, where others stand on it
    feature_model: Checkpoint | None = None
    expected_new_tokens: int | None = None  # what generation is planned at; None: max_new_tokens
    content: ContentRule | None = None  # a clip's own keep, from its redundancy
    grant: Grant | None = None  # has the last word on that keep
    selections: float = 0.0  # the share of answers whose selection is recorded


@dataclass(frozen=True)
class Answer:
    """The answer to one ask, with its share of the clip's cost: the rows of a clip add up to its bill."""

    text: str
    choice: str
    choice_scores: tuple[float, ...]  # probability of each option's letter, against each other
    finish_reason: str  # stop | length
    num_prompt_tokens: int  # text tokens, the template's own among them
    num_new_tokens: int
    num_visual_tokens: int
    num_kept_tokens: int
    num_segments: int
    relevance_source: str
    keep: int
    bill: Shares
    model_s: float
    selections: tuple[dict[str, object], ...] = ()  # see selection.py
