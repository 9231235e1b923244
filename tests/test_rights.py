"""A whole run with exactly the rights that deploy/iam/run.json gives, on a server that enforces them."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest
import s3fs
from commands import mlb_batch
from s3server import S3Server
from small_jobs import clips, job_file
from storm import Storm

from mlb_batch.errors import JobError
from mlb_batch.storage import open_store
from mlb_batch.storage_errors import patience_of

RUN = Path(__file__).parents[1] / "deploy" / "iam" / "run.json"
MISSING = 20  # what isn't there when a run looks for it: its lease, a plan, an earlier run's traces
KEY, SECRET = "job-key", "job-secret"


@pytest.fixture(scope="module")
def enforcing(s3_server: S3Server) -> None:
    """A server with one user more, who owns nothing."""
    if s3_server.kind != "ceph":
        pytest.skip("the simulated server lets everybody do everything")
    admin = ["radosgw-admin", "-c", f"{s3_server.home}/ceph.conf", "-n", "client.rgw", "user", "create", "--uid=job"]
    command = [*admin, "--display-name=job", f"--access-key={KEY}", f"--secret={SECRET}"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def allow(bucket: str, placeholder: str) -> None:
    """The statements of the file that are about this bucket, as a policy of the bucket itself."""
    text = RUN.read_text().replace(placeholder, bucket)
    statements = [one for one in json.loads(text)["Statement"] if f":::{bucket}" in one["Resource"]]
    policy: dict[str, Any] = {"Version": "2012-10-17"}
    policy["Statement"] = [{**one, "Principal": {"AWS": ["arn:aws:iam:::user/job"]}} for one in statements]
    s3fs.S3FileSystem().call_s3("put_bucket_policy", Bucket=bucket, Policy=json.dumps(policy))


@pytest.fixture
def buckets(enforcing: None, s3: S3Server) -> tuple[str, str]:
    """Input and output, both another's, with what the file allows."""
    source, target = s3.make_bucket(), s3.make_bucket()
    allow(source, "INPUT_BUCKET")
    allow(target, "OUTPUT_BUCKET")
    return source, target


def test_what_is_missing_is_not_forbidden(buckets: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The server says so of it, to whom it lets list only below a prefix."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    s3fs.S3FileSystem.clear_instance_cache()
    ours, others = (open_store(f"s3://{buckets[1]}/{place}") for place in ("annotations/nightly", "others"))
    for name in ("lease.json", "runs/none/plan.json"):
        with pytest.raises(PermissionError):
            s3fs.S3FileSystem().cat_file(f"{ours.uri}/{name}")
        with pytest.raises(FileNotFoundError):
            ours.read(name)
    assert ours.create("lease.json", b"1") and ours.read("lease.json") == b"1"
    with pytest.raises(JobError, match="refused"), patience_of(2):
        others.read("lease.json")


@pytest.mark.whole_run
@pytest.mark.slow
def test_a_run_asks_for_nothing_that_it_may_not(s3: S3Server, buckets: tuple[str, str], tmp_path: Path) -> None:
    source, target = buckets
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    for path in clips(tmp_path / "made", 6):
        fs.pipe_file(f"{source}/videos/{path.name}", path.read_bytes())
    fs.pipe_file(f"{target}/others/secret", b"secret")
    output = f"s3://{target}/annotations/nightly"
    job = str(job_file(tmp_path, input={"videos": f"s3://{source}/videos/*.mp4"}, output=output))
    with Storm(s3.port) as calm:
        keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
        environment = {**s3.environment(calm.port), **keys}
        for annotated in (12, 0):
            code, summary, err = mlb_batch("run", job, **environment)
            assert code == 0 and summary["annotated"] == annotated, err[-2000:]
        for command in ("report", "verify", "compact", "status"):
            assert mlb_batch(command, output, **environment)[0] == 0, command
        assert calm.answers[403] <= MISSING and calm.answers[200] > 20, calm.answers
        theirs = s3fs.S3FileSystem(key=KEY, secret=SECRET, endpoint_url=s3.endpoint, skip_instance_cache=True)
        not_theirs = (lambda: theirs.cat_file(f"{target}/others/secret"), lambda: theirs.pipe_file(f"{source}/x", b"x"),
                      lambda: theirs.rm_file(f"{source}/videos/v0000.mp4"))  # fmt: skip
        for forbidden in not_theirs:
            with pytest.raises(PermissionError):
                forbidden()
    files = [theirs.cat_file(one) for one in theirs.glob(f"{target}/annotations/nightly/annotations/*/*.parquet")]
    assert sum(pq.read_table(io.BytesIO(data)).num_rows for data in files) == 12
