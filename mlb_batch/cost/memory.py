"""What clips hold on a device until they are answered, in bytes, and who goes in next: chosen before it is tried.

Bounds from shapes alone, as operations are priced: keys and values are counted exactly, a layer at work at its widest.
What a process holds whatever it does (the weights, and the tower at work on a few dozen frames) is not among them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from mlb_batch.cost.flops import cache_lengths
from mlb_batch.cost.schedule import ClipShape, Schedule
from mlb_batch.cost.shapes import DecoderShape, ModelShape

_LOGITS = 3 * 4  # bytes for each word of the vocabulary: an answer's first logits are kept, beside those of a step


@dataclass(frozen=True)
class Footprint:
    """Of one clip with all its prompts."""

    work: int  # while it goes through the layers
    held: int  # from then on, until its last answer ends
    moved: int  # on top of that for a moment, whenever those that generate move together


def footprint(shape: ModelShape, clip: ClipShape, schedule: Schedule, new_tokens: int, width: int) -> Footprint:
    """`width`: bytes of a number."""
    d, prompts = shape.decoder, len(clip.suffixes)
    text = clip.text + sum(clip.suffixes)
    caches = [cache_lengths(shape, clip, schedule, prompt) for prompt in range(prompts)]
    cached, key = sum(map(sum, caches)), width * 2 * d.kv_dim
    layer = max(map(sum, zip(*caches, strict=True))) + prompts * new_tokens
    packed_on = d.layers * sum(clip.suffixes[1:])  # what comes to generation still lies with the clip's other prompts
    return Footprint(
        # No layer runs on more tokens than an unpruned one.
        work=width * (clip.visual + text) * _widest(d) + _left_behind(d, clip, schedule, text, cached, width),
        held=key * (cached + prompts * d.layers * new_tokens) + _LOGITS * prompts * d.vocab,
        moved=key * (layer + packed_on),
    )


def _left_behind(d: DecoderShape, clip: ClipShape, schedule: Schedule, text: int, cached: int, width: int) -> int:
    """By the layers, until the last one has run; `text`: its tokens, `cached`: keys that generation finds."""
    key = width * 2 * d.kv_dim
    if scan := schedule.scan:  # every segment has copies of the text, and stays until all prompts have chosen from it
        scanned = schedule.frames * clip.tokens_per_frame + len(scan.segments) * text
        layers = 0 if scan.refeed else scan.layers
        return width * scanned * d.hidden + key * (layers * scanned + cached)
    tokens = clip.visual + text
    if schedule.compact and schedule.fork and len(clip.suffixes) > 1:  # what prompts share stays beside what each takes
        return key * (schedule.cuts[0].at * tokens + cached)
    return key * max(d.layers * tokens, cached)  # only prompts that part can leave more than an unpruned one


def _widest(d: DecoderShape) -> int:
    """Numbers that a layer holds for each of its tokens: of its MLP, or of its attention, beside what goes around them
    (the norms of some models in double width).
    """
    return 6 * d.hidden + max(4 * d.ffn, 5 * d.q_dim + 6 * d.kv_dim)


class Line:
    """Clips that wait, by their number, and those that are inside: behind the layers, while their answers generate."""

    def __init__(self, sizes: Sequence[Footprint], room: int) -> None:
        self._sizes, self._room = sizes, room
        self._waiting, self._inside = deque(range(len(sizes))), set[int]()

    def next_group(self) -> list[int]:
        """Those that go through the layers together now, in order, and are inside from here on.

        As many as there is room for, in the layers and afterwards, beside those that are inside. A clip that has no
        room even where nobody else is goes alone, as far as it gets.
        """
        inside = [self._sizes[clip] for clip in self._inside]
        now, later = sum(size.held for size in inside), sum(size.held + size.moved for size in inside)
        group: list[int] = []
        while self._waiting:
            size = self._sizes[self._waiting[0]]
            now, later = now + size.work, later + size.held + size.moved
            if max(now, later) > self._room and (inside or group):
                break
            group.append(self._waiting.popleft())
        self._inside.update(group)
        return group

    def leave(self, clip: int) -> None:
        self._inside.remove(clip)
