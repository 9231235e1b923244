"""What is committed of each fingerprint, as runs and compactions record it: no part of any commit, but by these records
it is seen that files are gone, also the last ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mlb_batch.ledger.parts import Seqs, parse_name
from mlb_batch.ledger.runs import every_sound
from mlb_batch.ledger.seal import sealed_json
from mlb_batch.storage import Store

RECORD = "ledger.json"


def write_record(store: Store, run_id: str, turn: int, ledgers: Mapping[str, Mapping[str, Any]]) -> None:
    """By fingerprint and kind."""
    store.replace(f"runs/{run_id}/{RECORD}", sealed_json({"turn": turn, "ledgers": ledgers}))


def read_records(store: Store) -> Records:
    return Records(every_sound(store, "ledger"))


class Records:
    """What is committed of each fingerprint, by kind, as the newest of the runs and compactions recorded it.

    The newest is the one whose turn is highest: whoever writes here has seen the others' records, and takes the next.
    So it is no matter whose clock was ahead. Of two that took the same turn, one lost its lease, and got less far.
    """

    def __init__(self, records: Iterable[Mapping[str, Any]] = ()) -> None:
        self._newest: dict[tuple[str, str], tuple[int, int, Mapping[str, Any]]] = {}
        self.next_turn = 0
        for record in records:
            self.add(record)

    def add(self, record: Mapping[str, Any]) -> None:
        self.next_turn = max(self.next_turn, record["turn"] + 1)
        for fingerprint, kinds in record["ledgers"].items():
            for kind, totals in kinds.items():
                one = (record["turn"], totals["last"], totals)
                self._newest[kind, fingerprint] = max(
                    self._newest.get((kind, fingerprint), one), one, key=lambda it: it[:2]
                )

    def fingerprints(self, kind: str) -> set[str]:
        return {of for some, of in self._newest if some == kind and self.of(kind, of).get("files")}

    def of(self, kind: str, fingerprint: str) -> Mapping[str, Any]:
        return self._newest[kind, fingerprint][-1] if (kind, fingerprint) in self._newest else {}


def total(rows: int, files: Sequence[Seqs], before: Mapping[str, Any]) -> dict[str, Any]:
    """What a record says of one kind: enough to tell, and to name, any file that is deleted later, or was `before`."""
    every = [*files, *missing(files, before)]
    last = max((seqs.last for seqs in every), default=-1)
    return {"files": len(files), "rows": rows, "last": last, "merged": sorted(str(one) for one in every if one.merged)}


def missing(there: Sequence[Seqs], recorded: Mapping[str, Any]) -> Iterator[Seqs]:
    """The files that are gone, by the names that they had; of a gap beyond the record all as one: a file that someone
    put behind it may have any number.
    """
    last, absent = recorded.get("last", -1), list(absent_numbers(there, recorded))
    merged = filter(None, (parse_name(f"part-{name}.parquet") for name in recorded.get("merged", ())))
    gone = [one for one in merged if any(gap.first <= one.first and one.last <= gap.last for gap in absent)]
    yield from gone
    for gap in absent_numbers([*there, *gone], recorded):
        yield from map(Seqs.one, range(gap.first, min(gap.last, last) + 1))
        if gap.last > last:
            yield Seqs(max(gap.first, last + 1), gap.last)


def absent_numbers(there: Sequence[Seqs], recorded: Mapping[str, Any]) -> Iterator[Seqs]:
    """Those that no file stands for, gap by gap."""
    free = 0
    for seqs in [*sorted(there), Seqs.one(recorded.get("last", -1) + 1)]:
        if free < seqs.first:
            yield Seqs(free, seqs.first - 1)
        free = max(free, seqs.last + 1)
