"""What a run leaves beside its rows: runs/<run_id>/ and current.json."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import Any, Literal

from mlb_batch.storage import open_store

Document = Literal["plan", "progress", "summary", "environment"]
CURRENT = "current.json"


class RunFolder:
    """OUTPUT/runs/<run_id>/; every file is replaced whole."""

    def __init__(self, output_uri: str, run_id: str) -> None:
        self._store = open_store(output_uri)
        self._folder = f"runs/{run_id}"

    def write_spec(self, yaml_text: str) -> None:
        self._store.replace(f"{self._folder}/spec.yaml", yaml_text.encode())

    def write_json(self, name: Document, value: Mapping[str, Any]) -> None:
        self._store.replace(f"{self._folder}/{name}.json", json.dumps(value, indent=1).encode())

    def read_json(self, name: Document | Literal["ledger"]) -> dict[str, Any] | None:
        """None where the run hasn't written it."""
        return _read_json(self._store, f"{self._folder}/{name}.json")


def run_ids(output_uri: str) -> list[str]:
    """Sorted; ids begin with their time, so the newest comes last."""
    return open_store(output_uri).list("runs")


def publish(output_uri: str, fingerprint: str, run_id: str) -> None:
    """Name the newest complete fingerprint in current.json; for runs that left nothing undone."""
    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    value = {"fingerprint": fingerprint, "run_id": run_id, "published_at": at}
    store = open_store(output_uri)
    before = _read_json(store, CURRENT)
    if before is None or before.get("fingerprint") != fingerprint:
        store.replace(CURRENT, json.dumps(value, indent=1).encode())


def read_current(output_uri: str) -> dict[str, Any] | None:
    return _read_json(open_store(output_uri), CURRENT)


def _read_json(store: Any, name: str) -> dict[str, Any] | None:
    try:
        value = json.loads(store.read(name))
    except FileNotFoundError:
        return None
    assert isinstance(value, dict), name
    return value
