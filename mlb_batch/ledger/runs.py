"""What a run leaves beside its rows: runs/<run_id>/ and current.json, each with a checksum of its own.

current.json names the newest complete fingerprint, and the files to read: whoever reads those reads each row once, also
while a compaction is at work (see compact.py). It is one small file, so it changes from one moment to the next.
"""

from __future__ import annotations

import datetime
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import yaml

from mlb_batch.errors import OutputError
from mlb_batch.ledger.parts import FILES_AT_ONCE, KINDS, folder_name
from mlb_batch.ledger.seal import BrokenSeal, check_text_seal, sealed_json, sealed_yaml, unsealed_json
from mlb_batch.spec_parts import OutputSpec
from mlb_batch.spec_text import long_forms
from mlb_batch.storage import Store, open_store
from mlb_batch.threads import Threads

Document = Literal["plan", "progress", "summary", "environment", "ledger"]
Files = Mapping[str, Sequence[str]]  # kind -> names or globs, relative to the output
CURRENT = "current.json"
SPEC = "spec.yaml"
# What to do about a damaged one.
DELETE, AGAIN = "delete it; no row depends on it", "run the newest job again: it writes the file anew"


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


def new_run_id() -> str:
    """Begins with its time, so that names sort by it."""
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(3)}"


def run_ids(store: Store) -> list[str]:
    """The newest last."""
    return store.list("runs")


def newest_first(store: Store, name: Document, *others: Document) -> Iterator[tuple[str, dict[str, Any]]]:
    """The id and the document of every run that wrote it, or else the first of the others that it wrote; OutputError
    at one that is damaged.
    """
    for run_id in reversed(run_ids(store)):
        every = (_read_json(store, f"runs/{run_id}/{one}.json", DELETE) for one in (name, *others))
        found = next((one for one in every if one is not None), None)
        if found is not None:
            yield run_id, found


def last_target_mb(output_uri: str) -> int:
    """output.target_file_mb of the newest run, as its job file has it; the default where none is recorded."""
    default = OutputSpec.model_fields["target_file_mb"].default
    specs = (RunFolder(output_uri, run_id).read_spec() for run_id in reversed(run_ids(open_store(output_uri))))
    jobs = (long_forms(yaml.safe_load(text), {"output": "uri"}) for text in specs if text is not None)
    return int(next((job["output"].get("target_file_mb", default) for job in jobs), default))


def every_sound(store: Store, name: Document) -> list[dict[str, Any]]:
    """That document of all runs and compactions, the newest last. One that is damaged is passed over: `verify` names
    it.
    """
    with Threads(FILES_AT_ONCE) as readers:
        return list(filter(None, readers.map(lambda run_id: _if_sound(store, run_id, name), run_ids(store))))


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
