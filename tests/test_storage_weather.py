"""Whole runs in bad weather: whatever the bucket's server does to requests, the rows are those of a calm day."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pytest
from commands import MLB_BATCH, kill_all, mlb_batch, start
from s3server import S3Server
from small_jobs import PROMPTS, classes, clips, ids, job_file, manifest, table, texts
from storm import Storm

pytestmark = pytest.mark.whole_run

CLIPS = 400
CHEAP = {"prompts": PROMPTS[:1], "generate": {"max_new_tokens": 2}}
# kind, the share of requests that go wrong, and how many times as long as on a calm day the run may take: longer where
# the store itself asks to be asked less, which it gets
WEATHER = [("slow_down", 0.3, 5), ("error_500", 0.1, 3), ("reset", 0.1, 3), ("truncate", 0.2, 3), ("hang", 0.05, 3)]
ODD = ("a b", "ü日本語", "50%", "%41%2e", "a+b", "a#b", "a?versionId=x", "a&b=c", "q'uo\"te", "st*r", "[set]",
       "{brace}", "semi;colon", "a:b", "tilde~", "comma,", "dollar$HOME", "back`tick", "a..b", ".hidden", "-dash", 
       "e\u0301",
       "right\u200fto\u202eleft", "$(id)", "a|b", "<tag>", "a@b", "a=b", "UPPER", "🎬")  # fmt: skip


@dataclass(frozen=True)
class Ran:
    texts: dict[tuple[str, str], str]
    requests: int
    wall_s: float
    faults: int


def filled(server: S3Server, folder: Path, count: int) -> str:
    bucket, fs = server.make_bucket(), fsspec.filesystem("s3", use_listings_cache=False)
    for path in clips(folder, count):
        fs.pipe_file(f"{bucket}/in/{path.name}", path.read_bytes())
    return bucket


def ran(server: S3Server, bucket: str, folder: Path, *storm: Any) -> Ran:
    """A run over the bucket, its output beside its input, everything through one proxy; then what it left."""
    output = f"s3://{bucket}/out-{folder.name}"
    path = job_file(folder, input={"videos": f"s3://{bucket}/in/"}, output={"uri": output, "commit_rows": 64}, **CHEAP)
    with Storm(server.port, *storm) as weather:
        begun_s = time.monotonic()
        process = start(MLB_BATCH, "run", str(path), **server.environment(weather.port))
        try:
            _, err = process.communicate(timeout=1500)
        finally:
            kill_all(process)
        wall_s = time.monotonic() - begun_s
        assert process.returncode == 0, err[-3000:]
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    fs.get(f"{output}/annotations", str(folder / "out" / "annotations"), recursive=True)
    assert not fs.exists(f"{output}/errors"), "a row failed for the weather"
    assert len(ids(folder / "out")) == len(set(ids(folder / "out"))) == CLIPS
    return Ran(texts(folder / "out"), weather.requests.total(), wall_s, weather.faults)


@pytest.fixture(scope="module")
def calm() -> dict[str, Any]:
    """The bucket and its calm run; made by the first test that needs it."""
    return {}


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(("kind", "share", "longer"), WEATHER)
def test_a_storm_over_a_whole_run_changes_no_row(
    kind: str, share: float, longer: int, s3: S3Server, calm: dict[str, Any], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if not calm:
        calm["bucket"] = filled(s3, tmp_path / "made", CLIPS)
        (tmp_path / "calm").mkdir()
        calm["ran"] = ran(s3, calm["bucket"], tmp_path / "calm")
    usual: Ran = calm["ran"]
    (tmp_path / kind).mkdir()
    here = ran(s3, calm["bucket"], tmp_path / kind, kind, share, 11)
    with capsys.disabled():
        print(f"\n{kind} {share}: {here.faults} faults, {here.requests} requests ({here.requests / usual.requests:.2f} "
              f"of a calm day's), {here.wall_s:.0f} s ({here.wall_s / usual.wall_s:.2f})")  # fmt: skip
    assert here.faults > 30, "nothing was shown"
    assert here.texts == usual.texts
    assert here.requests <= 2 * usual.requests, "a storm of retries"
    assert here.wall_s <= longer * usual.wall_s


@pytest.mark.slow
def test_a_small_job_that_is_refused_everything_ends_and_one_refused_video_does_not_end_it(
    s3: S3Server, tmp_path: Path
) -> None:
    bucket = filled(s3, tmp_path / "made", 4)
    rows = [{"uri": f"s3://{bucket}/in/v{n:04}.mp4"} for n in range(4)]
    given = {"manifest": str(manifest(tmp_path / "videos.jsonl", rows)), "allow": [f"s3://{bucket}/"]}
    path, out = job_file(tmp_path, input=given, **CHEAP), tmp_path / "out"
    with Storm(s3.port) as storm:
        storm.refuse("AccessDenied")
        code, _, err = mlb_batch("run", str(path), **s3.environment(storm.port))
        assert code == 1 and table(out, "errors") == []
        assert "Traceback" not in err and "policy" in err.strip().splitlines()[-1]
        storm.refuse("AccessDenied", "v0002")
        code, summary, err = mlb_batch("run", str(path), **s3.environment(storm.port))
    assert (code, summary["annotated"]) == (3, 3), err
    assert classes(out) == {"forbidden": 1} and table(out, "errors")[0]["uri"].endswith("v0002.mp4")


def odd_names() -> Iterator[str]:
    """1,500 keys: whatever a key may hold, and what looks like something else to a library on the way."""
    for n in range(1500):
        name = f"{ODD[n % len(ODD)]}/{n:04} {ODD[n // len(ODD) % len(ODD)]}"
        yield name + "k" * (1024 - len(f"in/{name}.mp4".encode())) if n % 100 == 99 else name


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_1500_odd_keys_are_all_annotated_under_their_own_names(s3: S3Server, tmp_path: Path) -> None:
    bucket, fs = s3.make_bucket(), fsspec.filesystem("s3", use_listings_cache=False)
    data, keys = clips(tmp_path / "made", 1)[0].read_bytes(), [f"in/{name}.mp4" for name in odd_names()]
    assert len(set(keys)) == 1500 and max(len(key.encode()) for key in keys) == 1024
    for key in keys:
        fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data)
    path = job_file(tmp_path, input={"videos": f"s3://{bucket}/in/"}, **{**CHEAP, "frames": {"count": 1}})
    code, summary, err = mlb_batch("run", str(path), **s3.environment())
    assert (code, summary["annotated"]) == (0, 1500), (summary, err[-2000:])
    assert Counter(row["uri"] for row in table(tmp_path / "out")) == Counter(f"s3://{bucket}/{key}" for key in keys)
    code, again, _ = mlb_batch("run", str(path), **s3.environment())
    assert (code, again["skipped_done"], again["rows_written"]) == (0, 1500, 0)
