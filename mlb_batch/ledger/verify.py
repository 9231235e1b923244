"""Checks every file and invariant of an output and names what is damaged, with what to do about it.

Every file of rows and every record of a run holds its own checksum, rows stand once, numbers have no gap, and what a
run or a compaction recorded last says how many rows there were and which files held them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from mlb_batch.errors import OutputError
from mlb_batch.ledger.compact import SHUT, STAGE
from mlb_batch.ledger.parts import (
    ELSEWHERE,
    FILES_AT_ONCE,
    KINDS,
    UNREPEATED,
    Seqs,
    folder_name,
    handfuls,
    list_fingerprints,
    parse_name,
    part_name,
    row_keys,
    sound_part,
    standing,
)
from mlb_batch.ledger.records import RECORD, Records, missing
from mlb_batch.ledger.runs import AGAIN, CURRENT, DELETE, SPEC, has_schedule, run_ids
from mlb_batch.ledger.seal import BrokenSeal, check_text_seal
from mlb_batch.storage import NoFile, Store, join, open_store
from mlb_batch.threads import Threads

_RUN = "run the same job again: it computes the rows that are missing"
_LET_GO = (
    "run the same job again, and this is told no more: its answers stand, nothing brings back which tokens were kept"
)
_FORGET = (
    "run its job again; or, where it was deleted on purpose, delete each folder under runs/ whose ledger.json names "
    "this fingerprint, and it is forgotten"
)
_COMPACT = "run `mlb-batch compact` again: it finishes what was cut off"
_ANEW = (
    "the next run of its job writes it anew from what runs/ tells of it; where those records are gone too, it solves "
    "again, which may come to another fingerprint"
)
_CAREFUL = "run the same job again: it goes row by row where one may kill, and writes it anew"
_FOREIGN, _AWAY = "not written by this project", "move it elsewhere"
# What a run that has ended leaves; one that was killed may have any of them.
_DOCUMENTS = (SPEC, "plan.json", "environment.json", "progress.json", "summary.json")


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
    """Empty where every file is whole, no row stands twice, and nothing that was committed is gone. OutputError where
    no run has left anything.
    """
    findings, met = _checked(output_uri)
    if not met:  # a mistyped place isn't sound
        raise OutputError(f"{output_uri}: no run is recorded here; is it the output.uri of a job that was started?")
    return findings


def _checked(output_uri: str) -> tuple[list[Finding], bool]:
    """What is wrong, and whether anything is there."""
    store = open_store(output_uri)
    findings: list[Finding] = []
    records = _Told()
    for run_id in run_ids(store):
        findings += _check_run(store, f"runs/{run_id}", records)
    plans = store.list("plans")
    for name in plans:
        findings += _check_plan(store, f"plans/{name}")
    findings += [Finding(f"plans/{name}", "the file is gone", _ANEW) for name in sorted(records.plans - set(plans))]
    given_up = _without_any_file(store, records)
    findings += [Finding(folder_name("annotations", one), "all files are gone", _FORGET) for one in sorted(given_up)]
    seen: dict[tuple[str, str], _Seen] = {}
    for kind in KINDS:
        for fingerprint in {*list_fingerprints(store, kind), *records.fingerprints(kind)} - given_up:
            seen[kind, fingerprint] = _Seen()
            recorded = records.of(kind, fingerprint)
            findings += _check_folder(store, kind, fingerprint, recorded, seen[kind, fingerprint])
            findings += _check_count(kind, fingerprint, recorded, seen[kind, fingerprint])
            seen[kind, fingerprint].keys.clear()  # of all folders together they may not fit in memory
        strays = set(store.list(kind)) - set(list_fingerprints(store, kind))
        findings += [Finding(f"{kind}/{name}", _FOREIGN, _AWAY) for name in strays]
    with_files = {fingerprint for (_, fingerprint), one in seen.items() if one.files}
    current = list(_check_current(store, with_files, records.complete))
    for name in store.list("strikes"):
        findings += _check_text(store, f"strikes/{name}", _CAREFUL)
    for rival in store.list("canary"):
        if not store.list(f"canary/{rival}"):
            findings.append(Finding(f"canary/{rival}", _FOREIGN, _AWAY))
            continue
        inside, _ = _checked(join(output_uri, f"canary/{rival}"))
        findings += [replace(one, path=f"canary/{rival}/{one.path}") for one in inside]
    return findings + current, bool(seen or records.met or current)


def _without_any_file(store: Store, records: Records) -> set[str]:
    """Fingerprints that are recorded, and of which nothing is left: someone may have deleted them on purpose."""
    recorded = {one for kind in KINDS for one in records.fingerprints(kind)}
    return {one for one in recorded if not any(store.list(folder_name(kind, one)) for kind in KINDS)}


def _check_folder(
    store: Store, kind: str, fingerprint: str, recorded: Mapping[str, Any], seen: _Seen
) -> Iterator[Finding]:
    folder = folder_name(kind, fingerprint)
    every = {name: parse_name(name) for name in store.list(folder)}
    there = standing(seqs for seqs in every.values() if seqs is not None)
    for name, seqs in every.items():
        if name == SHUT:
            yield Finding(f"{folder}/{name}", "a compaction was cut off: a plain read of this folder errs", _COMPACT)
        elif seqs is None:
            yield Finding(f"{folder}/{name}", _FOREIGN, _AWAY)
        elif seqs not in there:
            yield Finding(f"{folder}/{name}", "its rows are in another file: a compaction was cut off", _COMPACT)
    for seqs in missing(there, recorded):
        yield Finding(part_name(kind, fingerprint, seqs), "the file is gone", _remedy(kind))
    for before, after in pairwise(there):
        if after.first <= before.last:
            path = part_name(kind, fingerprint, after)
            yield Finding(path, f"its numbers overlap those of part-{before}", _without_file(kind))
    with Threads(FILES_AT_ONCE) as readers:
        for some in handfuls(store, kind, fingerprint, there):
            data = readers.map(lambda one: _read(store, part_name(kind, fingerprint, one)), some)
            for seqs, one in zip(some, data, strict=True):
                yield from _check_part(one, kind, fingerprint, seqs, seen)


def _remedy(kind: str) -> str:
    return _LET_GO if kind == UNREPEATED else _RUN


def _without_file(kind: str) -> str:
    return f"delete this file and {_remedy(kind)}"


def _read(store: Store, name: str) -> bytes | Finding | None:
    """None where nothing is there, or no longer."""
    try:
        return store.read(name)
    except FileNotFoundError:
        return None
    except NoFile:
        return Finding(name, "it is a folder, where a file is to be", _AWAY)


def _check_part(
    data: bytes | Finding | None, kind: str, fingerprint: str, seqs: Seqs, seen: _Seen
) -> Iterator[Finding]:
    path = part_name(kind, fingerprint, seqs)
    if not isinstance(data, bytes):
        again = "check again when no run and no compaction is at work"
        yield data or Finding(path, "it went while this was checked", again)
        return
    seen.files += 1
    try:
        part = sound_part(data, seqs)
    except BrokenSeal as error:
        yield Finding(path, str(error), _without_file(kind))
        return
    seen.rows += part.rows.num_rows
    if not part.is_of(fingerprint):
        yield Finding(path, ELSEWHERE, _without_file(kind))
    twice = []
    for key in row_keys(part.rows, kind):
        if key in seen.keys:
            twice.append(key[:-4].hex())
        seen.keys.add(key)
    if twice:
        yield Finding(path, f"{len(twice)} rows stand twice, like {twice[0]}", _without_file(kind))


def _check_count(kind: str, fingerprint: str, recorded: Mapping[str, Any], seen: _Seen) -> Iterator[Finding]:
    """Against the newest record."""
    if seen.rows < recorded.get("rows", 0):
        problem = f"{recorded['rows']} rows in {recorded['files']} files were committed, {seen.rows} can be read"
        yield Finding(folder_name(kind, fingerprint), problem, _remedy(kind))


class _Told(Records):
    """What runs left besides, for files that may be gone."""

    def __init__(self) -> None:
        super().__init__()
        self.met = False  # whether any run left anything
        self.complete = False  # whether any run went through its whole input
        self.plans: set[str] = set()  # the schedules that runs followed


def _check_run(store: Store, folder: str, records: _Told) -> Iterator[Finding]:
    names = store.list(folder)
    sound: dict[str, Mapping[str, Any]] = {}
    for name in names:
        path = f"{folder}/{name}"
        if name not in (*_DOCUMENTS, RECORD):
            yield Finding(path, _FOREIGN, _AWAY)
            continue
        records.met = True
        found = _text(store, path, DELETE)
        if isinstance(found, Finding):
            yield found
        elif found and name != SPEC:
            sound[name] = json.loads(found)
    if RECORD in sound:
        records.add(sound[RECORD])
    summary = sound.get("summary.json", {})
    records.complete |= summary.get("complete", False)
    if summary or sound.get("progress.json", {}).get("state") == "ended":
        wanted = {*_DOCUMENTS, *([RECORD] if summary.get("rows_written") else [])}
        for lost in sorted(wanted - set(names)):
            yield Finding(f"{folder}/{lost}", "the file is gone", "nothing brings it back; no row depends on it")
    plan = sound.get("plan.json", {})
    if summary.get("rows_written") and has_schedule(plan):
        records.plans.add(f"{plan['key']}.json")


def _check_plan(store: Store, name: str) -> Iterator[Finding]:
    if name.endswith(".json"):
        yield from _check_text(store, name, f"delete it; {_ANEW}")
    else:
        yield Finding(name, _FOREIGN, _AWAY)


def _check_text(store: Store, name: str, remedy: str) -> Iterator[Finding]:
    found = _text(store, name, remedy)
    if isinstance(found, Finding):
        yield found


def _text(store: Store, name: str, remedy: str) -> bytes | Finding:
    """A .json or .yaml file, or what is wrong with it; empty where there is none, or no longer."""
    data = _read(store, name)
    if not isinstance(data, bytes):
        return data or b""
    try:
        check_text_seal(data, name)
    except BrokenSeal as error:
        return Finding(name, str(error), remedy)
    return data


def _check_current(store: Store, fingerprints: set[str], wanted: bool) -> Iterator[Finding]:
    found = _text(store, CURRENT, AGAIN)
    if isinstance(found, Finding):
        yield found
        return
    if not found:
        if wanted:
            yield Finding(CURRENT, "the file is gone, and a run was complete", AGAIN)
        return
    current = json.loads(found)
    if current["fingerprint"] not in fingerprints:
        yield Finding(CURRENT, f"it names {current['fingerprint']}, of which there are no rows", "run that job again")
    staged = {f"{STAGE}/{name}" for name in store.list(STAGE)}
    for name in [name for names in current["files"].values() for name in names if name.startswith(STAGE)]:
        if name not in staged:
            yield Finding(name, f"the file is gone, and {CURRENT} names it", _COMPACT)
