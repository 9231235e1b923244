"""Checks every file and invariant of an output and names what is damaged, with what to do about it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa

from mlb_batch.ledger.parts import KINDS, list_fingerprints, list_seqs, parse_part, part_name
from mlb_batch.ledger.runs import CURRENT
from mlb_batch.ledger.seal import BrokenSeal, check_seal
from mlb_batch.storage import Store, open_store

_READERS = 4
_DELETE_AND_RUN = "delete this file and run the same job again: it computes the rows that are missing"
_RUN = "run the same job again: it computes the rows that are missing"


@dataclass(frozen=True)
class Finding:
    """Something that is wrong: where, what, and what to do."""

    path: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}; {self.remedy}"


@dataclass
class _Seen:
    """What the files of one kind and fingerprint were found to hold."""

    files: int = 0
    rows: int = 0
    keys: set[bytes] = field(default_factory=set)


def verify(output_uri: str) -> list[Finding]:
    """Empty where every file is whole, no row stands twice, and nothing that was committed is gone."""
    store = open_store(output_uri)
    findings: list[Finding] = []
    seen: dict[tuple[str, str], _Seen] = {}
    for kind in KINDS:
        for fingerprint in list_fingerprints(store, kind):
            seen[kind, fingerprint] = _Seen()
            findings += _check_folder(store, kind, fingerprint, seen[kind, fingerprint])
        strays = set(store.list(kind)) - set(list_fingerprints(store, kind))
        findings += [Finding(f"{kind}/{name}", "not written by this project", "move it elsewhere") for name in strays]
    findings += _check_records(store, seen)
    findings += _check_current(store, {fingerprint for _, fingerprint in seen})
    return findings


def _check_folder(store: Store, kind: str, fingerprint: str, seen: _Seen) -> Iterator[Finding]:
    seqs = list_seqs(store, kind, fingerprint)
    names = {part_name(kind, fingerprint, seq) for seq in seqs}
    for name in store.list(f"{kind}/{fingerprint}"):
        if f"{kind}/{fingerprint}/{name}" not in names:
            yield Finding(f"{kind}/{fingerprint}/{name}", "not written by this project", "move it elsewhere")
    for seq in sorted(set(range(max(seqs, default=0))) - set(seqs)):
        yield Finding(part_name(kind, fingerprint, seq), "the file is gone", _RUN)
    with ThreadPoolExecutor(_READERS) as readers:
        for start in range(0, len(seqs), _READERS):  # by the handful: the files of a big output don't fit in memory
            some = seqs[start : start + _READERS]
            data = readers.map(lambda seq: store.read(part_name(kind, fingerprint, seq)), some)
            for seq, one in zip(some, data, strict=True):
                yield from _check_part(one, kind, fingerprint, seq, seen)


def _check_part(data: bytes, kind: str, fingerprint: str, seq: int, seen: _Seen) -> Iterator[Finding]:
    path = part_name(kind, fingerprint, seq)
    try:
        check_seal(data)
        part = parse_part(data, seq, None)
    except (BrokenSeal, pa.ArrowException, OSError, ValueError) as error:
        yield Finding(path, str(error).splitlines()[0], _DELETE_AND_RUN)
        return
    seen.files += 1
    seen.rows += part.rows.num_rows
    told = (part.metadata.get("mlb_batch.fingerprint"), part.metadata.get("mlb_batch.seq"))
    if told != (fingerprint, str(seq)) or set(part.rows["fingerprint"].unique().to_pylist()) - {fingerprint}:
        yield Finding(path, "it belongs to another place or fingerprint", _DELETE_AND_RUN)
    twice = _doubled(part.rows, kind, seen)
    if twice:
        yield Finding(path, f"{len(twice)} rows stand twice, like {twice[0]}", _DELETE_AND_RUN)


def _doubled(rows: pa.Table, kind: str, seen: _Seen) -> list[str]:
    """Ids that stood before: an annotation may stand once, a failure once an attempt, a selection once a layer."""
    ids: Sequence[str] = rows["annotation_id"].to_pylist()
    again = {"errors": "attempt", "selections": "layer"}
    numbers = rows[again[kind]].to_pylist() if kind in again else [0] * len(ids)
    twice = []
    for one, number in zip(ids, numbers, strict=True):
        key = bytes.fromhex(one) + number.to_bytes(4, "big")
        if key in seen.keys:
            twice.append(one)
        seen.keys.add(key)
    return twice


def _check_records(store: Store, seen: dict[tuple[str, str], _Seen]) -> Iterator[Finding]:
    """Against the newest record of each fingerprint: files deleted at the end leave no gap."""
    newest: dict[str, dict[str, object]] = {}
    for run_id in store.list("runs"):
        name = f"runs/{run_id}/ledger.json"
        try:
            record = json.loads(store.read(name))
        except FileNotFoundError:
            continue
        except ValueError:
            yield Finding(name, "not JSON", "delete it; it only repeats what the files say")
            continue
        before = newest.get(record["fingerprint"])
        if before is None or str(before["at"]) < record["at"]:
            newest[record["fingerprint"]] = record
    for fingerprint, record in newest.items():
        for kind in record.keys() & set(KINDS):
            now, then = seen.get((kind, fingerprint), _Seen()), record[kind]
            assert isinstance(then, dict)
            if now.rows < then["rows"]:
                problem = f"{then['rows']} rows in {then['files']} files were committed, {now.rows} can be read"
                yield Finding(f"{kind}/{fingerprint}", problem, _RUN)


def _check_current(store: Store, fingerprints: set[str]) -> Iterator[Finding]:
    try:
        named = json.loads(store.read(CURRENT))["fingerprint"]
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError):
        yield Finding(CURRENT, "damaged", "run the newest job again: it writes the file anew")
        return
    if named not in fingerprints:
        yield Finding(CURRENT, f"it names {named}, of which there are no rows", "run that job again")
