"""The papers' convention: multiply-adds of the visual tokens alone, in the prefill alone.

One decoder layer over n tokens, grouped-query attention and SwiGLU (hidden D, feed-forward m, kv heads of width d):

    F(n) = 2 n D^2 (1 + h_kv d / D) + 2 n^2 D + 3 n D m
"""

from __future__ import annotations

from mlb_batch.cost.flops import trunk_lengths
from mlb_batch.cost.schedule import ClipShape, Schedule
from mlb_batch.cost.shapes import DecoderShape, ModelShape


def layer_macs(d: DecoderShape, n: int) -> int:
    """F(n), in whole multiply-adds: the fraction cancels, since D^2 h_kv d / D is D h_kv d."""
    return 2 * n * d.hidden * (d.hidden + d.kv_dim) + 2 * n * n * d.hidden + 3 * n * d.hidden * d.ffn


def macs(shape: ModelShape, clip: ClipShape, schedule: Schedule) -> int:
    """Multiply-adds of the visual tokens of one clip, over all layers and, where they fork, over all prompts."""
    d, prompts = shape.decoder, len(clip.suffixes)
    if schedule.scan:
        scan = schedule.scan
        first = scan.layers * sum(layer_macs(d, f * clip.tokens_per_frame) for f in scan.segments)
        layers = d.layers if scan.refeed else d.layers - scan.layers
        return first + layers * (prompts if schedule.fork else 1) * layer_macs(d, sum(scan.kept))
    text, trunks = clip.text, trunk_lengths(shape, clip, schedule)
    return sum((prompts if forked else 1) * layer_macs(d, trunk - text) for trunk, forked in trunks)
