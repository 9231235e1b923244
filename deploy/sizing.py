"""Prints the sizing table of README.md: what an hour of video costs, by the plan's own arithmetic and no weights.

    python deploy/sizing.py

Change the constants to your job. The exact numbers for your videos are `mlb-batch plan JOB.yaml`.
"""

from __future__ import annotations

from collections import Counter

from mlb_batch.amounts import percent
from mlb_batch.cost.budget import Measure, feature_price
from mlb_batch.cost.calibration import weight_numbers
from mlb_batch.cost.flops import Bill, price
from mlb_batch.cost.memory import footprint
from mlb_batch.cost.schedule import WHOLE, ClipShape, Schedule
from mlb_batch.cost.shapes import ModelShape, PairedShape, model_shape, paired_shape
from mlb_batch.cost.solve import Pricer, largest
from mlb_batch.prune import make

# LLaVA-OneVision 7B, as its config.json has it, and the text/vision pair that belongs to its tower.
QWEN2_7B = {
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152000,
}  # fmt: skip
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "image_size": 384, "patch_size": 14}
MODEL: ModelShape = model_shape({"model_type": "llava_onevision", "text_config": QWEN2_7B})
PAIR: PairedShape = paired_shape(
    {"model_type": "siglip", "vision_config": SO400M, "text_config": {**SO400M, "max_position_embeddings": 64}}
)
CLIPS_AN_HOUR, FRAMES, PREFIX, SUFFIX, NEW_TOKENS = 60, 32, 14, 24, 128
BYTES = 2  # bfloat16


def main() -> None:
    print("| prompts a clip | budget | tokens kept | vision | prefill and scoring | generation | all |")
    print("|---|---|---|---|---|---|---|")
    for prompts in (1, 3):
        for ratio in (1.0, 0.5, 0.273):
            print(f"| {prompts} | {_budget(ratio)} | {' | '.join(cells(prompts, ratio))} |")
    print()
    for name, size in memory().items():
        print(f"{name}: {size / 1e9:.1f} GB")


def _budget(ratio: float) -> str:
    return "unpruned" if ratio == 1 else f"`ratio: {ratio}`"


def cells(prompts: int, ratio: float) -> list[str]:
    """Of one line of the table: PFLOPs an hour of video."""
    keep, bill = priced(prompts, ratio)
    parts = (bill.vision, bill.llm, bill.generate, bill.total)
    return [percent(keep / WHOLE), *(f"{CLIPS_AN_HOUR * part / 1e15:.3g}" for part in parts)]


def priced(prompts: int, ratio: float) -> tuple[int, Bill]:
    """The share kept (in millionths) and the bill of one clip."""
    keep, schedule, clip = solved(prompts, ratio)
    features = feature_price(PAIR, clip, schedule)
    return keep, price(MODEL, clip, schedule, (NEW_TOKENS,) * prompts, features)


def solved(prompts: int, ratio: float) -> tuple[int, Schedule, ClipShape]:
    side = MODEL.side
    clip = ClipShape(FRAMES, side, side, PREFIX, MODEL.trailer, (SUFFIX,) * prompts)
    if ratio == 1:
        return WHOLE, Schedule(FRAMES), clip
    method = make("adatp", select="per_prompt" if prompts == 1 else "per_video", paired=True)
    pricer, job = Pricer(MODEL, method, Measure("llm"), PAIR), Counter([clip])
    limit = int(ratio * pricer.vanilla(job))
    keep = largest(lambda at: pricer.job(job, at), limit, pricer.job(job, 0)).at
    return keep, method.schedule(MODEL, clip, keep), clip


def memory() -> dict[str, float]:
    """What lies on the GPU: the weights, and what a clip with one prompt brings."""
    decoder, vision = MODEL.decoder, MODEL.vision
    tower = vision.layers * (4 * vision.hidden**2 + 2 * vision.hidden * vision.ffn)
    embeddings = decoder.vocab * decoder.hidden
    unpruned, pruned = (footprint(MODEL, clip, schedule, NEW_TOKENS, BYTES)
                        for _, schedule, clip in (solved(1, 1.0), solved(1, 0.273)))  # fmt: skip
    return {
        "weights": BYTES * (weight_numbers(decoder) + embeddings + tower),
        "the pair's weights": BYTES * 2 * tower,
        "a clip in the layers": unpruned.work,
        "an unpruned clip while it generates": unpruned.held,
        "... at `ratio: 0.273`": pruned.held,
    }


if __name__ == "__main__":
    main()
