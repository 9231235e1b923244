"""Names made from content: the fingerprint of what shapes a text, the id of an annotation, a compact set of ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from mlb_batch.source.model import Prompt, span_ms

ID_BYTES = 16
MERGE_AT = 65_536
_Ids = npt.NDArray[np.bytes_]
_EMPTY: _Ids = np.empty(0, dtype=f"S{ID_BYTES}")


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
    question = [prompt.id, prompt.kind, prompt.text, list(prompt.choices)]
    return _digest([video_id, version, span_ms(start_s, end_s), question, fingerprint], ID_BYTES)


def _digest(value: object, num_bytes: int) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.blake2b(canonical.encode(), digest_size=num_bytes).hexdigest()


class DoneIds:
    """A set of annotation ids at 16 bytes an id: a million of them travel to every worker as 16 MB.

    New ones wait until someone asks, so that those of a whole log are put in order once, not again with every file.
    """

    def __init__(self, ids: Iterable[str] = ()) -> None:
        self._sorted = _EMPTY
        self._waiting: list[_Ids] = []  # each in order
        self._recent: set[bytes] = set()
        self.update(ids)

    def update(self, ids: Iterable[str]) -> None:
        self._recent.update(bytes.fromhex(one) for one in ids)
        if len(self._recent) >= MERGE_AT:
            self._pack()

    def copy(self) -> DoneIds:
        twin = DoneIds()
        twin._sorted = self._all()  # never changed in place
        return twin

    def __contains__(self, annotation_id: object) -> bool:
        if not isinstance(annotation_id, str):
            return False
        wanted = bytes.fromhex(annotation_id)
        if wanted in self._recent:
            return True
        self._merge()
        at = int(np.searchsorted(self._sorted, np.array(wanted, dtype=_EMPTY.dtype)))
        # numpy drops trailing zero bytes of an S value on both sides of a comparison: equality is unharmed.
        return at < len(self._sorted) and bool(self._sorted[at] == np.array(wanted, dtype=_EMPTY.dtype))

    def __len__(self) -> int:
        return len(self._all())

    def __getstate__(self) -> bytes:
        return self._all().tobytes()

    def __setstate__(self, raw: bytes) -> None:
        self._sorted = np.frombuffer(raw, dtype=_EMPTY.dtype)
        self._waiting, self._recent = [], set()

    def _all(self) -> _Ids:
        self._pack()
        self._merge()
        return self._sorted

    def _pack(self) -> None:
        if self._recent:
            self._waiting.append(np.array(sorted(self._recent), dtype=_EMPTY.dtype))
            self._recent = set()

    def _merge(self) -> None:
        if self._waiting:
            every = np.concatenate([self._sorted, *self._waiting])
            every.sort(kind="stable")  # numpy's timsort: of pieces that are in order it only merges
            new = np.append(True, every[1:] != every[:-1])
            self._sorted, self._waiting = every[new], []
