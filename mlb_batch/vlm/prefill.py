"""Prefill, in two stages (scan.py) or in one pass over the layers: run to the next cut, score, pick, gather, go on.

The layers are transformers' own; the loop between them is ours. Where prompts part and the pack grows past the one
that the clips came in, it goes on in parts, one after another: no layer ever runs on more than an unpruned one would.

Shapes: T packed tokens, N visual tokens of a trunk, F frames, V tower width, D hidden width, H query heads,
h key/value heads, S keys of one sequence, d head width.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mlb_batch.cost.schedule import Rows
from mlb_batch.prune import Pruning
from mlb_batch.prune.view import Merge, View, all_in_order, check
from mlb_batch.vlm.decoder import Decoder
from mlb_batch.vlm.inputs import ClipInput
from mlb_batch.vlm.layers import LayerKeys, pack, plant, run_layer
from mlb_batch.vlm.meter import Meter
from mlb_batch.vlm.scan import scan_prefill
from mlb_batch.vlm.score import Attention, mean_heads, mean_of, null_attention, tap, visual_attention
from mlb_batch.vlm.sequence import Prefilled, Trace
from mlb_batch.vlm.trees import Forest, Tree, groups


def prefill(decoder: Decoder, pruning: Pruning, inputs: list[ClipInput], meters: list[Meter],
            new_tokens: int) -> list[list[Prefilled]]:  # fmt: skip
    """Every clip with all its prompts, in one packed row; for each clip one Prefilled a prompt.

    `new_tokens`: of the longest answer, for which two stages scale RoPE.
    """
    if inputs[0].schedule.scan:
        return scan_prefill(decoder, pruning, inputs, meters, new_tokens)
    rows = inputs[0].schedule.rows
    for meter, given in zip(meters, inputs, strict=True):
        meter.compare(given.schedule.compared)
    null = null_attention(decoder, inputs, rows, meters)
    trees = [plant(i, given) for i, given in enumerate(inputs)]
    run = _Pass(decoder, pruning, inputs, meters, rows, null, room=sum(tree.length for tree in trees))
    run.pack(trees, [pack(given, given.visual_ND) for given in inputs])
    run.cut()
    done = _through(run)
    return [[done[clip, p] for p in range(len(given.suffixes_SD))] for clip, given in enumerate(inputs)]


def _through(run: _Pass) -> dict[tuple[int, int], Prefilled]:
    """To the end: what each clip's each prompt got. A part waits while those before it run all their layers."""
    done: dict[tuple[int, int], Prefilled] = {}
    waiting = run.parts()
    while waiting:
        part = waiting.pop(0)
        if part.at == len(part.decoder.layers):
            done |= part.finish()
        else:
            part.layer()
            part.cut()
            waiting[:0] = part.parts()
    return done


