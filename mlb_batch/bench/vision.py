"""`vision`: frames to visual tokens, the engine against transformers' own features on the same weights."""

from __future__ import annotations

from typing import Any

from mlb_batch.bench.bed import Bed
from mlb_batch.bench.ceilings import ceilings
from mlb_batch.bench.figures import of_ceiling
from mlb_batch.bench.options import Options
from mlb_batch.bench.ours import PROMPT, frames, unpruned
from mlb_batch.bench.race import Race, race
from mlb_batch.bench.rounds import times_faster
from mlb_batch.bench.yardstick import Yardstick


def vision(bed: Bed, options: Options) -> dict[str, Any]:
    batches = bed.shape.batches
    engine, theirs = unpruned(bed), Yardstick.of(bed, PROMPT)
    clips = frames(bed, max(batches))
    makes = {
        "transformers": lambda size: lambda: theirs.see(clips[:size]),
        "vanilla": lambda size: lambda: engine.preparer.see(clips[:size]),
    }
    found: Race = race(makes, dict.fromkeys(makes, batches), options.rounds, bed.device)
    operations = engine.vanilla_bill(engine.sources(clips[:1])[0]).vision
    return {
        "frames": len(clips[0]),
        "seconds_per_clip": found.spreads,
        "batch": found.batch,
        "ratios": {"vanilla_over_transformers": times_faster(found.seconds["transformers"], found.seconds["vanilla"])},
        "of_matrix_ceiling": of_ceiling(
            found, dict.fromkeys(makes, operations), ceilings(bed.device, bed.dtype).flops_per_s
        ),
    }  # fmt: skip
