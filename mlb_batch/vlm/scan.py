"""Prefill in two stages (SegAttn): segments run a few layers each, what they hand on is joined and runs the rest.

`carry`: hidden states go on at the scoring layer. The joined tokens get new consecutive positions from there on, and
the caches of the layers below are made to agree: their keys are turned back, picked or merged, and turned to the new
positions. So a generated token sees, in those layers too, the prefix and the question once and the kept tokens, each
as its segment made it. `refeed`: the chosen tokens' embeddings start again at layer 0.

Shapes: T packed tokens, N visual tokens of a segment, K tokens joined, P tokens of the prefix, R of the trailer,
F frames, V tower width, D hidden width, H query heads, h key/value heads, S keys of one sequence, d head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mlb_batch.cost.schedule import Question, Scan
from mlb_batch.prune import Pruning
from mlb_batch.prune.view import Merge, Pick, View, all_in_order, check
from mlb_batch.vlm.decoder import Decoder
from mlb_batch.vlm.inputs import ClipInput
from mlb_batch.vlm.layers import LayerKeys, pack, plant, run_layer
from mlb_batch.vlm.meter import Meter, Reason
from mlb_batch.vlm.rope import Rope
from mlb_batch.vlm.score import Attention, mean_heads, mean_of, tap, visual_attention
from mlb_batch.vlm.sequence import Prefilled, Trace
from mlb_batch.vlm.trees import Forest, Tree, groups


def scan_prefill(decoder: Decoder, pruning: Pruning, inputs: list[ClipInput], meters: list[Meter],
                 room: int) -> list[list[Prefilled]]:  # fmt: skip
    """Every clip with all its prompts; `room` new tokens are allowed for where RoPE must be scaled."""
    most = sum(plant(clip, given).length for clip, given in enumerate(inputs))
    waiting = _waiting(decoder, inputs, meters, most)
    done: dict[tuple[int, int], Prefilled] = {}
    while waiting:
        joins = _next_joins(decoder, pruning, waiting, most, room)
        done |= _second_stage(decoder, joins, _resume(inputs[0]), meters)
    return [[done[clip, p] for p in range(len(given.suffixes_SD))] for clip, given in enumerate(inputs)]


@dataclass(frozen=True)
class _Selection:
    """A clip behind the first stage, and the prompts that choose from it together."""

    segments: _Segments
    given: ClipInput
    prompts: tuple[int, ...]

    @property
    def tree(self) -> Tree:
        """The joined sequence: its positions start anew."""
        given, kept = self.given, sum(_scan(self.given).kept)
        branches = tuple(len(given.suffixes_SD[p]) for p in self.prompts)
        places = torch.arange(kept, device=given.visual_ND.device)
        clip = self.segments.trees[0].clip
        return Tree(clip, 0, self.prompts, len(given.prefix_PD), places, len(given.trailer_RD), branches, kept)


def _waiting(decoder: Decoder, inputs: list[ClipInput], meters: list[Meter], most: int) -> list[_Selection]:
    attention: Attention = {}
    scanned: list[list[_Scanned]] = [[] for _ in inputs]
    trees = [tree for clip, given in enumerate(inputs) for tree in _segment_trees(clip, given)]
    for group in groups(trees, most):
        for one in _first_stage(decoder, inputs, meters, group, attention):
            scanned[one.tree.clip].append(one)
    of = [_Segments.of(some, attention) for some in scanned]
    return [_Selection(of[clip], given, prompts) for clip, given in enumerate(inputs) for prompts in _sharing(given)]


def _next_joins(decoder: Decoder, pruning: Pruning, waiting: list[_Selection], most: int, room: int) -> list[_Join]:
    """Takes as many selections as fill one unpruned pack; the first stage is free again when the last one is taken."""
    joins = [_join(decoder, pruning, waiting.pop(0), room)]
    while waiting and sum(join.tree.length for join in joins) + waiting[0].tree.length <= most:
        joins.append(_join(decoder, pruning, waiting.pop(0), room))
    return joins


def _second_stage(decoder: Decoder, joins: list[_Join], resume: int,
                  meters: list[Meter]) -> dict[tuple[int, int], Prefilled]:  # fmt: skip
    forest, layers = Forest([join.tree for join in joins]), []
    hidden_TD = torch.cat([join.hidden_TD for join in joins])
    rotations = forest.rotations([join.rope for join in joins], hidden_TD.dtype)
    for index in range(resume, len(decoder.layers)):
        hidden_TD, keys = run_layer(decoder, index, hidden_TD, forest, rotations, meters, "prefill")
        layers.append(keys)
    return {
        (join.tree.clip, prompt): _finish(join, prompt, hidden_TD[forest.branch(i, branch)[1] - 1], layers)
        for i, join in enumerate(joins)
        for branch, prompt in enumerate(join.tree.prompts)
    }


def _scan(given: ClipInput) -> Scan:
    assert given.schedule.scan
    return given.schedule.scan


def _resume(given: ClipInput) -> int:
    """The layer at which the joined tokens start."""
    return 0 if _scan(given).refeed else _scan(given).layers


def _sharing(given: ClipInput) -> list[tuple[int, ...]]:
    """Prompts that share a selection."""
    prompts = tuple(range(len(given.suffixes_SD)))
    return [(p,) for p in prompts] if given.schedule.fork else [prompts]


@dataclass(frozen=True)
class _Scanned:
    """One segment behind the first stage."""

    tree: Tree
    goes_on_TD: Tensor  # hidden states behind the stage; the embeddings before it, where tokens start again
    keys: list[Tensor]  # per layer: T x h x d, as rotated; none where tokens start again
    values: list[Tensor]


@dataclass(frozen=True)
class _Segments:
    """The segments of one clip, behind the first stage."""

    trees: list[Tree]
    goes_on: list[Tensor]  # per segment
    keys: list[list[Tensor]]  # per layer and segment
    values: list[list[Tensor]]
    attention: Attention

    @classmethod
    def of(cls, scanned: list[_Scanned], attention: Attention) -> _Segments:
        layers = range(len(scanned[0].keys))
        return cls(
            trees=[one.tree for one in scanned],
            goes_on=[one.goes_on_TD for one in scanned],
            keys=[[one.keys[layer] for one in scanned] for layer in layers],
            values=[[one.values[layer] for one in scanned] for layer in layers],
            attention=attention,
        )


def _first_stage(decoder: Decoder, inputs: list[ClipInput], meters: list[Meter], trees: list[Tree],
                 attention: Attention) -> list[_Scanned]:  # fmt: skip
    """Some segments, each with all prompts of its clip behind it, through the layers up to the scoring one."""
    hidden_TD = torch.cat([_segment_pack(inputs[tree.clip], tree) for tree in trees])
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
    attention |= visual_attention(forest, rows, trees, decoder.scale(scan.layers - 1), meters)
    goes_on_TD = hidden_TD if embedded_TD is None else embedded_TD
    spans = [slice(start, start + tree.length) for start, tree in zip(forest.starts, trees, strict=True)]
    return [
        _Scanned(tree, goes_on_TD[s], [layer.keys_hTd[:, s].transpose(0, 1) for layer in layers],
                 [layer.values_hTd[:, s].transpose(0, 1) for layer in layers])
        for tree, s in zip(trees, spans, strict=True)
    ]  # fmt: skip


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


def _segment_pack(given: ClipInput, tree: Tree) -> Tensor:
    start = sum(_scan(given).segments[: tree.segment]) * given.shape.tokens_per_frame
    return pack(given, given.visual_ND[start : start + len(tree.visual_N)])


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


def _join(decoder: Decoder, pruning: Pruning, chosen: _Selection, room: int) -> _Join:
    segments, given, prompts, tree = chosen.segments, chosen.given, chosen.prompts, chosen.tree
    scan = _scan(given)
    picks = [_pick(pruning, segments, given, prompts, i) for i in range(len(segments.trees))]
    rope = decoder.rope.scaled(tree.trunk + max(tree.branches) + room)
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
        attention_HN=mean_of(segments.attention, tree.clip, prompts, i),
        cell=scan.cells[i],
        tail=scan.tail,
        seed=given.seed,
    )
    pick = pruning.pick(view, scan.kept[i])
    all_in_order([check(pick, view, scan.kept[i], exact=True)])
    return pick


def _assembled(of_segment: list[Tensor], trees: list[Tree], picks: list[Pick], prompts: tuple[int, ...],
               question: Question) -> Tensor:  # fmt: skip
    """The joined sequence of anything that has a row a token: prefix once, what segments keep, the question once."""
    kept = [
        pick.apply(x[tree.visual]) if isinstance(pick, Merge) else x[tree.visual][pick]
        for x, tree, pick in zip(of_segment, trees, picks, strict=True)
    ]
    first, last, tree = of_segment[0], of_segment[-1], trees[-1]
    branches = [_question([x[t.branch(p)] for x, t in zip(of_segment, trees, strict=True)], question) for p in prompts]
    return torch.cat([first[: tree.prefix], *kept, last[tree.visual.stop : tree.trunk], *branches])


def _question(copies: list[Tensor], which: Question) -> Tensor:
    """Every segment has made a copy of the question; one goes on."""
    return copies[-1] if which == "last" else torch.stack(copies).float().mean(dim=0).to(copies[0].dtype)


def _shallow(base: Rope, rope: Rope, segments: _Segments, picks: list[Pick], tree: Tree, prompt: int,
             question: Question) -> list[tuple[Tensor, Tensor]]:  # fmt: skip
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
    scores = [mean_heads(mean_of(segments.attention, clip, prompts, i)) for i in range(len(segments.trees))]
    return Trace(
        layer=scan.layers,
        candidates_N=given.place_N.cpu().numpy(),
        kept_K=kept_N.cpu().numpy(),
        score_N=np.concatenate([score_N for score_N in scores if score_N is not None]),
        null_N=None,
        segment_F=np.repeat(np.arange(len(scan.segments)), scan.segments),
        part_N=np.repeat(np.arange(len(scan.segments)), [len(tree.visual_N) for tree in segments.trees]),
    )


def _finish(join: _Join, prompt: int, last_D: Tensor, layers: list[LayerKeys]) -> Prefilled:
    tree = join.tree
    deep = [layer.of(tree.clip, prompt)[:2] for layer in layers]
    caches = [*join.shallow.get(prompt, []), *deep]
    return Prefilled(
        last_D=last_D.clone(),  # by itself: a view would hold what all prompts ended in
        keys=[keys_hSd for keys_hSd, _ in caches],
        values=[values_hSd for _, values_hSd in caches],
        next_position=tree.next_position(tree.prompts.index(prompt)),
        kept_N=join.kept_N,
        segments=join.segments,
        rope=join.rope,
        trace=join.trace,
    )
