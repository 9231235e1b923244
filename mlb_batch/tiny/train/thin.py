"""Which visual tokens of a clip are there in a thinned lesson: some of everything that is shown, the rest by chance.

A large video model is told of a thing by many more tokens than it needs; here a frame has sixteen, and a shape is in
two or three of them. A model that never missed one leans on each. So it learns that tokens may be missing, as towers
do that are trained on half of their patches (and, as there, a step that leaves most out costs less). No method of
pruning has a part in it: what leaves is drawn at random.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlb_batch.tiny.train.notes import cell_of
from mlb_batch.tiny.world import Clip

_OF_EACH = 3  # tokens of a thing that are surely there: enough for where it goes, and nothing is asked of the unseen


def thinned(clip: Clip, tokens: int, cells: int, share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which of the tokens stay; the last of them is no frame's and always does."""
    wanted = max(1, round((tokens - 1) * share))
    sure = _sure(clip, cells, rng)
    others = rng.permutation(np.setdiff1d(np.arange(tokens - 1), sure))[: max(0, wanted - len(sure))]
    there = np.zeros(tokens, np.bool_)
    there[[*sure, *others, tokens - 1]] = True
    return there


def faded(tokens: int, share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """The same for tokens that were looked at already: whatever they show, and the last of them stays here, too."""
    there = np.zeros(tokens, np.bool_)
    there[rng.permutation(tokens - 1)[: round((tokens - 1) * share)]] = True
    there[-1] = True
    return there


def _sure(clip: Clip, cells: int, rng: np.random.Generator) -> NDArray[np.int64]:
    by_thing: dict[int, list[int]] = {}
    for thing, sprite in clip.shown:
        by_thing.setdefault(id(thing), []).append(cell_of(sprite, cells))
    return np.unique(np.concatenate([rng.permutation(at)[:_OF_EACH] for at in by_thing.values()]))
