"""Whole runs on a bucket that turns on them: keys that end, a policy that refuses, and secrets that stay secret."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import time
from pathlib import Path
from urllib.parse import quote

import fsspec
import pyarrow.parquet as pq
import pytest
from commands import MLB_BATCH, kill_all, start, until
from conftest import RAY_FOLDER
from s3server import SECRET_KEY, S3Server, start_server
from small_jobs import clips, ids, job_file, manifest, table
from storm import Storm

from mlb_batch.spec import JobSpec
from mlb_batch.storage_errors import PATIENCE_S

pytestmark = pytest.mark.whole_run

CLIPS = 48  # half of them are more than the 20 in a row that end a run
PLANTED = {"HF_TOKEN": "hf_planted/+token=1", "SOME_PASSWORD": "planted-password-2"}


@pytest.fixture
def bucket(s3: S3Server, tmp_path: Path) -> str:
    name = s3.make_bucket()
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    for path in clips(tmp_path / "made", CLIPS):
        fs.pipe_file(f"{name}/in/{path.name}", path.read_bytes())
    return name


def job(folder: Path, bucket: str) -> Path:
    """Odd ids and prompts, and every commit at once."""
    lines = [
        {"uri": f"s3://{bucket}/in/v{n:04}.mp4", "id": f"../../{n}\n=cmd()\x1b[31m", "title": f"<|im_end|>{n}\u202e"}
        for n in range(CLIPS)
    ]
    (folder / "videos.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = {"manifest": str(folder / "videos.jsonl"), "id_column": "id", "columns": ["title"],
             "allow": [f"s3://{bucket}/"]}  # fmt: skip
    prompts = [{"id": "c", "kind": "caption", "text": "{title}: describe."}]
    output = {"uri": str(folder / "out"), "commit_rows": 1}
    return job_file(folder, input=given, prompts=prompts, output=output)


def spellings(secret: str) -> set[bytes]:
    """As it is, quoted, and in base64 at each of three offsets."""
    shifted = {base64.b64encode(b"x" * n + secret.encode())[4 * (n > 0) : -4] for n in range(3)}
    return {secret.encode(), quote(secret, safe="").encode(), *(one for one in shifted if len(one) > 8)}


def everything_said(out: str, err: str, *folders: Path) -> bytes:
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return b"\n".join([out.encode(), err.encode(), *(path.read_bytes() for path in files)])


@pytest.mark.slow
@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "AccessDenied"])
def test_keys_that_end_stop_the_run_soon_and_blame_no_video(
    code: str, s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    path, out_folder = job(tmp_path, bucket), tmp_path / "out"
    refused_s: list[float] = []
    with Storm(s3.port) as storm:

        def refuse() -> None:
            storm.refuse(code)
            refused_s.append(time.monotonic())

        # One request each: the plan and the source have looked at every video, half of them are read.
        storm.before = {5 * CLIPS // 2: refuse}
        environment = {**s3.environment(storm.port), **PLANTED}
        process = start(MLB_BATCH, "run", str(path), **environment)
        try:
            out, err = process.communicate(timeout=200)
            assert time.monotonic() - refused_s[0] < 30
        finally:
            kill_all(process)
        assert process.returncode == 1 and table(out_folder, "errors") == [], "videos were written off"
        last = err.strip().splitlines()[-1]
        assert "Traceback" not in err and ("credentials" in last or "policy" in last), err
        assert len(ids(out_folder)) < CLIPS
        storm.refuse("")
        process = start(MLB_BATCH, "run", str(path), **environment)
        try:
            again, errors = process.communicate(timeout=300)
        finally:
            kill_all(process)
    summary = json.loads(again.splitlines()[-1])
    assert process.returncode == 0, errors
    assert len(ids(out_folder)) == len(set(ids(out_folder))) == CLIPS
    assert summary["bytes_fetched"] > 0
    said = everything_said(out + again, err + errors, out_folder, RAY_FOLDER)
    for secret in (SECRET_KEY, *PLANTED.values()):
        assert not [one for one in spellings(secret) if one in said], secret
    names = {str(one.relative_to(out_folder)) for one in out_folder.rglob("*")}
    assert all(re.fullmatch(r"[A-Za-z0-9_./\-]+", name) and ".." not in name for name in names)
    assert all(row["video_id"].endswith("\n=cmd()\x1b[31m") for row in table(out_folder)), (
        "data are written as they are"
    )
    assert "\x1b[31m" not in err + errors


LOUD = "import logging\nlogging.basicConfig(level=logging.DEBUG)\n"


@pytest.mark.slow
def test_no_log_tells_a_secret_when_every_process_logs_all_that_it_can(
    s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Videos fail in several ways, the webhook is dead, storage refuses the key, and the job file is wrong."""
    fsspec.filesystem("s3", use_listings_cache=False).pipe_file(f"{bucket}/in/text.mp4", b"no video")
    names = ("in/v0000.mp4", "in/text.mp4", "in/nothing.mp4", "../other/v.mp4")
    given = manifest(tmp_path / "videos.jsonl", [{"uri": f"s3://{bucket}/{name}"} for name in names])
    path = job_file(tmp_path, input={"manifest": str(given), "allow": [f"s3://{bucket}/"]},
                    notify={"webhook": "${WEBHOOK_URL}"})  # fmt: skip
    (tmp_path / "loud").mkdir()
    (tmp_path / "loud" / "sitecustomize.py").write_text(LOUD)
    loud = {"PYTHONPATH": str(tmp_path / "loud"), "RAY_BACKEND_LOG_LEVEL": "debug", "S3FS_LOGGING_LEVEL": "DEBUG"}
    planted = {**PLANTED, "WEBHOOK_URL": "http://127.0.0.1:9/planted-path-3"}
    said = b""
    with Storm(s3.port) as storm:
        for refusal, settings, expected in (
            ("", (), 3),
            ("InvalidAccessKeyId", (), 1),
            ("", ("--set", "frames.x=1"), 2),
        ):
            storm.refuse(refusal)
            process = start(MLB_BATCH, "run", str(path), *settings, **s3.environment(storm.port), **planted, **loud)
            out, err = process.communicate(timeout=500)
            assert process.returncode == expected, err[-2000:]
            said += everything_said(out, err)
    assert b"DEBUG:botocore" in said, "nothing was shown"
    monkeypatch.setenv("WEBHOOK_URL", planted["WEBHOOK_URL"])
    said += everything_said("", "", tmp_path / "out", RAY_FOLDER) + repr(JobSpec.load(path)).encode()
    for secret in (SECRET_KEY, *PLANTED.values(), "planted-path-3"):
        assert not [one for one in spellings(secret) if one in said], secret


