"""Layers over a forest: planting clips, running one layer metered, and keeping its keys and values.

Shapes: T packed tokens, N visual tokens, P of the prefix, R of the trailer, S of a suffix (or, in a cache, keys of one
sequence), D hidden width, h key/value heads, d head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mlb_batch.vlm.decoder import Decoder
from mlb_batch.vlm.inputs import ClipInput
from mlb_batch.vlm.meter import Meter, Reason
from mlb_batch.vlm.trees import Forest, Tree


@dataclass(frozen=True)
class LayerKeys:
    """One layer's keys and values, with the forest that they belong to."""

    forest: Forest
    keys_hTd: Tensor
    values_hTd: Tensor

    def of(self, clip: int, prompt: int) -> tuple[Tensor, Tensor, Tree]:
        """The sequence of one prompt: its trunk and itself."""
        for i, tree in enumerate(self.forest.trees):
            if tree.clip == clip and prompt in tree.prompts:
                branch = tree.prompts.index(prompt)
                keys_hSd = self.forest.sequence(self.keys_hTd, i, branch)
                return keys_hSd, self.forest.sequence(self.values_hTd, i, branch), tree
        raise AssertionError("every prompt stands in every layer's forest")


def plant(clip: int, given: ClipInput) -> Tree:
    """A clip before any cut: one trunk, and all its prompts on it."""
    return Tree(
        clip=clip,
        segment=0,
        prompts=tuple(range(len(given.suffixes_SD))),
        prefix=len(given.prefix_PD),
        visual_N=given.place_N,
        trailer=len(given.trailer_RD),
        branches=tuple(len(s) for s in given.suffixes_SD),
        span=given.shape.visual,
    )


def pack(given: ClipInput, visual_ND: Tensor) -> Tensor:
    """The tokens of one tree in the order of the pack: trunk, then branches."""
    return torch.cat([given.prefix_PD, visual_ND, given.trailer_RD, *given.suffixes_SD])


def run_layer(decoder: Decoder, index: int, hidden_TD: Tensor, forest: Forest, rotations: tuple[Tensor, Tensor],
              meters: list[Meter], reason: Reason) -> tuple[Tensor, LayerKeys]:  # fmt: skip
    """One layer over the forest, metered clip by clip from what really ran."""
    out_TD = decoder.layer(index, hidden_TD, rotations, forest)
    for i, tree in enumerate(forest.trees):
        meters[tree.clip].layer(reason, tree.length, len(tree.visual_N), forest.calls(i))
    return out_TD, LayerKeys(forest, forest.keys_hTd, forest.values_hTd)
