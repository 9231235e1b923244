"""`generate`: from caches to the last token. Bound by memory: the weights are read once a step for a whole batch.

transformers' own `generate` goes on from a cache that it has filled itself; the prefill is in nobody's time.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mlb_batch.bench.bed import Bed
from mlb_batch.bench.ceilings import ceilings
from mlb_batch.bench.figures import NAMES, about, of_ceiling
from mlb_batch.bench.options import Options
from mlb_batch.bench.ours import PROMPT, Ours, Pair, frames
from mlb_batch.bench.prefill import described
from mlb_batch.bench.race import Make, race
from mlb_batch.bench.rounds import Contender
from mlb_batch.bench.yardstick import Yardstick


def generate(bed: Bed, options: Options) -> dict[str, Any]:
    batches, new_tokens = bed.shape.batches, bed.shape.new_tokens
    pair, theirs = Pair.of(bed), Yardstick.of(bed, PROMPT)
    clips = frames(bed, max(batches))
    makes: dict[str, Make] = {
        "transformers": lambda size: theirs.going_on(clips[:size], new_tokens),
        "vanilla": _ours(pair.vanilla, clips, new_tokens),
        "pruned": _ours(pair.pruned, clips, new_tokens),
    }
    found = race(makes, dict.fromkeys(NAMES, batches), options.rounds, bed.device)
    moved = {
        "transformers": _bytes(pair.vanilla, clips, new_tokens, found.batch["transformers"]),
        "vanilla": _bytes(pair.vanilla, clips, new_tokens, found.batch["vanilla"]),
        "pruned": _bytes(pair.pruned, clips, new_tokens, found.batch["pruned"]),
    }
    best = ceilings(bed.device, bed.dtype).bytes_per_s
    return {
        **described(pair, clips),
        "new_tokens": new_tokens,
        **about(found),
        "memory_ceiling_bytes_per_s": best,
        "of_memory_ceiling": of_ceiling(found, moved, best),
    }


def _ours(engine: Ours, clips: list[np.ndarray], new_tokens: int) -> Make:
    def make(size: int) -> Contender:
        prefilled = engine.prefill(engine.encode(engine.sources(clips[:size])))
        return lambda: engine.generate(prefilled, new_tokens)

    return make


def _bytes(engine: Ours, clips: list[np.ndarray], new_tokens: int, batch: int) -> int:
    """That one clip's generation moves, in a batch of so many."""
    return engine.bytes_moved(engine.clip_shape(engine.sources(clips[:1])[0]), new_tokens, batch)
