"""What a run leaves beside its rows: runs/<run_id>/ and current.json, each with a checksum of its own.

current.json names the newest complete fingerprint, and the files to read: whoever reads those reads each row once, also
while a compaction is at work (see compact.py). It is one small file, so it changes from one moment to the next.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import yaml

from mlb_batch.errors import OutputError
from mlb_batch.ledger.parts import KINDS, Seqs, folder_name, parse_name
from mlb_batch.ledger.seal import BrokenSeal, check_text_seal, sealed_json, sealed_yaml, unsealed_json
from mlb_batch.spec_parts import OutputSpec
from mlb_batch.spec_text import long_forms
from mlb_batch.storage import Store, open_store
from mlb_batch.threads import Threads

Document = Literal["plan", "progress", "summary", "environment", "ledger"]
Files = Mapping[str, Sequence[str]]  # kind -> names or globs, relative to the output
CURRENT = "current.json"
SPEC, RECORD = "spec.yaml", "ledger.json"
# What to do about a damaged one.
DELETE, AGAIN = "delete it; no row depends on it", "run the newest job again: it writes the file anew"
_READERS = 16


class RunFolder:
    """OUTPUT/runs/<run_id>/; every file is replaced whole."""

    def __init__(self, output_uri: str, run_id: str) -> None:
        self._store = open_store(output_uri)
        self._folder = f"runs/{run_id}"

    def begin(self, yaml_text: str, plan: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        self.write_spec(yaml_text)
        self.write_json("plan", plan)
        self.write_json("environment", environment)

    def write_spec(self, yaml_text: str) -> None:
        self._store.replace(f"{self._folder}/{SPEC}", sealed_yaml(yaml_text))

    def write_json(self, name: Document, value: Mapping[str, Any]) -> None:
        self._store.replace(f"{self._folder}/{name}.json", sealed_json(value))

    def read_spec(self) -> str | None:
        """None where the run hasn't written it; OutputError where it is damaged."""
        name = f"{self._folder}/{SPEC}"
        try:
            data = self._store.read(name)
            check_text_seal(data, name)
            return data.decode()
        except FileNotFoundError:
            return None
        except BrokenSeal as error:
            raise _damaged(self._store, name, error, DELETE) from None

    def read_json(self, name: Document) -> dict[str, Any] | None:
        """None where the run hasn't written it; OutputError where it is damaged."""
        return _read_json(self._store, f"{self._folder}/{name}.json", DELETE)


def run_ids(output_uri: str) -> list[str]:
    """Sorted; ids begin with their time, so the newest comes last."""
    return open_store(output_uri).list("runs")


def newest_first(store: Store, name: Document, *others: Document) -> Iterator[tuple[str, dict[str, Any]]]:
    """The id and the document of every run that wrote it, or else the first of the others that it wrote; OutputError
    at one that is damaged.
    """
    for run_id in reversed(store.list("runs")):
        every = (_read_json(store, f"runs/{run_id}/{one}.json", DELETE) for one in (name, *others))
        found = next((one for one in every if one is not None), None)
        if found is not None:
            yield run_id, found


def last_target_mb(output_uri: str) -> int:
    """output.target_file_mb of the newest run, as its job file has it; the default where none is recorded."""
    default = OutputSpec.model_fields["target_file_mb"].default
    specs = (RunFolder(output_uri, run_id).read_spec() for run_id in reversed(run_ids(output_uri)))
    jobs = (long_forms(yaml.safe_load(text), {"output": "uri"}) for text in specs if text is not None)
    return int(next((job["output"].get("target_file_mb", default) for job in jobs), default))


def write_record(store: Store, run_id: str, turn: int, ledgers: Mapping[str, Mapping[str, Any]]) -> None:
    """What is committed, by fingerprint and kind; no part of any commit, but lets it be seen that files are gone."""
    store.replace(f"runs/{run_id}/{RECORD}", sealed_json({"turn": turn, "ledgers": ledgers}))


def read_records(store: Store) -> Records:
    return Records(every_sound(store, "ledger"))


def every_sound(store: Store, name: Document) -> list[dict[str, Any]]:
    """That document of all runs and compactions, the newest last. One that is damaged is passed over: `verify` names
    it.
    """
    with Threads(_READERS) as readers:
        return list(filter(None, readers.map(lambda run_id: _if_sound(store, run_id, name), store.list("runs"))))


def _if_sound(store: Store, run_id: str, name: Document) -> dict[str, Any] | None:
    try:
        return unsealed_json(store.read(f"runs/{run_id}/{name}.json"))
    except (FileNotFoundError, BrokenSeal):
        return None


def has_schedule(plan: Mapping[str, Any]) -> bool:
    """Whether later runs follow a run's plan.json: not where there was nothing to solve, or allocation `content` was
    not.
    """
    unsettled = plan.get("budget", {}).get("allocation") == "content" and plan["content"] is None
    return bool(plan.get("clips")) and not unsettled


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
    """The files that are gone: numbers in between, and those that were recorded, by the names that they had."""
    absent = absent_numbers(there, recorded)
    for name in recorded.get("merged", ()):
        seqs = parse_name(f"part-{name}.parquet")
        if seqs is not None and absent.issuperset(seqs.numbers):
            absent.difference_update(seqs.numbers)
            yield seqs
    yield from map(Seqs.one, sorted(absent))


def absent_numbers(there: Sequence[Seqs], recorded: Mapping[str, Any]) -> set[int]:
    last = max([recorded.get("last", -1), *(seqs.last for seqs in there)])
    return set(range(last + 1)).difference(*(seqs.numbers for seqs in there))


def publish(output_uri: str, fingerprint: str, run_id: str) -> None:
    """Name the newest complete fingerprint in current.json; for runs that left nothing undone. A damaged file is
    written anew.
    """
    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    value = {"fingerprint": fingerprint, "run_id": run_id, "published_at": at, "files": in_place(fingerprint)}
    store = open_store(output_uri)
    try:
        before = unsealed_json(store.read(CURRENT))
    except (FileNotFoundError, BrokenSeal):
        before = {}
    if (before.get("fingerprint"), before.get("files")) != (fingerprint, value["files"]):
        store.replace(CURRENT, sealed_json(value))


def point(store: Store, files: Files) -> None:
    """Send the readers of current.json to other files of the same rows."""
    current = read_current(store.uri)
    assert current is not None
    if current.get("files") != files:
        store.replace(CURRENT, sealed_json({**current, "files": files}))


def in_place(fingerprint: str) -> dict[str, list[str]]:
    """Where the files of a fingerprint are, but for the time of a compaction."""
    return {kind: [f"{folder_name(kind, fingerprint)}/*.parquet"] for kind in KINDS}


def read_current(output_uri: str) -> dict[str, Any] | None:
    """None where no run was complete; OutputError where it is damaged."""
    return _read_json(open_store(output_uri), CURRENT, AGAIN)


def _read_json(store: Store, name: str, remedy: str) -> dict[str, Any] | None:
    try:
        return unsealed_json(store.read(name))
    except FileNotFoundError:
        return None
    except BrokenSeal as error:
        raise _damaged(store, name, error, remedy) from None


def _damaged(store: Store, name: str, error: BrokenSeal, remedy: str) -> OutputError:
    return OutputError(f"{store.uri}/{name}: {error}; {remedy}")