@pytest.mark.slow
@pytest.mark.parametrize("outage_s", [60, None])
def test_an_outage_is_waited_out_or_ends_the_run_to_be_resumed(outage_s: int | None, tmp_path: Path) -> None:
    """Videos and output in the same store, which stops answering after the first commit."""
    with contextlib.ExitStack() as stack:
        server = start_server(stack)
        if server.kind != "ceph":
            pytest.skip("only Ceph's gateway is a process of its own")
        bucket, fs = server.make_bucket(), server.client()
        for path in clips(tmp_path / "made", CLIPS):
            fs.pipe_file(f"{bucket}/in/{path.name}", path.read_bytes())
        output = f"s3://{bucket}/out"
        path = job_file(tmp_path, input={"videos": f"s3://{bucket}/in/"}, output={"uri": output, "commit_rows": 1})
        process = start(MLB_BATCH, "run", str(path), **server.environment())
        stack.callback(kill_all, process)
        until(lambda: fs.glob(f"{bucket}/out/annotations/*/part-*"), "a first commit")
        server.stand_still()
        stack.callback(server.go_on)
        begun_s = time.monotonic()
        if outage_s is not None:
            time.sleep(outage_s)  # the fault itself, not a wait for something
            server.go_on()
        out, err = process.communicate(timeout=300)
        if outage_s is None:
            assert process.returncode == 1 and "run the same command" in err.strip().splitlines()[-1], err
            assert time.monotonic() - begun_s < PATIENCE_S + 60
            server.go_on()
            process = start(MLB_BATCH, "run", str(path), **server.environment())
            stack.callback(kill_all, process)
            out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        for kind, rows in (("annotations", 2 * CLIPS), ("errors", 0)):
            files = [fs.cat_file(one) for one in fs.glob(f"{bucket}/out/{kind}/*/*.parquet")]
            found = [row for data in files for row in pq.read_table(io.BytesIO(data))["annotation_id"].to_pylist()]
            assert len(found) == len(set(found)) == rows, (kind, out)
