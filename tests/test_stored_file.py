"""Manifests, videos' places and models in a store that is unwell: the job ends to be run again, and blames nobody."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from loopback import Handler, Server

from mlb_batch.errors import InputError, JobError
from mlb_batch.source import inspect
from mlb_batch.spec import JobSpec
from mlb_batch.storage_errors import patience_of
from mlb_batch.vlm.checkpoint import resolve

ROWS = 3000


class Store(Server):
    """Gives one object by ranges, whatever is asked for; some of its requests it answers with `status` instead."""

    def __init__(self, data: bytes = b"", status: int = 503) -> None:
        super().__init__(_Handler)
        self.data, self.status = data, status
        self.requests, self.unwell = 0, range(0)


class _Handler(Handler):
    server: Store
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        store = self.server
        store.requests += 1
        asked = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        begin, end = (int(asked[1]), int(asked[2]) + 1) if asked else (0, len(store.data))
        ill = store.requests in store.unwell
        data = b"" if ill else store.data[begin:end]
        self.send_response(store.status if ill else 206 if asked else 200)
        self.send_header("Content-Length", str(len(data)))
        if asked:
            self.send_header("Content-Range", f"bytes {begin}-{begin + len(data) - 1}/{len(store.data)}")
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    do_HEAD = do_GET


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """As a web server by its `uri`, and as S3 for whoever names a bucket; nobody waits for it for long."""
    with Store() as one, patience_of(1.0):
        monkeypatch.setenv("AWS_ENDPOINT_URL", one.uri)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
        monkeypatch.setattr("mlb_batch.source.listing.CLIENT_TRIES", 1)
        s3fs.S3FileSystem.clear_instance_cache()
        yield one
    s3fs.S3FileSystem.clear_instance_cache()


def job(**given: str) -> JobSpec:
    prompts = [{"id": "a", "kind": "qa", "text": "x"}]
    return JobSpec.from_dict({"input": given, "prompts": prompts, "output": "/nowhere"})


@pytest.mark.parametrize(("status", "said"), [(503, "the storage didn't answer well for 1 s"), (403, "refused")])
@pytest.mark.parametrize(
    "ask",
    [
        lambda web: inspect(job(manifest="s3://bucket/m.jsonl")),
        lambda web: inspect(job(manifest="s3://bucket/m.parquet")),
        lambda web: inspect(job(manifest=f"{web}/m.csv")),
        lambda web: inspect(job(videos="s3://bucket/videos/")),
        lambda web: inspect(job(videos="s3://bucket/videos/*.mp4")),
        lambda web: resolve("s3://bucket/model"),
        lambda web: resolve(f"{web}/model"),
    ],
)
def test_a_store_that_is_unwell_is_nobodys_mistake(
    ask: Callable[[str], object], status: int, said: str, store: Store
) -> None:
    store.status, store.unwell = status, range(1, 10**9)
    with pytest.raises(JobError, match=rf"\A[^\n]*{said}[^\n]*to resume\Z"):
        ask(store.uri)


@pytest.mark.parametrize(
    ("status", "said"),
    [(503, "errors.JobError: 'owner"), (404, "errors.ModelError: model.id: 'owner"), (None, "errors.ModelError: ")],
)
def test_a_hub_that_is_down_is_not_a_hub_that_has_no_such_model(
    status: int | None, said: str, tmp_path: Path, store: Store
) -> None:
    """Where none can be reached, it is as likely that a folder was meant: a mistake that trying again doesn't mend."""
    store.status, store.unwell = status or 200, range(1, 10**9)
    hub = store.uri if status else "http://127.0.0.1:9"
    settings = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "PATH": "/usr/bin"}
    code = "from mlb_batch.vlm.checkpoint import resolve; resolve('owner/name')"
    done = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True, timeout=120)
    last = done.stderr.strip().splitlines()[-1]
    assert said in last and "'owner/name' is no folder here, and the hub did not give it: " in last, done.stderr


def rows_of(kind: str, folder: Path) -> bytes:
    """A manifest that takes several requests."""
    rows = [{"uri": f"{n}.mp4", "pad": f"{n:08}" * 800} for n in range(ROWS)]
    if kind == "jsonl":
        return b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    pq.write_table(
        pa.Table.from_pylist(rows), folder / "m", compression="none", use_dictionary=False, row_group_size=256
    )
    return (folder / "m").read_bytes()


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_an_outage_in_the_middle_of_a_manifest_is_waited_out_or_ends_the_job(
    kind: str, tmp_path: Path, store: Store
) -> None:
    store.data = rows_of(kind, tmp_path)
    spec = job(manifest=f"{store.uri}/m.{kind}")
    assert inspect(spec).num_rows == ROWS
    calm, store.requests = store.requests, 0
    assert calm > 4, "it came in one piece"
    store.unwell = range(calm - 1, calm + 1)
    assert inspect(spec).num_rows == ROWS
    assert store.requests == calm + 2
    store.requests, store.unwell = 0, range(calm - 1, 10**9)
    with pytest.raises(JobError, match="didn't answer well"):
        inspect(spec)


def test_a_damaged_manifest_is_no_outage(tmp_path: Path, store: Store) -> None:
    pq.write_table(pa.table({"uri": [f"{n}.mp4" for n in range(5000)]}), tmp_path / "m")
    sound = (tmp_path / "m").read_bytes()
    store.data = sound[:60] + bytes(40) + sound[100:]
    with pytest.raises(InputError, match="can't be read"):
        inspect(job(manifest=f"{store.uri}/m.parquet"))