@dataclass
class _Pass:
    """Trees on their way through the layers, in one pack."""

    decoder: Decoder
    pruning: Pruning
    inputs: list[ClipInput]
    meters: list[Meter]
    rows: Rows
    null: Attention
    room: int  # tokens of the pack before any prompts part
    forest: Forest = field(init=False)
    hidden_TD: Tensor = field(init=False)
    rotations: tuple[Tensor, Tensor] = field(init=False)
    layers: list[LayerKeys] = field(default_factory=list)  # that have run
    traces: dict[tuple[int, int], list[Trace]] = field(default_factory=dict)
    checked: list[Tensor] = field(default_factory=list)  # of each pick, whether it is one

    @property
    def at(self) -> int:
        """The layer that is next."""
        return len(self.layers)

    def pack(self, trees: list[Tree], packs: list[Tensor]) -> None:
        """`packs`: the hidden states of each tree."""
        self.forest, self.hidden_TD = Forest(trees), torch.cat(packs)
        self.rotations = self.forest.rotations([self.decoder.rope] * len(trees), self.hidden_TD.dtype)

    def parts(self) -> list[_Pass]:
        """Itself, where it has room; else passes over some of its trees each, on top of the layers so far."""
        parted = groups(self.forest.trees, self.room)
        if len(parted) == 1:
            return [self]
        tokens = [sum(tree.length for tree in trees) for trees in parted]
        parts = [replace(self, layers=list(self.layers)) for _ in parted]  # the layers' keys are shared
        for part, trees, hidden_TD in zip(parts, parted, self.hidden_TD.split(tokens), strict=True):
            part.pack(trees, [hidden_TD])
        return parts

    def _keep(self, tree: Tree, index: int) -> int | None:
        """How many visual tokens of a tree go on to layer `index`, if a cut stands before it."""
        return next((c.keep for c in self.inputs[tree.clip].schedule.cuts if c.at == index), None)

    def _cut_trees(self, index: int) -> list[Tree]:
        return [tree for tree in self.forest.trees if self._keep(tree, index) is not None]

    def layer(self) -> None:
        tap(self.forest, self.rows, self._cut_trees(self.at + 1))
        self.hidden_TD, keys = run_layer(
            self.decoder, self.at, self.hidden_TD, self.forest, self.rotations, self.meters, "prefill"
        )
        self.layers.append(keys)

    def cut(self) -> None:
        """Where a cut stands before the next layer: pick, and gather what goes on into a new forest."""
        index = self.at
        cut = self._cut_trees(index)
        if not cut:
            return
        scale = self.decoder.scale(index - 1)
        attention = visual_attention(self.forest, self.rows, cut, scale, self.meters) if index else {}
        trees, hidden = [], []
        for tree, start in zip(self.forest.trees, self.forest.starts, strict=True):
            hidden_TD, keep = self.hidden_TD[start : start + tree.length], self._keep(tree, index)
            if keep is None:
                trees.append(tree)
                hidden.append(hidden_TD)
                continue
            for part in self._forks(tree):
                new_tree, kept_ND = self._choose(part, hidden_TD[tree.visual], keep, index, attention)
                trees.append(new_tree)
                hidden.append(_around(tree, part, hidden_TD, kept_ND))
        self.pack(trees, hidden)

    def _forks(self, tree: Tree) -> list[Tree]:
        """Where prompts part, a tree for each; otherwise the tree itself."""
        if not self.inputs[tree.clip].schedule.fork:
            return [tree]
        return [replace(tree, prompts=(p,), branches=(b,)) for p, b in zip(tree.prompts, tree.branches, strict=True)]

    def _choose(self, tree: Tree, visual_ND: Tensor, keep: int, index: int,
                attention: Attention) -> tuple[Tree, Tensor]:  # fmt: skip
        """A tree behind its cut, and the hidden states of the visual tokens that go on."""
        whole = keep == len(tree.visual_N) and self.pruning.traits.exact
        if whole and not self.inputs[tree.clip].schedule.compared:  # what is in the bill runs, whatever stays
            return tree, visual_ND
        view = self._view(tree, attention)
        pick = self.pruning.pick(view, keep)
        self.checked.append(check(pick, view, keep, self.pruning.traits.exact))
        if isinstance(pick, Merge):  # what is merged has no place of its own: the sequence is numbered anew
            assert index == 0, "a one-pass method merges before the first layer only"
            places = torch.arange(keep, device=tree.visual_N.device)
            return replace(tree, visual_N=places, span=keep), pick.apply(visual_ND)
        if self.inputs[tree.clip].trace:
            self._record(tree, view, pick, index)
        return replace(tree, visual_N=tree.visual_N[pick]), visual_ND[pick]

    def _view(self, tree: Tree, attention: Attention) -> View:
        given = self.inputs[tree.clip]
        null_HN = mean_of(self.null, tree.clip, tree.prompts)
        at_N = torch.searchsorted(given.place_N, tree.visual_N)
        return View(
            grid=(given.shape.frames, given.shape.rows, given.shape.cols),
            alive_N=tree.visual_N,
            embed_ND=given.visual_ND[at_N],
            feature_FD=given.feature_FV,
            attention_HN=mean_of(attention, tree.clip, tree.prompts),
            null_HN=None if null_HN is None else null_HN[..., at_N],
            relevance_F=given.relevance(tree.prompts),
            seed=given.seed,
        )

    def _record(self, tree: Tree, view: View, pick: Tensor, index: int) -> None:
        trace = Trace(
            layer=index,
            candidates_N=tree.visual_N.cpu().numpy(),
            kept_K=tree.visual_N[pick].cpu().numpy(),
            score_N=mean_heads(view.attention_HN),
            null_N=mean_heads(view.null_HN),
            segment_F=self.pruning.traits.segments(view).cpu().numpy(),
        )
        for prompt in tree.prompts:
            self.traces.setdefault((tree.clip, prompt), []).append(trace)

    def finish(self) -> dict[tuple[int, int], Prefilled]:
        all_in_order(self.checked)
        places = [(i, t.clip, p) for i, t in enumerate(self.forest.trees) for p in t.prompts]
        segments = self._segments(sorted({clip for _, clip, _ in places}))
        caches = self._caches(places)
        return {
            (clip, prompt): self._finish_one(i, clip, prompt, caches[clip, prompt], segments[clip])
            for i, clip, prompt in places
        }

    def _segments(self, clips: list[int]) -> dict[int, int]:
        """How many each clip has."""
        views = [self._view(plant(clip, self.inputs[clip]), {}) for clip in clips]
        last = torch.stack([self.pruning.traits.segments(view)[-1] for view in views]).tolist()
        return {clip: index + 1 for clip, index in zip(clips, last, strict=True)}

    def _caches(self, places: list[tuple[int, int, int]]) -> dict[tuple[int, int], list[tuple[Tensor, Tensor]]]:
        """Layer by layer, so that one that is handed over need not stay as well."""
        caches: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {(clip, prompt): [] for _, clip, prompt in places}
        while self.layers:
            record = self.layers.pop(0)
            for i, clip, prompt in places:
                caches[clip, prompt].append(self._cache(record, clip, prompt, self.forest.trees[i]))
        return caches

    def _finish_one(self, i: int, clip: int, prompt: int, caches: list[tuple[Tensor, Tensor]],
                    segments: int) -> Prefilled:  # fmt: skip
        tree = self.forest.trees[i]
        branch = tree.prompts.index(prompt)
        return Prefilled(
            last_D=self.hidden_TD[self.forest.branch(i, branch)[1] - 1].clone(),  # a view would hold the whole pack
            keys=[keys_hSd for keys_hSd, _ in caches],
            values=[values_hSd for _, values_hSd in caches],
            next_position=tree.next_position(branch),
            kept_N=tree.visual_N,
            segments=segments,
            rope=self.decoder.rope,
            trace=self.traces.get((clip, prompt), []),
        )

    def _cache(self, record: LayerKeys, clip: int, prompt: int, last: Tree) -> tuple[Tensor, Tensor]:
        """A layer's cache of one prompt; compacted, it forgets below a cut what the last cut dropped."""
        keys_hSd, values_hSd, tree = record.of(clip, prompt)
        if not self.inputs[clip].schedule.compact or len(tree.visual_N) == len(last.visual_N):
            return keys_hSd, values_hSd
        stays_S = torch.ones(keys_hSd.shape[1], dtype=torch.bool, device=keys_hSd.device)
        stays_S[tree.visual] = torch.isin(tree.visual_N, last.visual_N)
        return keys_hSd[:, stays_S], values_hSd[:, stays_S]


def _around(tree: Tree, part: Tree, hidden_TD: Tensor, visual_ND: Tensor) -> Tensor:
    """The pack of one tree behind its cut: its text as it was, the chosen visual tokens, its own prompts."""
    branches = [hidden_TD[tree.branch(tree.prompts.index(p))] for p in part.prompts]
    return torch.cat([hidden_TD[: tree.prefix], visual_ND, hidden_TD[tree.visual.stop : tree.trunk], *branches])
