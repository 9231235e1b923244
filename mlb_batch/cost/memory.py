"""What clips hold on a device until they are answered, in bytes, so that a batch is chosen before it is tried.

Bounds from shapes alone, as operations are priced: keys and values are counted exactly, a layer at work at its widest.
What a process holds whatever it does (the weights, and the tower at work on a few dozen frames) is not among them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mlb_batch.cost.flops import cache_lengths
from mlb_batch.cost.schedule import ClipShape, Schedule
from mlb_batch.cost.shapes import DecoderShape, ModelShape

_LOGITS = 3 * 4  # bytes for each word of the vocabulary: an answer's first logits are kept, beside those of a step

T = TypeVar("T")


@dataclass(frozen=True)
class Footprint:
    """Of one clip with all its prompts."""

    work: int  # while it goes through the layers
    kept: int  # from then on, while others do
    held: int  # while its answers are generated


def footprint(shape: ModelShape, clip: ClipShape, schedule: Schedule, new_tokens: int, width: int) -> Footprint:
    """`width`: bytes of a number."""
    d, prompts = shape.decoder, len(clip.suffixes)
    tokens = clip.prefix + clip.visual + clip.trailer + sum(clip.suffixes)
    cached = sum(sum(cache_lengths(shape, clip, schedule, prompt)) for prompt in range(prompts))
    rooms = cached + prompts * d.layers * new_tokens  # what prefill left is copied there, and stays until the end
    kept = width * (2 * d.kv_dim * cached + tokens * d.hidden)
    return Footprint(
        # No layer runs on more tokens than an unpruned one, and only prompts that part can leave more than one behind.
        work=width * (tokens * _widest(d) + 2 * d.kv_dim * max(d.layers * tokens, cached)),
        kept=kept,
        held=kept + width * 2 * d.kv_dim * rooms + _LOGITS * prompts * d.vocab,
    )


def _widest(d: DecoderShape) -> int:
    """Numbers that a layer holds for each of its tokens: of its MLP, or of its attention, beside what goes around them
    (the norms of some models in double width).
    """
    return 6 * d.hidden + max(4 * d.ffn, 5 * d.q_dim + 6 * d.kv_dim)


def waves(clips: Sequence[T], of: Callable[[T], Footprint], room: int) -> list[list[list[T]]]:
    """The clips in order, in waves that generate together, and each wave in groups that go through the layers together.

    A clip that has no room even alone goes alone, as far as it gets.
    """
    found: list[list[tuple[T, Footprint]]] = []
    for one in ((clip, of(clip)) for clip in clips):
        if not found or not _together([size for _, size in (*found[-1], one)], room):
            found.append([])
        found[-1].append(one)
    out = []
    for wave in found:
        left = room - sum(size.kept for _, size in wave)
        groups = filled(wave, lambda one: one[1].work, left)
        out.append([[clip for clip, _ in group] for group in groups])
    return out


def _together(sizes: Sequence[Footprint], room: int) -> bool:
    """Whether they can generate together, and each of them find room in the layers beside what the others keep."""
    kept = sum(size.kept for size in sizes)
    return sum(size.held for size in sizes) <= room and kept + max(size.work for size in sizes) <= room


def filled(items: Sequence[T], size: Callable[[T], int], most: int) -> list[list[T]]:
    """Consecutive items that come to no more than `most` together, or a single one."""
    out: list[list[T]] = []
    left = 0
    for item in items:
        if not out or size(item) > left:
            out.append([])
            left = most
        out[-1].append(item)
        left -= size(item)
    return out
