"""The bias of a frozen model: where its text looks when there is nothing to see, the same to see, or time runs back.

A model whose attention follows what is shown looks evenly over a clip whose frames are all the same; what it does
instead is the bias that debiasing is about. Measured for each model on some clips of the benchmark, one question each.

Shapes: F frames, H x W pixels, L layers, K positions of a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlb_batch.errors import InputError, RowError
from mlb_batch.evaluate.items import Item
from mlb_batch.evaluate.svg import Heat, heat_maps
from mlb_batch.source.uris import UriPolicy
from mlb_batch.spec import JobSpec
from mlb_batch.spec_parts import InputSpec
from mlb_batch.video import FrameSize, Limits, Reader, Sampling
from mlb_batch.vlm.bias import Gaze, Looked
from mlb_batch.vlm.checkpoint import resolve
from mlb_batch.vlm.preprocess import frame_recipe

GREY = 128
Pixels = NDArray[np.uint8]
VARIANTS: dict[str, Callable[[Pixels], Pixels]] = {
    "as it is": lambda pixels_FHWC: pixels_FHWC,
    "grey": lambda pixels_FHWC: np.full_like(pixels_FHWC, GREY),
    "repeated": lambda pixels_FHWC: np.repeat(pixels_FHWC[len(pixels_FHWC) // 2][None], len(pixels_FHWC), axis=0),
    "reversed": lambda pixels_FHWC: np.ascontiguousarray(pixels_FHWC[::-1]),
}


@dataclass(frozen=True, eq=False)
class Bias:
    """Means over clips of one model and one variant."""

    model: str
    variant: str
    clips: int
    rows: int
    cols: int
    to_visual_L: NDArray[np.float64]  # share of all attention that goes to visual tokens
    by_frame_LF: NDArray[np.float64]
    by_place_LK: NDArray[np.float64]


def measure(model: str, spec: JobSpec, items: Sequence[Item], clips: int) -> list[Bias]:
    """Of a job's model, on so many videos of these items, with a question each; what the job can't read is left out."""
    checkpoint = resolve(spec.model.id, spec.model.revision)
    gaze, recipe = Gaze(checkpoint, spec.model.device, spec.model.dtype), frame_recipe(checkpoint)
    size = FrameSize(recipe.resize, recipe.crop, recipe.resample)
    sampling = Sampling(spec.frames.count, spec.frames.strategy, spec.frames.fps)
    looked: dict[str, list[Looked]] = {variant: [] for variant in VARIANTS}
    chosen = _chosen(items, clips)
    for item, pixels_FHWC in _frames(chosen, spec.input, sampling, size, Limits(video_s=spec.limits.video_s)):
        for variant, changed in VARIANTS.items():
            choices = () if item.shaped else item.choices
            looked[variant].append(gaze.look(changed(pixels_FHWC), item.prompt, choices))
    if not looked["grey"]:
        raise InputError(f"bias: none of the {len(chosen)} videos that it is measured on can be read")
    return [_mean(model, variant, some) for variant, some in looked.items()]


def _chosen(items: Sequence[Item], count: int) -> list[Item]:
    """One item of each of `count` videos, spread over the benchmark."""
    first = {item.video: item for item in reversed(items) if item.kind != "caption"}
    videos = sorted(first)
    picked = np.random.default_rng(0).permutation(len(videos))[:count]
    return [first[videos[place]] for place in sorted(picked.tolist())]


def _frames(
    items: Sequence[Item], source: InputSpec, sampling: Sampling, size: FrameSize, limits: Limits
) -> Iterator[tuple[Item, Pixels]]:
    policy = UriPolicy.of(source)  # annotations are other people's data
    with Reader(sampling, size, limits) as reader:
        for item in items:
            try:
                yield item, reader.read(policy.resolve(f"{source.videos}/{item.video}")).pixels_FHWC
            except RowError:
                continue


def _mean(model: str, variant: str, looked: Sequence[Looked]) -> Bias:
    """Over the clips that have as many frames as most: frames of other clips are other places."""
    counts = [one.frames for one in looked]
    most = max(set(counts), key=lambda frames: (counts.count(frames), frames))
    same = [one for one in looked if one.frames == most]
    return Bias(
        model, variant, len(same), same[0].rows, same[0].cols,
        np.mean([one.paid_LN.sum(1) for one in same], axis=0, dtype=float),
        np.mean([one.by_frame_LF for one in same], axis=0, dtype=float),
        np.mean([one.by_place_LK for one in same], axis=0, dtype=float),
    )  # fmt: skip


def table_rows(found: Sequence[Bias]) -> list[dict[str, Any]]:
    """For Parquet: one row a model, variant and layer."""
    return [
        {"model": one.model, "variant": one.variant, "clips": one.clips, "layer": layer, "rows": one.rows,
         "cols": one.cols, "to_visual": float(one.to_visual_L[layer]), "by_frame": one.by_frame_LF[layer].tolist(),
         "by_place": one.by_place_LK[layer].tolist()}
        for one in found
        for layer in range(len(one.to_visual_L))
    ]  # fmt: skip


def lines(found: Sequence[Bias]) -> list[str]:
    """A Markdown table: how far from even each layer's attention is, over frames and over places."""
    head = "| model | clip | layer | to visual tokens | first quarter of frames | last quarter | largest two frames | "
    out = [head + "largest place, times even |", "|---|---|---|---|---|---|---|---|"]
    for one in found:
        for layer, by_frame_F in enumerate(one.by_frame_LF):
            quarter = max(1, len(by_frame_F) // 4)
            shares = (one.to_visual_L[layer], by_frame_F[:quarter].sum(), by_frame_F[-quarter:].sum(),
                      np.sort(by_frame_F)[-2:].sum())  # fmt: skip
            told = " | ".join(f"{100 * share:.1f} %" for share in shares)
            place = float(one.by_place_LK[layer].max() * one.by_place_LK.shape[1])
            out.append(f"| {one.model} | {one.variant} | {layer + 1} | {told} | {place:.2f} |")
    return out


def picture(found: Sequence[Bias]) -> str:
    """Heat maps of one model: layers by frames; 1 is an even share."""
    maps = []
    for one in found:
        frames = one.by_frame_LF.shape[1]
        labels = [f"layer {layer + 1}" for layer in range(len(one.by_frame_LF))]
        title = f"{one.variant} ({one.clips} clips): layers by frames"
        maps.append(Heat(title, (one.by_frame_LF * frames).tolist(), labels))
    return heat_maps(f"{found[0].model}: share of visual attention, times even", maps, neutral=1.0)


def places_picture(found: Sequence[Bias]) -> str:
    """Heat maps of one model: the positions of a frame, mean over layers and frames."""
    maps = [
        Heat(f"{one.variant} ({one.clips} clips): positions in the frame, mean over layers",
             (one.by_place_LK.mean(0) * one.by_place_LK.shape[1]).reshape(one.rows, one.cols).tolist())
        for one in found
    ]  # fmt: skip
    return heat_maps(f"{found[0].model}: share of visual attention, times even", maps, neutral=1.0)
