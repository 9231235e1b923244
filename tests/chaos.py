"""Faults for whole runs, and what has to hold after every one of them."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from functools import cache
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from commands import found
from faultproxy import FaultProxy
from ledger_rows import read_plainly

from mlb_batch.errors import MlbBatchError
from mlb_batch.ledger import verify
from mlb_batch.ledger.parts import folder_name, list_fingerprints, list_seqs, part_name, read_parts
from mlb_batch.ledger.seal import BrokenSeal, check_seal
from mlb_batch.storage import Store, filesystem, open_store

Said = Mapping[tuple[str, str], str]  # (file name of the video, prompt) -> text


# --- what an output holds


def rows(uri: str, kind: str = "annotations", fingerprint: str = "*") -> list[dict[str, Any]]:
    """Every row by a plain read of all files, on a disk or in a bucket."""
    fs, path = filesystem(uri)
    names = sorted(fs.glob(f"{path}/{kind}/{fingerprint}/*.parquet"))
    return [row for name in names for row in pq.read_table(pa.BufferReader(fs.cat_file(name))).to_pylist()]


def texts(uri: str, fingerprint: str = "*") -> dict[tuple[str, str], str]:
    found = rows(uri, "annotations", fingerprint)
    return {(row["uri"].rsplit("/", 1)[-1], row["prompt_id"]): row["text"] for row in found}


def hold(uri: str, said: Said, fingerprint: str = "*") -> None:
    """Every annotation of the run without faults stands once, with its text; nothing is damaged or left lying about."""
    ids = [row["annotation_id"] for row in rows(uri, "annotations", fingerprint)]
    assert len(ids) == len(set(ids)) == len(said), f"{len(said)} rows were wanted: {len(ids)}, {len(set(ids))} distinct"
    assert texts(uri, fingerprint) == said
    assert [str(one) for one in verify(uri)] == []
    assert leftovers(uri) == []


def committed(uri: str) -> int:
    """Rows in annotations/. Cheap enough to be asked all the time: no name is ever given two contents."""
    store = open_store(uri)
    folders = [folder_name("annotations", one) for one in list_fingerprints(store, "annotations")]
    return sum(_rows_in(uri, f"{folder}/{name}") for folder in folders for name in store.list(folder))


@cache
def _rows_in(uri: str, name: str) -> int:
    return int(pq.read_metadata(pa.BufferReader(open_store(uri).read(name))).num_rows)


def leftovers(uri: str) -> list[str]:
    """What a writer that died left half written: temporary files, or uploads that were never completed."""
    fs, path = filesystem(uri)
    if uri.startswith("s3://"):
        found = fs.call_s3("list_multipart_uploads", Bucket=path.partition("/")[0])
        return [one["Key"] for one in found.get("Uploads", ())]
    return open_store(uri).list(".tmp")


# --- who looks on


class Onlooker:
    """Reads an output twice a second as others would, by the ledger's own reading and plainly, while runs write to it.

    `bad` says what was wrong: a file that was not whole, a row that stood twice, a row that was there before and gone.
    """

    def __init__(self, uri: str) -> None:
        self.bad: list[str] = []
        self.looks = 0
        self._uri, self._store = uri, open_store(uri)
        self._before: dict[str, set[str]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_on, daemon=True)

    def _look_on(self) -> None:
        while not self._over.wait(0.5):
            for fingerprint in list_fingerprints(self._store, "annotations"):
                try:
                    self._look(fingerprint)
                except (MlbBatchError, BrokenSeal, OSError, pa.ArrowException) as error:
                    self.bad.append(repr(error))

    def _look(self, fingerprint: str) -> None:
        fs, path = filesystem(f"{self._uri}/{folder_name('annotations', fingerprint)}")
        for ids in (whole_files(self._store, "annotations", fingerprint), read_plainly(path, fs)):
            before = self._before.setdefault(fingerprint, set())
            if len(ids) != len(set(ids)) or not before.issubset(ids):
                self.bad.append(f"{len(ids)} rows, {len(set(ids))} distinct, {len(before.difference(ids))} gone")
            before.update(ids)
            self.looks += 1

    def __enter__(self) -> Onlooker:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join(30)


def whole_files(store: Store, kind: str, fingerprint: str) -> list[str]:
    """The annotation ids, file by file, each against the checksum that it holds of itself."""
    there = list_seqs(store, kind, fingerprint)
    for seqs in there:
        check_seal(store.read(part_name(kind, fingerprint, seqs)))
    parts = read_parts(store, kind, fingerprint, there, ["annotation_id"])
    return [one for part in parts for one in part.rows["annotation_id"].to_pylist()]


# --- who kills


def killed(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


class Kills:
    """SIGKILL to a random process of a kind under a command, about every few seconds for as long as it runs."""

    def __init__(
        self,
        command: subprocess.Popen[str],
        part: str,
        every_s: float,
        seed: int,
        at_work: Callable[[int], object],
    ) -> None:
        """`at_work`: whom to kill, of those there are."""
        self.pids: list[int] = []
        self._command, self._part, self._every_s, self._chance = command, part, every_s, random.Random(seed)
        self._at_work = at_work
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._kill, daemon=True)

    def _kill(self) -> None:
        next_s = self._next()
        while not self._over.wait(0.5):
            there = sorted(found(self._command, self._part)) if time.monotonic() > next_s else []
            there = [pid for pid in there if self._at_work(pid)]
            if there and killed(one := self._chance.choice(there)):
                self.pids.append(one)
                next_s = self._next()

    def _next(self) -> float:
        return time.monotonic() + self._every_s * self._chance.uniform(0.5, 1.5)

    def __enter__(self) -> Kills:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join(30)


class DeadlyProxy(FaultProxy):
    """Kills whoever sends the n-th file of a kind: `before` the store has it, with `half` of it sent, or `after`.

    After means that it is stored, and that nobody is told.
    """

    def __init__(self, upstream_port: int, pattern: str, moment: str, nth: int) -> None:
        super().__init__(upstream_port, moment, pattern)
        self.kill: Callable[[], None] = lambda: None
        self._nth = nth

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if not self._is_the_one(request):
            self._answer(request, self._forward(request, body))
            return
        if self._fault == "after":
            self._forward(request, body)
        elif self._fault == "half":
            self._forward_half(request, body)
        self.kill()
        self.caught.set()
        request.close_connection = True

    def _is_the_one(self, request: BaseHTTPRequestHandler) -> bool:
        """Some files are written again and again, under one name."""
        with self._lock:
            hit = request.command == "PUT" and self._pattern.search(request.path) is not None
            self.faults += hit
            return hit and self.faults == self._nth
