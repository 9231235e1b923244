"""Where tokens leave, as data: what a method declares, the price reads, and the engine carries out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from mlb_batch.cost.shapes import ModelShape
from mlb_batch.errors import ModelError

WHOLE = 1_000_000  # keep is a whole number of millionths, so that a plan and its execution round alike

Rows = Literal["none", "last", "question"]
Question = Literal["last", "mean"]


@dataclass(frozen=True)
class ClipShape:
    """One clip with its prompts, as the language model sees it unpruned."""

    frames: int
    rows: int
    cols: int
    prefix: int  # text tokens before the visual ones, the same for every prompt
    trailer: int  # tokens that close the visual sequence and are never pruned
    suffixes: tuple[int, ...]  # text tokens behind the visual ones, for each prompt

    @property
    def tokens_per_frame(self) -> int:
        return self.rows * self.cols

    @property
    def visual(self) -> int:
        return self.frames * self.tokens_per_frame

    @property
    def text(self) -> int:
        """Text tokens of the trunk, which all prompts share."""
        return self.prefix + self.trailer

    @property
    def longest_text(self) -> int:
        """The same, with the longest prompt."""
        return self.text + max(self.suffixes, default=0)


@dataclass(frozen=True)
class Cut:
    """Layers 0..at-1 see everything, the scores come from layer at-1, and layer `at` is the first to see `keep`."""

    at: int
    keep: int


@dataclass(frozen=True)
class Scan:
    """The two stages of SegAttn: each segment runs `layers` layers alone, then what it keeps is joined."""

    segments: tuple[int, ...]  # frames of each segment
    layers: int
    kept: tuple[int, ...]  # visual tokens that each segment hands on, its tail included
    cells: tuple[tuple[int, int], ...]  # the grid of each segment: rows x columns of a cell
    tail: int  # of the kept ones, how many are the segment's summarization tail
    refeed: bool  # the joined tokens start again at layer 0 instead of going on
    question: Question = "last"  # which segment's copy of the question goes on, or their mean


@dataclass(frozen=True)
class Schedule:
    frames: int  # frames whose tokens the language model gets; the others are not even encoded
    cuts: tuple[Cut, ...] = ()
    scan: Scan | None = None
    rows: Rows = "none"  # query rows that score the visual tokens
    fork: bool = False  # each prompt goes on with a selection of its own
    null_layers: int = 0  # layers that a content-free copy of the clip runs through, to learn the positional bias
    compared: int = 0  # pairs of visual tokens whose similarity is taken before the language model
    features: bool = False  # a paired text/vision model looks at frames and prompts
    compact: bool = False  # generation sees, in the layers below a cut, only what stayed behind the last one
    see_all: bool = False  # but for this: every frame is encoded, because what it shows decides the clip's keep

    def encoded(self, clip: ClipShape) -> int:
        """Frames that go through the vision tower."""
        return clip.frames if self.see_all else self.frames

    def kept(self, clip: ClipShape) -> int:
        """Visual tokens after the last cut."""
        if self.scan:
            return sum(self.scan.kept)
        return self.cuts[-1].keep if self.cuts else self.frames * clip.tokens_per_frame


class Method(Protocol):
    """The half of a pruning method that can be priced without a model: see mlb_batch.prune for the other half."""

    def schedule(self, shape: ModelShape, clip: ClipShape, keep: int) -> Schedule:
        """The schedule at `keep` millionths of the clip's visual tokens. Its cost never falls as keep rises."""
        ...


def keep_count(tokens: int, keep: int) -> int:
    """How many of `tokens` stay at `keep` millionths: rounded down, and never none."""
    assert 0 <= keep <= WHOLE, keep
    return max(1, tokens * keep // WHOLE)


def enough_layers(shape: ModelShape) -> int:
    """The layers of a language model that is cut by what one of them looks at: at least that one, and one behind it."""
    if shape.decoder.layers < 2:
        raise ModelError(
            "prune.method: this one cuts by what a layer of the language model looks at, and this model has no layer "
            "behind its first; use one that asks no layer, like density"
        )
    return shape.decoder.layers
