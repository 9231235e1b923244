"""Processes for the tests of compaction: readers that never stop, and a compaction that kills itself on the way.

python compacting.py read  {"output": URI, "way": "current" | "plain", "ids": [..]}
python compacting.py cut   {"output": URI, "steps": N}      ends itself with SIGKILL before its N-th write
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from ledger_rows import FINGERPRINT

import mlb_batch.ledger.lease
import mlb_batch.storage
from mlb_batch.ledger import compact
from mlb_batch.storage import filesystem


class Reader:
    """As any program outside reads: a listing, then file by file, with its own client of the storage."""

    def __init__(self, uri: str) -> None:
        self._fs, self._path = filesystem(uri)

    def ids(self, patterns: list[str]) -> list[str]:
        names: list[str] = []
        for pattern in patterns:
            whole = f"{self._path}/{pattern}"
            names += sorted(self._fs.glob(whole)) if "*" in pattern else [whole]
        found: list[str] = []
        for name in names:
            with self._fs.open(name) as file:
                found += pq.read_table(pa.PythonFile(file), columns=["annotation_id"])["annotation_id"].to_pylist()
        return found

    def files_of_current(self) -> list[str]:
        return list(json.loads(self._fs.cat_file(f"{self._path}/current.json"))["files"]["annotations"])


def read(job: dict[str, Any]) -> None:
    """Until a line comes in; then the counts of what was seen. A read that errs is `refused`, a false one `wrong`."""
    reader, wanted, seen = Reader(job["output"]), sorted(job["ids"]), Counter[str]()
    plain = [f"annotations/{FINGERPRINT}/*.parquet"]
    print("reading", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        try:
            ids = reader.ids(reader.files_of_current() if job["way"] == "current" else plain)
        except (OSError, pa.ArrowException):
            seen["refused"] += 1
            continue
        seen["right" if sorted(ids) == wanted else "wrong"] += 1
    print(json.dumps(seen), flush=True)


def cut(job: dict[str, Any]) -> None:
    """Runs a compaction; right before the step with that number, SIGKILL. Says "whole" where it had fewer steps."""
    kinds = (mlb_batch.storage.LocalStore, mlb_batch.storage.RemoteStore)
    left = job["steps"]

    def counted(kind: type, name: str) -> None:
        step = getattr(kind, name)

        def method(self: Any, target: str, *rest: Any) -> Any:
            nonlocal left
            if target != mlb_batch.ledger.lease.NAME:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return step(self, target, *rest)

        setattr(kind, name, method)

    for kind in kinds:
        for name in ("create", "replace", "delete"):
            counted(kind, name)
    compact(job["output"], "cut", 256, grace_s=0)
    print("whole", flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        {"read": read, "cut": cut}[sys.argv[1]](json.loads(sys.argv[2]))
