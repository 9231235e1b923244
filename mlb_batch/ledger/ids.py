"""Names made from content: the fingerprint of what shapes a text, the id of an annotation, a compact set of ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping

import numpy as np

from mlb_batch.source import Prompt

ID_BYTES = 16
_EMPTY = np.empty(0, dtype=f"S{ID_BYTES}")


def fingerprint(parts: Mapping[str, object]) -> str:
    """16 hex digits of everything that can change a text; parts are plain values (str, number, list, mapping)."""
    return _digest(dict(parts), 8)


def annotation_id(
    video_id: str, version: str, start_s: float | None, end_s: float | None, prompt: Prompt, fingerprint: str
) -> str:
    """32 hex digits that name one annotation.

    `version` is "" where the job says `changed: never`. A span is the one that was asked for, not the one that was
    read, so that the id is known before anything is opened; for a clip it is the clip's own.
    """
    span = [None if at_s is None else round(at_s * 1000) for at_s in (start_s, end_s)]
    question = [prompt.id, prompt.kind, prompt.text, list(prompt.choices)]
    return _digest([video_id, version, span, question, fingerprint], ID_BYTES)


def _digest(value: object, num_bytes: int) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.blake2b(canonical.encode(), digest_size=num_bytes).hexdigest()


class DoneIds:
    """A set of annotation ids at 16 bytes an id: a million of them travel to every worker as 16 MB."""

    def __init__(self, ids: Iterable[str] = ()) -> None:
        raw = b"".join(bytes.fromhex(one) for one in ids)
        # numpy drops trailing zero bytes of an S value alike on both sides of a comparison: equality is unharmed.
        self._sorted = np.unique(np.frombuffer(raw, dtype=_EMPTY.dtype)) if raw else _EMPTY

    def __contains__(self, annotation_id: object) -> bool:
        if not isinstance(annotation_id, str):
            return False
        wanted = np.array(bytes.fromhex(annotation_id), dtype=_EMPTY.dtype)
        at = int(np.searchsorted(self._sorted, wanted))
        return at < len(self._sorted) and bool(self._sorted[at] == wanted)

    def __len__(self) -> int:
        return len(self._sorted)
