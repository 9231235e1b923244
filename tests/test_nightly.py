"""A dataset that lives: nightly runs over a growing bucket of a real S3 server, and nobody looks after them.

After every night: one row for every video that is there, in its version of that night, and every prompt; `current.json`
names a complete fingerprint; and the work that was done is the work that was new.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from commands import MLB_BATCH, kill_all, mlb_batch, start, until
from faultproxy import FaultProxy
from s3server import S3Server
from small_jobs import PROMPTS, SMALL
from video_files import write_video

from mlb_batch.ledger import Lease, compact, read_current, verify
from mlb_batch.storage import filesystem

pytestmark = pytest.mark.whole_run

CHANGED_PROMPTS = [PROMPTS[0], {**PROMPTS[1], "text": "What colour is it?"}]
Night = Callable[[list[dict[str, str]]], dict[str, Any]]


@dataclass
class Bucket:
    """A bucket as its owner sees it, and what the annotations of it must be."""

    server: S3Server
    name: str
    folder: Path
    written: int = 0
    said: dict[str, dict[str, str]] = field(default_factory=dict)  # fingerprint -> id -> what its row said first

    @property
    def output(self) -> str:
        return f"s3://{self.name}/annotations"

    def put(self, *names: str) -> None:
        """Videos, each with content of its own."""
        fs, _ = filesystem(self.output)
        for name in names:
            self.written += 1
            video = write_video(self.folder / f"{self.written}.mp4", frames=9 + self.written, size=(64, 48))
            fs.put_file(str(video), f"{self.name}/videos/{name}.mp4")

    def delete(self, name: str) -> None:
        filesystem(self.output)[0].rm_file(f"{self.name}/videos/{name}.mp4")

    def there(self) -> set[tuple[str, str]]:
        """Every video with its etag, as the bucket says."""
        fs, _ = filesystem(self.output)
        found = fs.ls(f"{self.name}/videos", detail=True)
        return {(f"s3://{one['name']}", one["ETag"].strip('"')) for one in found}

    def job(self, prompts: list[dict[str, str]]) -> dict[str, Any]:
        return {**SMALL, "name": "nightly", "input": {"videos": f"s3://{self.name}/videos/"}, "output": self.output,
                "prompts": prompts}  # fmt: skip

    def rows(self) -> list[dict[str, Any]]:
        """What a reader of current.json reads."""
        fs, path = filesystem(self.output)
        current = json.loads(fs.cat_file(f"{path}/current.json"))
        names = [name for pattern in current["files"]["annotations"] for name in fs.glob(f"{path}/{pattern}")]
        tables = [pq.read_table(name, filesystem=fs) for name in names]
        assert {table["fingerprint"][0].as_py() for table in tables if table.num_rows} == {current["fingerprint"]}
        return [row for table in tables for row in table.to_pylist()]

    def commits(self) -> list[int]:
        """The numbers of the commits that a reader of current.json reads."""
        current = read_current(self.output) or {}
        names = filesystem(self.output)[0].ls(
            f"{self.name}/annotations/annotations/{current['fingerprint']}", detail=False
        )
        return [int(number) for name in names for number in re.findall(r"(\d{6,})\.parquet$", name)]

    def check(self, prompts: list[dict[str, str]], fingerprint: str) -> None:
        """The invariant, by what the bucket says and what a plain reader sees."""
        assert (read_current(self.output) or {})["fingerprint"] == fingerprint
        rows = self.rows()
        standing = {(row["uri"], row["video_version"].strip('"'), row["prompt_id"]) for row in rows}
        assert len(standing) == len(rows) == len({row["annotation_id"] for row in rows})
        wanted = {(uri, version, prompt["id"]) for uri, version in self.there() for prompt in prompts}
        assert wanted <= standing, f"not annotated: {wanted - standing}"
        texts = {row["annotation_id"]: row["text"] for row in rows}
        before = self.said.setdefault(fingerprint, texts)
        assert before.items() <= texts.items(), "what stood has changed"
        self.said[fingerprint] = texts
        assert verify(self.output) == []


@pytest.fixture
def bucket(s3: S3Server, tmp_path: Path) -> Bucket:
    return Bucket(s3, s3.make_bucket(), tmp_path)


def after(summary: dict[str, Any], done: int, skipped: int) -> None:
    told = (summary["exit_code"], summary["annotated"], summary["rows_written"], summary["skipped_done"])
    assert told == (0, done, done, skipped), summary
    assert summary["expected"] == done + skipped


def three_nights(bucket: Bucket, night: Night) -> str:
    """It grows; a video changes and one goes; a prompt changes. The fingerprint of the third night."""
    bucket.put("a", "b", "c")
    first = night(PROMPTS)
    after(first, done=6, skipped=0)
    bucket.check(PROMPTS, first["fingerprint"])

    bucket.put("d", "b")  # one more, and one in a new version
    bucket.delete("c")
    second = night(PROMPTS)
    assert second["fingerprint"] == first["fingerprint"]
    after(second, done=4, skipped=2)
    bucket.check(PROMPTS, first["fingerprint"])

    bucket.put("e")
    third = night(CHANGED_PROMPTS)
    assert third["fingerprint"] != first["fingerprint"]
    after(third, done=8, skipped=0)
    bucket.check(CHANGED_PROMPTS, third["fingerprint"])
    return str(third["fingerprint"])


@pytest.fixture
def shift(s3: S3Server) -> Iterator[Callable[[dict[str, Any]], dict[str, Any]]]:
    """Jobs on a Ray that was started where the server is known."""
    script, pipe = str(Path(__file__).with_name("night_shift.py")), subprocess.PIPE
    process = subprocess.Popen([sys.executable, script], stdin=pipe, stdout=pipe, text=True)

    def work(job: dict[str, Any]) -> dict[str, Any]:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        return dict(json.loads(process.stdout.readline()))

    yield work
    kill_all(process)


@pytest.mark.slow
def test_three_nights_a_compaction_and_a_quiet_night(
    bucket: Bucket, shift: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    fingerprint = three_nights(bucket, lambda prompts: shift(bucket.job(prompts)))
    compact(bucket.output, "compaction", 256, grace_s=0)
    bucket.check(CHANGED_PROMPTS, fingerprint)
    quiet = shift(bucket.job(CHANGED_PROMPTS))
    after(quiet, done=0, skipped=8)
    assert quiet["read_s"] == 0, "a video was read for nothing"
    bucket.check(CHANGED_PROMPTS, fingerprint)


@pytest.mark.slow
def test_five_nights_with_a_kill_on_the_fourth(
    bucket: Bucket, tmp_path: Path, commands: list[subprocess.Popen[str]]
) -> None:
    """The command itself, as a schedule starts it, one process a night."""

    def night(prompts: list[dict[str, str]]) -> dict[str, Any]:
        code, summary, err = mlb_batch("run", str(job_file(tmp_path, bucket, prompts)))
        assert code == 0, err[-2000:]
        return summary

    fingerprint = three_nights(bucket, night)

    bucket.put(*"fghijklmnopq", "a")
    job = str(job_file(tmp_path, bucket, CHANGED_PROMPTS))
    second = rf"part-{1 + max(bucket.commits()) + 1:06}"
    with FaultProxy(bucket.server.port, "hold", second) as proxy:
        environment = bucket.server.environment(proxy.port)
        fourth = start(MLB_BATCH, "run", job, "--set", "output.commit_rows=4", **environment)
        commands.append(fourth)
        until(lambda: proxy.caught.is_set() or fourth.poll() is not None, "the second commit of the fourth night")
        os.kill(fourth.pid, signal.SIGKILL)
        kill_all(fourth)
        before = len(bucket.rows())
        proxy.release.set()  # it arrives when who wrote it is dead
        until(lambda: len(bucket.rows()) > before, "the dead one's commit")
    rows = bucket.rows()
    committed = len(rows) - 8
    assert 0 < committed < 26 and len({row["annotation_id"] for row in rows}) == len(rows)
    assert (read_current(bucket.output) or {})["fingerprint"] == fingerprint
    again = night(CHANGED_PROMPTS)
    after(again, done=26 - committed, skipped=6 + committed)
    bucket.check(CHANGED_PROMPTS, fingerprint)

    bucket.put("r")
    bucket.delete("d")
    with Lease(bucket.output, "the-night-before"):
        code, _, err = mlb_batch("run", job)
        assert code == 2 and "another run is writing here: run the-night-before" in err, "two nights at once"
    fifth = night(CHANGED_PROMPTS)
    after(fifth, done=2, skipped=30)
    bucket.check(CHANGED_PROMPTS, fingerprint)
    code, merged, err = mlb_batch("compact", bucket.output, "--grace-s", "1")
    assert code == 0 and merged["files_after"] == 2 < merged["files_before"], err
    bucket.check(CHANGED_PROMPTS, fingerprint)
    after(night(CHANGED_PROMPTS), done=0, skipped=32)


def job_file(folder: Path, bucket: Bucket, prompts: list[dict[str, str]]) -> Path:
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(bucket.job(prompts)), encoding="utf-8")
    return path
