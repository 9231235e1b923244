"""`captioner`: frames in, text out, without Ray; against transformers' own `generate`, batched and one by one."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlb_batch.bench.bed import Bed
from mlb_batch.bench.figures import about, predicted
from mlb_batch.bench.options import Options
from mlb_batch.bench.ours import PROMPT, Ours, Pair, frames
from mlb_batch.bench.prefill import described
from mlb_batch.bench.race import Make, race
from mlb_batch.bench.rounds import times_faster
from mlb_batch.bench.yardstick import Yardstick
from mlb_batch.vlm.captioner import Ask, Captioner, Clip


def captioner(bed: Bed, options: Options) -> dict[str, Any]:
    batches, new_tokens = bed.shape.batches, bed.shape.new_tokens
    pair, theirs = Pair.of(bed), Yardstick.of(bed, PROMPT)
    clips = frames(bed, max(batches))
    makes: dict[str, Make] = {
        "transformers": lambda size: lambda: _captions(theirs, pair.vanilla, clips[:size], new_tokens),
        "transformers_unbatched": lambda size: lambda: _captions(theirs, pair.vanilla, clips[:size], new_tokens),
        "vanilla": _ours(bed, pair.vanilla, clips),
        "pruned": _ours(bed, pair.pruned, clips),
    }
    choice = dict.fromkeys(makes, batches) | {"transformers_unbatched": (1,)}
    found = race(makes, choice, options.rounds, bed.device)
    source = pair.vanilla.sources(clips[:1])[0]
    flops = {name: one.bill(source, new_tokens=new_tokens).total for name, one in vars(pair).items()}
    batched = times_faster(found.seconds["transformers_unbatched"], found.seconds["transformers"])
    return {
        **described(pair, clips),
        "new_tokens": new_tokens,
        **about(found),
        **predicted(found, flops),
        "transformers_batched_over_unbatched": batched,
        "captions_per_hour": {name: 3600 / spread.median for name, spread in found.spreads.items()},
    }


def _ours(bed: Bed, engine: Ours, clips: list[np.ndarray]) -> Make:
    whole = Captioner(bed.checkpoint, engine.settings, bed.model)
    asked = [Clip(pixels_FHWC, (Ask(str(i), "caption", PROMPT),)) for i, pixels_FHWC in enumerate(clips)]
    return lambda size: lambda: whole.annotate(asked[:size])


def _captions(theirs: Yardstick, engine: Ours, clips: list[np.ndarray], new_tokens: int) -> list[str]:
    tokens_BT = theirs.annotate(clips, new_tokens)[:, -new_tokens:]
    return [str(engine.prompter.tokenizer.decode(tokens_T, skip_special_tokens=True)) for tokens_T in tokens_BT]
