"""Prefill in two stages (SegAttn): segments run a few layers each, what they hand on is joined and runs the rest.

`carry`: hidden states go on at the scoring layer. The joined tokens get new consecutive positions from there on, and
the caches of the layers below are made to agree: their keys are turned back, picked or merged, and turned to the new
positions. So a generated token sees, in those layers too, the prefix and the question once and the kept tokens, each
as its segment made it. `refeed`: the chosen tokens' embeddings start again at layer 0.

Shapes: T packed tokens, N visual tokens of a segment, K tokens joined, D hidden width, h key/value heads, S keys of
one sequence, d head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mlb_batch.cost.schedule import Scan
from mlb_batch.prune import Pruning
from mlb_batch.prune.view import Merge, Pick, View, check
from mlb_batch.vlm.decoder import Decoder
from mlb_batch.vlm.inputs import ClipInput
from mlb_batch.vlm.layers import LayerKeys, run_layer
from mlb_batch.vlm.meter import Meter, Reason
from mlb_batch.vlm.rope import Rope
from mlb_batch.vlm.score import Attention, mean_rows, rows_of, tap, visual_attention
from mlb_batch.vlm.sequence import Prefilled, Trace
from mlb_batch.vlm.trees import Forest, Tree


def scan_prefill(decoder: Decoder, pruning: Pruning, inputs: list[ClipInput], meters: list[Meter],
                 room: int) -> list[list[Prefilled]]:  # fmt: skip
    """Every clip with all its prompts; `room` new tokens are allowed for where RoPE must be scaled."""
    joins = _joins(decoder, pruning, inputs, meters, room)
    forest, layers = Forest([join.tree for join in joins]), []
    hidden_TD = torch.cat([join.hidden_TD for join in joins])
    rotations = forest.rotations([join.rope for join in joins], hidden_TD.dtype)
    for index in range(_resume(inputs[0]), len(decoder.layers)):
        hidden_TD, keys = run_layer(decoder, index, hidden_TD, forest, rotations, meters, "prefill")
        layers.append(keys)
    out: list[list[Prefilled]] = [[] for _ in inputs]
    for clip, prompt, i in sorted((j.tree.clip, p, i) for i, j in enumerate(joins) for p in j.tree.prompts):
        end = forest.branch(i, joins[i].tree.prompts.index(prompt))[1]
        out[clip].append(_finish(joins[i], prompt, hidden_TD[end - 1], layers))
    return out


def _joins(decoder: Decoder, pruning: Pruning, inputs: list[ClipInput], meters: list[Meter],
           room: int) -> list[_Join]:  # fmt: skip
    """The first stage, and what is chosen from it; the rest of it is free again before the second stage runs."""
    first = _first_stage(decoder, inputs, meters)
    return [
        _join(decoder, pruning, first.of(clip), given, prompts, room)
        for clip, given in enumerate(inputs)
        for prompts in _groups(given)
    ]


def _scan(given: ClipInput) -> Scan:
    assert given.schedule.scan
    return given.schedule.scan


def _resume(given: ClipInput) -> int:
    """The layer at which the joined tokens start."""
    return 0 if _scan(given).refeed else _scan(given).layers


def _groups(given: ClipInput) -> list[tuple[int, ...]]:
    """Prompts that share a selection."""
    prompts = tuple(range(len(given.suffixes_SD)))
    return [(p,) for p in prompts] if given.schedule.fork else [prompts]


@dataclass(frozen=True)
class _Segments:
    """The segments of one clip, behind the first stage."""

    trees: list[Tree]
    goes_on: list[Tensor]  # per segment: what is chosen from, see _First
    keys: list[list[Tensor]]  # per layer and segment: T x h x d, as rotated
    values: list[list[Tensor]]
    attention: Attention


@dataclass(frozen=True)
class _First:
    forest: Forest
    goes_on_TD: Tensor  # hidden states behind the stage; the embeddings before it, where tokens start again
    layers: list[LayerKeys]  # none where tokens start again
    attention: Attention

    def of(self, clip: int) -> _Segments:
        mine = [i for i, tree in enumerate(self.forest.trees) if tree.clip == clip]
        spans = [slice(self.forest.starts[i], self.forest.starts[i] + self.forest.trees[i].length) for i in mine]
        return _Segments(
            trees=[self.forest.trees[i] for i in mine],
            goes_on=[self.goes_on_TD[s] for s in spans],
            keys=[[layer.keys_hTd[:, s].transpose(0, 1) for s in spans] for layer in self.layers],
            values=[[layer.values_hTd[:, s].transpose(0, 1) for s in spans] for layer in self.layers],
            attention=self.attention,
        )


def _first_stage(decoder: Decoder, inputs: list[ClipInput], meters: list[Meter]) -> _First:
    """Every segment of every clip, each with all prompts behind it, through the layers up to the scoring one."""
    trees = [tree for clip, given in enumerate(inputs) for tree in _segment_trees(clip, given)]
    hidden_TD = torch.cat([pack for given in inputs for pack in _segment_packs(given)])
    scan, rows = _scan(inputs[0]), inputs[0].schedule.rows
    reason: Reason = "scan" if scan.refeed else "prefill"
    embedded_TD = hidden_TD if scan.refeed else None
    forest, layers = Forest(trees), []
    rotations = forest.rotations([decoder.rope] * len(trees), hidden_TD.dtype)
    for index in range(scan.layers):
        if index == scan.layers - 1:
            tap(forest, rows, trees)
        hidden_TD, keys = run_layer(decoder, index, hidden_TD, forest, rotations, meters, reason)
        layers += [] if scan.refeed else [keys]
    attention = visual_attention(forest, rows, trees, decoder.scale(scan.layers - 1), meters)
    return _First(forest, hidden_TD if embedded_TD is None else embedded_TD, layers, attention)


def _segment_trees(clip: int, given: ClipInput) -> list[Tree]:
    """A segment is numbered as if it were all there is: that is what the bias is measured on."""
    branches = tuple(len(s) for s in given.suffixes_SD)
    sizes = [frames * given.shape.tokens_per_frame for frames in _scan(given).segments]
    device = given.visual_ND.device
    return [
        Tree(clip, i, tuple(range(len(branches))), len(given.prefix_PD), torch.arange(n, device=device),
             len(given.trailer_RD), branches, span=n)
        for i, n in enumerate(sizes)
    ]  # fmt: skip


def _segment_packs(given: ClipInput) -> list[Tensor]:
    sizes = [frames * given.shape.tokens_per_frame for frames in _scan(given).segments]
    return [
        torch.cat([given.prefix_PD, visual_ND, given.trailer_RD, *given.suffixes_SD])
        for visual_ND in given.visual_ND.split(sizes)
    ]


@dataclass(frozen=True)
class _Join:
    """What one selection hands to the second stage: the joined sequence, and its caches in the layers below."""

    tree: Tree
    rope: Rope
    hidden_TD: Tensor
    shallow: dict[int, list[tuple[Tensor, Tensor]]]  # per prompt and layer: keys and values, h x S x d
    kept_N: Tensor
    segments: int
    trace: list[Trace]


def _join(decoder: Decoder, pruning: Pruning, segments: _Segments, given: ClipInput, prompts: tuple[int, ...],
          room: int) -> _Join:  # fmt: skip
    scan = _scan(given)
    picks = [_pick(pruning, segments, given, prompts, i) for i in range(len(segments.trees))]
    kept = sum(scan.kept)
    branches = tuple(len(given.suffixes_SD[p]) for p in prompts)
    places = torch.arange(kept, device=given.visual_ND.device)
    tree = Tree(segments.trees[0].clip, 0, prompts, len(given.prefix_PD), places, len(given.trailer_RD), branches, kept)
    rope = decoder.rope.scaled(tree.trunk + max(branches) + room)
    hidden_TD = _assembled(segments.goes_on, segments.trees, picks, prompts, scan.question)
    shallow = {} if scan.refeed else {
        p: _shallow(decoder.rope, rope, segments, picks, tree, p, scan.question) for p in prompts
    }  # fmt: skip
    kept_N = _kept_places(picks, given, scan)
    trace = [_trace(segments, given, prompts, kept_N)] if given.trace else []
    return _Join(tree, rope, hidden_TD, shallow, kept_N, len(segments.trees), trace)


def _pick(pruning: Pruning, segments: _Segments, given: ClipInput, prompts: tuple[int, ...], i: int) -> Pick:
    tree, scan = segments.trees[i], _scan(given)
    n = len(tree.visual_N)
    first = sum(len(t.visual_N) for t in segments.trees[:i])
    first_frame = sum(scan.segments[:i])
    view = View(
        grid=(scan.segments[i], given.shape.rows, given.shape.cols),
        alive_N=tree.visual_N,
        embed_ND=given.visual_ND[first : first + n],
        feature_FD=given.feature_FV[first_frame : first_frame + scan.segments[i]],
        attention_HQN=rows_of(segments.attention, tree.clip, prompts, i),
        cell=scan.cells[i],
        tail=scan.tail,
        seed=given.seed,
    )
    return check(pruning.pick(view, scan.kept[i]), view, scan.kept[i], exact=True)


def _assembled(of_segment: list[Tensor], trees: list[Tree], picks: list[Pick], prompts: tuple[int, ...],
               question: str) -> Tensor:  # fmt: skip
    """The joined sequence of anything that has a row a token: prefix once, what segments keep, the question once."""
    kept = [
        pick.apply(x[tree.visual]) if isinstance(pick, Merge) else x[tree.visual][pick]
        for x, tree, pick in zip(of_segment, trees, picks, strict=True)
    ]
    first, last, tree = of_segment[0], of_segment[-1], trees[-1]
    branches = [_question([x[t.branch(p)] for x, t in zip(of_segment, trees, strict=True)], question) for p in prompts]
    return torch.cat([first[: tree.prefix], *kept, last[tree.visual.stop : tree.trunk], *branches])


def _question(copies: list[Tensor], which: str) -> Tensor:
    """Every segment has made a copy of the question; one goes on."""
    return copies[-1] if which == "last" else torch.stack(copies).float().mean(dim=0).to(copies[0].dtype)


def _shallow(base: Rope, rope: Rope, segments: _Segments, picks: list[Pick], tree: Tree, prompt: int,
             question: str) -> list[tuple[Tensor, Tensor]]:  # fmt: skip
    """The caches of the layers below, as if the joined sequence had stood there: keys are moved to its positions."""
    old = [t.positions for t in segments.trees]
    new = torch.cat([tree.trunk_positions(), tree.branch_positions(tree.prompts.index(prompt))])
    out = []
    for keys, values in zip(segments.keys, segments.values, strict=True):
        still = [
            base.unrotate(k.transpose(0, 1), positions).transpose(0, 1)
            for k, positions in zip(keys, old, strict=True)
        ]  # fmt: skip
        still_Shd = _assembled(still, segments.trees, picks, (prompt,), question)
        values_Shd = _assembled(values, segments.trees, picks, (prompt,), question)
        out.append((rope.rotate(still_Shd.transpose(0, 1), new), values_Shd.transpose(0, 1)))
    return out


def _kept_places(picks: list[Pick], given: ClipInput, scan: Scan) -> Tensor:
    """Where the kept tokens stand in the clip; a merged one stands where the first of its cell does."""
    places, start = [], 0
    for pick, frames in zip(picks, scan.segments, strict=True):
        places.append(start + (pick.first if isinstance(pick, Merge) else pick))
        start += frames * given.shape.tokens_per_frame
    return given.place_N[torch.cat(places)]


def _trace(segments: _Segments, given: ClipInput, prompts: tuple[int, ...], kept_N: Tensor) -> Trace:
    """One record of all segments; a score is what a token was paid inside its own segment."""
    scan, clip = _scan(given), segments.trees[0].clip
    scores = [mean_rows(rows_of(segments.attention, clip, prompts, i)) for i in range(len(segments.trees))]
    return Trace(
        layer=scan.layers,
        candidates_N=given.place_N.cpu().numpy(),
        kept_K=kept_N.cpu().numpy(),
        score_N=np.concatenate([score_N for score_N in scores if score_N is not None]),
        null_N=None,
        segment_F=np.repeat(np.arange(len(scan.segments)), scan.segments),
    )


def _finish(join: _Join, prompt: int, last_D: Tensor, layers: list[LayerKeys]) -> Prefilled:
    tree = join.tree
    deep = [layer.of(tree.clip, prompt)[:2] for layer in layers]
    caches = [*join.shallow.get(prompt, []), *deep]
    return Prefilled(
        last_D=last_D,
        keys=[keys_hSd for keys_hSd, _ in caches],
        values=[values_hSd for _, values_hSd in caches],
        next_position=int(tree.branch_positions(tree.prompts.index(prompt))[-1]) + 1,
        kept_N=join.kept_N,
        segments=join.segments,
        rope=join.rope,
        trace=join.trace,
    )
