"""`prefill`: from frames to the first token, and the language model's part of it alone.

Against transformers' own `generate` asked for a single token, in the batch that suits it best.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mlb_batch.bench.bed import Bed
from mlb_batch.bench.ceilings import ceilings
from mlb_batch.bench.figures import NAMES, about, of_ceiling, predicted
from mlb_batch.bench.options import Options
from mlb_batch.bench.ours import PROMPT, Ours, Pair, frames
from mlb_batch.bench.race import Make, chain, race
from mlb_batch.bench.rounds import Contender
from mlb_batch.bench.yardstick import Yardstick


def prefill(bed: Bed, options: Options) -> dict[str, Any]:
    batches = bed.shape.batches
    pair, theirs = Pair.of(bed), Yardstick.of(bed, PROMPT)
    clips = frames(bed, max(batches))
    choice, best = dict.fromkeys(NAMES, batches), ceilings(bed.device, bed.dtype).flops_per_s
    whole = race(_from_frames(pair, theirs, clips), choice, options.rounds, bed.device)
    alone = race(_from_visual_tokens(pair, theirs, clips), choice, options.rounds, bed.device)
    source = pair.vanilla.sources(clips[:1])[0]
    unpruned, pruned = pair.vanilla.bill(source), pair.pruned.bill(source)
    total = {"transformers": unpruned.total, "vanilla": unpruned.total, "pruned": pruned.total}
    llm = {"transformers": unpruned.llm, "vanilla": unpruned.llm, "pruned": pruned.llm}
    return {
        **described(pair, clips),
        "matrix_ceiling_flops_per_s": best,
        "vision_and_prefill": {
            **about(whole), **predicted(whole, total), "of_matrix_ceiling": of_ceiling(whole, total, best),
            "vision_share_of_flops": unpruned.vision / unpruned.total,
        },
        "prefill": {**about(alone), **predicted(alone, llm), "of_matrix_ceiling": of_ceiling(alone, llm, best)},
    }  # fmt: skip


def described(pair: Pair, clips: Sequence[np.ndarray]) -> dict[str, Any]:
    clip = pair.vanilla.clip_shape(pair.vanilla.sources(clips[:1])[0])
    method, keep = pair.pruned.settings.method.name, pair.pruned.settings.keep
    return {"frames": clip.frames, "visual_tokens": clip.visual, "method": method, "keep": keep / 1e6}


def _from_frames(pair: Pair, theirs: Yardstick, clips: list[np.ndarray]) -> dict[str, Make]:
    def ours(engine: Ours) -> Make:
        def make(size: int) -> Contender:
            sources, steps = engine.sources(clips[:size]), chain(engine.encode, engine.prefill, engine.first_tokens)
            return lambda: steps(sources)

        return make

    return {
        "transformers": lambda size: lambda: theirs.annotate(clips[:size], 1),
        "vanilla": ours(pair.vanilla),
        "pruned": ours(pair.pruned),
    }


def _from_visual_tokens(pair: Pair, theirs: Yardstick, clips: list[np.ndarray]) -> dict[str, Make]:
    def ours(engine: Ours) -> Make:
        def make(size: int) -> Contender:
            inputs, steps = engine.encode(engine.sources(clips[:size])), chain(engine.prefill, engine.first_tokens)
            return lambda: steps(inputs)

        return make

    def yardstick(size: int) -> Contender:
        embeds_BTD: torch.Tensor = theirs.embedded(theirs.see(clips[:size]))
        return lambda: theirs.prompted(embeds_BTD, 1)

    return {"transformers": yardstick, "vanilla": ours(pair.vanilla), "pruned": ours(pair.pruned)}
