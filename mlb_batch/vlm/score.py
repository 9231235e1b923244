"""Scores: what the prompts' query rows pay to the visual tokens, with content and without.

Shapes: T packed tokens, N visual tokens of a trunk, D hidden width, H query heads, Q query rows, S keys of one
sequence, d head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from mlb_batch.cost.schedule import Rows
from mlb_batch.vlm.attention import attention_rows
from mlb_batch.vlm.decoder import Decoder
from mlb_batch.vlm.inputs import ClipInput
from mlb_batch.vlm.layers import pack, plant, run_layer
from mlb_batch.vlm.meter import Meter
from mlb_batch.vlm.trees import Forest, Tree

_ROWS_AT_ONCE = 16  # of all heads


@dataclass(frozen=True)
class Paid:
    """What the query rows of one prompt paid to each visual token of its trunk, summed over the rows."""

    sum_HN: Tensor
    rows: int


Attention = dict[tuple[int, int, int], Paid]  # by clip, prompt and segment


def tap(forest: Forest, rows: Rows, scored: list[Tree]) -> None:
    """Ask the next layer for the queries that score: of each prompt the last token, or all."""
    spans = [span for i in _indices(forest, scored) for span in _row_spans(forest, rows, i)]
    device = forest.trees[0].visual_N.device
    forest.tap_T = torch.cat([torch.arange(a, b, device=device) for a, b in spans]) if spans else None


def visual_attention(forest: Forest, rows: Rows, scored: list[Tree], scale: float, meters: list[Meter]) -> Attention:
    """What the tapped rows paid in the layer that ran last."""
    out: Attention = {}
    at = 0
    for i in _indices(forest, scored):
        tree = forest.trees[i]
        for branch, (start, stop) in enumerate(_row_spans(forest, rows, i)):
            q_HQd = forest.tapped_HQd[:, at : at + stop - start]
            at += stop - start
            keys_hSd = forest.sequence(forest.keys_hTd, i, branch)
            meters[tree.clip].rows(q_HQd.shape[1], keys_hSd.shape[1])
            sum_HN = _row_sums(q_HQd, keys_hSd, scale, tree.visual)
            out[tree.clip, tree.prompts[branch], tree.segment] = Paid(sum_HN, stop - start)
    return out


def _row_sums(q_HQd: Tensor, k_hSd: Tensor, scale: float, visual: slice) -> Tensor:
    """For a long question some heads at a time, then some of its rows: all together would outweigh the layer that they
    look at.
    """
    groups, most = len(q_HQd) // len(k_hSd), len(k_hSd) * _ROWS_AT_ONCE
    at_once = max(1, most // q_HQd.shape[1])
    parts = zip(q_HQd.split(groups * at_once), k_hSd.split(at_once), strict=True)
    return torch.cat([_rows_of_heads(q_GQd, k_gSd, scale, visual, most) for q_GQd, k_gSd in parts])


def _rows_of_heads(q_GQd: Tensor, k_gSd: Tensor, scale: float, visual: slice, at_once: int) -> Tensor:
    rows = q_GQd.shape[1]
    edges = [*range(0, rows, at_once), rows]
    return torch.stack([
        attention_rows(q_GQd[:, start:stop], k_gSd, scale, rows - stop)[..., visual].sum(dim=1)
        for start, stop in pairwise(edges)
    ]).sum(dim=0)  # fmt: skip


def null_attention(decoder: Decoder, inputs: list[ClipInput], rows: Rows, meters: list[Meter]) -> Attention:
    """The positional bias without content: the same prompts on clips whose every frame is their mean frame."""
    wanted = [i for i, given in enumerate(inputs) if given.schedule.null_layers]
    if not wanted:
        return {}
    forest = Forest([plant(i, inputs[i]) for i in wanted])
    hidden_TD = torch.cat([pack(inputs[i], inputs[i].mean_frame_ND()) for i in wanted])
    rotations = forest.rotations([decoder.rope] * len(wanted), hidden_TD.dtype)
    (layers,) = {inputs[i].schedule.null_layers for i in wanted}
    for index in range(layers):
        if index == layers - 1:
            tap(forest, rows, forest.trees)
        hidden_TD, _ = run_layer(decoder, index, hidden_TD, forest, rotations, meters, "null")
    return visual_attention(forest, rows, forest.trees, decoder.scale(layers - 1), meters)


def mean_of(attention: Attention, clip: int, prompts: tuple[int, ...], segment: int = 0) -> Tensor | None:
    """Mean over the query rows of several prompts together, H x N; None where nothing was scored."""
    found = [attention[clip, p, segment] for p in prompts if (clip, p, segment) in attention]
    if not found:
        return None
    return torch.stack([paid.sum_HN for paid in found]).sum(dim=0) / sum(paid.rows for paid in found)


def mean_heads(attention_HN: Tensor | None) -> np.ndarray | None:
    """One number a token, for the record."""
    return None if attention_HN is None else attention_HN.mean(dim=0).cpu().numpy()


def _indices(forest: Forest, scored: list[Tree]) -> list[int]:
    wanted = {id(tree) for tree in scored}
    return [i for i, tree in enumerate(forest.trees) if id(tree) in wanted]


def _row_spans(forest: Forest, rows: Rows, tree: int) -> list[tuple[int, int]]:
    """Where in the pack the query rows of each branch stand."""
    if rows == "none":
        return []
    spans = [forest.branch(tree, b) for b in range(len(forest.trees[tree].branches))]
    return [(stop - 1, stop) if rows == "last" else (start, stop) for start, stop in spans]
