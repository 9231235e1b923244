"""Watching a run: its line and its details, metrics that a Prometheus could scrape, and the word at the end."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import MLB_BATCH, kill_all, mlb_batch, start, until
from conftest import RAY_FOLDER
from loopback import Handler, Server
from ray_nodes import healthy, serving
from small_jobs import clips, job, job_file, spec

from mlb_batch import run
from mlb_batch.books import STEPS, Books
from mlb_batch.chain import metrics
from mlb_batch.chain.metrics import METRICS, values
from mlb_batch.columns import BILL
from mlb_batch.errors import InputError, OutputError, SpecError
from mlb_batch.ledger import Lease, RunFolder
from mlb_batch.notify import Undelivered, announced, post
from mlb_batch.planning import plan
from mlb_batch.progress import Progress, describe, latest, line, snapshot
from mlb_batch.spec import JobSpec
from mlb_batch.work import Counts, Outcome


@pytest.fixture
def books(tmp_path: Path) -> Books:
    """A run on two GPUs for half an hour: 3 done, 2 failed of 8, and 1 done before."""
    clips(tmp_path / "videos", 4)
    job = spec(tmp_path, limits={"price_per_gpu_hour": 3.0})
    books = Books(plan(job), job.retry, 2.0, 3.0, begun_s=time.monotonic() - 1800)
    row = dict.fromkeys(BILL, 10)
    failed = [{"error_class": kind, "attempt": 1, "retryable": False} for kind in ("timeout", "corrupt")]
    books.add([Outcome([row, row, row], failed, counts=Counts(3, 6, 1, 0), read_s=40.0, model_s=30.0, idle_s=70.0)])
    return books


# --- status


def test_what_a_budget_counts_is_told_with_its_unit(tmp_path: Path) -> None:
    """The papers' measure is no FLOPs, though the keys beside it are called so."""
    clips(tmp_path / "videos", 1)
    every = (("exact", "FLOPs", "flops_prefill"), ("paper", "multiply-adds", "macs_paper_executed"))
    for convention, unit, measure in every:
        job = spec(tmp_path, prune={"method": "fastv"}, budget={"ratio": 0.6, "convention": convention})
        books = Books(plan(job), job.retry)
        books.add([Outcome([{**dict.fromkeys(BILL, 0), measure: 7}], counts=Counts(1, 1))])
        told = snapshot(books, "running")
        assert (told["flops_spent_of_budget"], told["flops_budget"]) == (7, plan(job).budget.limit)
        assert told["budget_unit"] == books.as_json()["budget_unit"] == unit


def test_status_says_what_is_asked_of_it(books: Books) -> None:
    said = describe({"run_id": "the-run", **json.loads(json.dumps(snapshot(books, "running")))})
    for part in ("run the-run: running", "done 4 (1 by earlier runs)", "failed 2", "left 2", "ETA", "of the budget",
                 "starved by reading", "corrupt 1, timeout 1", "reading 0:40, model 0:30, writing 0:00", "busy 30%",
                 "30 FLOPs of 30 unpruned", "1 GPU-hours held", "3.00 at limits.price_per_gpu_hour"):  # fmt: skip
        assert part in said, f"{part!r} is not in\n{said}"
    assert "price" not in describe({"run_id": "r", **snapshot(books, "ended"), "cost": None})
    silent = {**snapshot(books, "running"), "updated_at": "2020-01-01T00:00:00Z"}
    assert "killed, or its node is gone" in describe({"run_id": "r", **silent})


def test_what_is_left_is_of_what_the_run_was_asked_for(books: Books) -> None:
    assert (books.asked, books.left) == (8, 2)
    books.limit = 3
    assert (books.asked, books.left) == (6, 0), "three of four videos, of which six annotations have come"
    books.limit = 9
    assert (books.asked, books.left) == (8, 2), "there are no more than four"
    books.end = "SIGTERM"
    assert books.left == 2 and books.eta_s is None and "ETA" not in line(books)
    books.end, books.share = None, 0.5
    assert books.left is None and "left" not in line(books) and "ETA" not in line(books)
    assert (
        snapshot(books, "running")["left"] is None and "left" not in values(books) and values(books)["eta_s"][""] == -1
    )
    books.end = ""
    assert books.left == 0 and "left 0" in line(books) and "ETA" not in line(books)


@pytest.mark.usefixtures("ray_cluster")
def test_an_ended_run_has_nothing_left_that_it_was_not_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips(tmp_path / "videos", 4)
    run(spec(tmp_path, canary={"share": 0.5, "against": []}), limit=1)
    told = [json.loads(path.read_text()) for path in (tmp_path / "out" / "runs").glob("*/progress.json")]
    assert [(one["state"], one["left"], one["eta_s"]) for one in told] == [("ended", 0, None)] * 2
    said = capsys.readouterr().err + describe(latest(str(tmp_path / "out")))
    assert "left 0" in said and "left 6" not in said and "ETA" not in said


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_that_failed_is_said_to_have_failed_with_its_own_line(tmp_path: Path) -> None:
    clips(tmp_path / "videos", 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "annotations").write_text("a file, where rows are to go")
    with pytest.raises(OutputError, match=r"annotations/.* can't be a folder") as raised:
        run(spec(tmp_path))
    told = latest(str(tmp_path / "out"))
    assert (told["state"], told["error"], told["eta_s"]) == ("failed", str(raised.value), None)
    later = describe({**told, "updated_at": "2020-01-01T00:00:00Z"})
    assert f": failed: {raised.value}\n" in later and "killed" not in later and "ETA" not in later


def test_an_error_is_not_hidden_by_a_storage_that_broke_too(tmp_path: Path, books: Books) -> None:
    out = tmp_path / "progress"
    with (
        pytest.raises(ZeroDivisionError),
        Progress(books, RunFolder(str(out), "the-run"), lambda _: None),
    ):
        assert latest(str(out))["state"] == "starting"
        shutil.rmtree(out)
        out.write_text("a file")
        raise ZeroDivisionError
    assert out.read_text() == "a file"


def test_a_run_says_that_its_frozen_schedule_costs_more_than_the_budget_as_written(
    tmp_path: Path, books: Books, capsys: pytest.CaptureFixture[str]
) -> None:
    for planned, said in ((books.plan.budget.limit, False), (2 * books.plan.budget.limit, True)):
        books.plan = replace(books.plan, budget=replace(books.plan.budget, planned=planned))
        with Progress(books, RunFolder(str(tmp_path / "progress"), "the-run"), lambda _: None):
            assert ("costs 200 % of the budget as written; --replan" in capsys.readouterr().err) is said


def test_what_a_run_waits_for(books: Books) -> None:
    assert books.starved_by == "reading" and "starved by reading" in line(books)
    books.add([Outcome(model_s=400.0)])
    assert books.starved_by == "model"
    books.first_s = time.monotonic() - 100
    books.wrote(20.0)
    assert books.starved_by == "model", "a fifth of the time is no bottleneck"
    books.wrote(60.0)
    assert books.starved_by == "writing"
    books.first_s, books.write_s = time.monotonic() - 0.01, 0.03
    assert books.starved_by == "model", "of a moment nothing can be told"


def test_the_pass_that_measures_clips_is_paid_for_and_slows_no_rate(books: Books) -> None:
    rate = books.rate
    books.measuring_s = 1800.0
    assert books.gpu_hours == pytest.approx(2.0, rel=0.01) and books.price == pytest.approx(6.0, rel=0.01)
    assert books.wall_s == pytest.approx(3600, rel=0.01) and books.rate == pytest.approx(rate, rel=0.01)


# --- metrics


def test_every_metric_is_documented_and_carries_the_books(books: Books) -> None:
    documented = re.findall(r"^ray_mlb_batch_(\w+)(?:\{(\w+)\})?", metrics.__doc__ or "", re.MULTILINE)
    assert dict(documented) == {name: label for name, (_, label) in METRICS.items()}
    found = values(books)
    assert found.keys() == METRICS.keys()
    assert found["annotations"] == {"done": 3, "failed": 2, "skipped_done": 1, "skipped_failed": 0}
    assert found["errors"] == {"timeout": 1, "corrupt": 1} and found["flops"]["executed"] == 30
    assert found["step_s"] == {"reading": 40, "model": 30, "writing": 0}
    assert found["starved_by"] == {"reading": 1, "model": 0, "writing": 0} and [*found["starved_by"]] == [*STEPS]
    assert found["gpu_hours"][""] == pytest.approx(1.0, rel=0.01) and found["cost"][""] == pytest.approx(3.0, rel=0.01)
    books.price_per_gpu_hour = None
    assert "cost" not in values(books)


def test_a_budget_that_no_float_holds_is_exported_as_the_largest(books: Books) -> None:
    books.plan = replace(books.plan, budget=replace(books.plan.budget, limit=10**315))
    assert values(books)["budget_limit"][""] == sys.float_info.max and "0% of the budget" in line(books)


def test_what_a_run_spent_is_said_as_its_own_where_others_were_before_it(books: Books) -> None:
    assert books.counts.skipped_done and "% of the budget, by this run" in line(books)
    books.counts = replace(books.counts, skipped_done=0)
    assert "% of the budget · " in line(books)


def test_operations_are_held_against_no_budget_of_time(books: Books) -> None:
    timed = replace(books.plan.budget, kind="gpu_hours", unit="nanoseconds", limit=3600 * 10**9)
    books.plan = replace(books.plan, budget=timed)
    told = snapshot(books, "running")
    assert "budget" not in line(books) and "nanoseconds" not in describe({"run_id": "r", **told})
    assert told["flops_budget"] is None and told["flops_spent_of_budget"] is None and told["flops_executed"] == 30
    assert {"budget_spent", "budget_limit"}.isdisjoint(values(books))


@pytest.mark.whole_run
@pytest.mark.slow
def test_the_cluster_exports_the_metrics(tmp_path: Path) -> None:
    head = serving(healthy, 2)
    process: subprocess.Popen[str] | None = None
    try:
        clips(tmp_path / "videos", 12)
        (tmp_path / "videos" / "empty.mp4").touch()
        process = start(MLB_BATCH, "run", str(job_file(tmp_path, name="board", generate={"max_new_tokens": 32})),
                        RAY_ADDRESS=head.address)  # fmt: skip
        seen = ""

        def complete() -> bool:
            nonlocal seen
            seen = _scraped()
            return "ray_mlb_batch_errors{" in seen and 'outcome="done"' in seen

        until(complete, "the metrics")
    finally:
        for one in filter(None, (process, head.process)):
            kill_all(one)
    samples = [text for text in seen.splitlines() if text.startswith("ray_mlb_batch_")]
    assert {text.partition("{")[0].removeprefix("ray_mlb_batch_") for text in samples} == METRICS.keys() - {"cost"}
    assert all('job_name="board"' in text and 'run_id="' in text for text in samples)
    assert any(text.startswith("ray_mlb_batch_errors") and 'error_class="empty"' in text for text in samples)


def _scraped() -> str:
    """What the nodes that Ray lists for Prometheus export."""
    listing = RAY_FOLDER / "head" / "prom_metrics_service_discovery.json"
    listed = json.loads(listing.read_text()) if listing.exists() else []
    targets = [target for one in listed for target in one["targets"]]
    pages = []
    for target in targets:
        try:
            pages.append(urllib.request.urlopen(f"http://{target}/metrics", timeout=5).read().decode())
        except OSError:
            continue
    return "\n".join(pages)


# --- the word at the end


class Receiver(Server):
    """`got` is what was posted to it, and where."""

    def __init__(self, status: int = 200, location: str = "") -> None:
        super().__init__(_Receives)
        self.status, self.location = status, location
        self.got: list[tuple[str, dict[str, Any]]] = []


class _Receives(Handler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.headers["Content-Type"] == "application/json" and self.headers["Host"].startswith("127.0.0.1:")
        self.server.got.append((self.path, json.loads(body)))
        self.send_response(self.server.status)
        if self.server.location:
            self.send_header("Location", self.server.location)
        self.end_headers()

    def do_GET(self) -> None:
        self.server.got.append((self.path, {}))
        self.send_response(200)
        self.end_headers()


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_posts_its_summary_and_hides_the_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clips(tmp_path / "videos", 1)
    with Receiver() as hook:
        monkeypatch.setenv("HOOK", f"{hook.uri}/services/s3cr3t?token=s3cr3t")
        job = spec(tmp_path, name="nightly", notify={"webhook": "${HOOK}"}, limits={"deadline_h": 1e-9})
        summary = run(job)
        assert hook.got == [("/services/s3cr3t?token=s3cr3t", {"name": "nightly", **json.loads(json.dumps(summary))})]
        with Lease(str(tmp_path / "out"), "another"), pytest.raises(Exception, match="another run"):
            run(job)
        assert hook.got[1][1]["exit_code"] == 2 and "another run is writing here" in hook.got[1][1]["error"]
    with pytest.raises(InputError):
        run(spec(tmp_path, input={"videos": "/nowhere/*"}, notify={"webhook": f"{hook.uri}/s3cr3t"}))
    out, err = capsys.readouterr()
    assert "notify.webhook on 127.0.0.1: it can't be reached (ConnectionRefusedError)" in err
    everything = out + err + repr(job) + "".join(
        path.read_text(errors="replace") for path in (tmp_path / "out").rglob("*") if path.is_file()
    )  # fmt: skip
    assert "s3cr3t" not in everything


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (ZeroDivisionError("by zero"), 1, "ZeroDivisionError: by zero"),
        (OutputError("held by another run"), 2, "held by another run"),
        (SystemExit(143), 143, "SystemExit: 143"),
        (KeyboardInterrupt(), 130, "KeyboardInterrupt"),
    ],
)
def test_a_run_that_breaks_is_told_whatever_broke_it(
    tmp_path: Path, error: BaseException, code: int, told: str
) -> None:
    def breaks(_: JobSpec) -> dict[str, Any]:
        raise error

    with Receiver() as hook, pytest.raises(type(error)) as raised:
        announced(breaks)(spec(tmp_path, notify={"webhook": hook.uri}))
    assert raised.value is error
    word = {"name": "annotations", "output": str(tmp_path / "out"), "exit_code": code, "error": told}
    assert [one for _, one in hook.got] == [word]


def test_an_answer_that_is_no_success_is_said_and_changes_nothing(tmp_path: Path) -> None:
    with Receiver(status=500) as hook:
        text = yaml.safe_dump(job(tmp_path, input={"videos": "/nowhere/*"}, notify={"webhook": f"{hook.uri}/s3cr3t"}))
        (tmp_path / "job.yaml").write_text(text)
        code, _, err = mlb_batch("run", str(tmp_path / "job.yaml"))
    assert code == 2 and len(hook.got) == 1 and "it answered 500" in err and "s3cr3t" not in err


def test_a_name_is_tried_at_each_of_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """`localhost` is often ::1 first, and what listens there is on 127.0.0.1 only."""
    looked_up = socket.getaddrinfo

    def both(host: str, port: int, *rest: Any, **more: Any) -> list[Any]:
        family, kind, protocol, name, (address, *_) = looked_up("127.0.0.1", port, *rest, **more)[0]
        return [(family, kind, protocol, name, (one, port)) for one in ("127.0.0.2", address)]

    with Receiver() as hook:
        monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: (
            both(host, *rest, **more) if host == "127.0.0.1" else looked_up(host, *rest, **more)))  # fmt: skip
        monkeypatch.setattr("mlb_batch.notify.refused", lambda host, address: False)
        post(f"{hook.uri}/hook", {"a": 1})
        assert hook.got == [("/hook", {"a": 1})]


def test_it_is_never_sent_on() -> None:
    with Receiver() as elsewhere, Receiver(status=307, location=f"{elsewhere.uri}/on") as hook:
        with pytest.raises(Undelivered, match="it answered 307, a redirect"):
            post(f"{hook.uri}/hook", {"a": 1})
        assert len(hook.got) == 1 and elsewhere.got == []


@pytest.mark.parametrize(
    "host",
    ["169.254.169.254", "[fe80::1]", "[fd00:ec2::254]", "[::ffff:169.254.169.254]", "0.0.0.0", "224.0.0.1", "127.1",
     "2130706433", "0x7f000001"],
)  # fmt: skip
def test_it_goes_nowhere_where_clouds_keep_their_secrets(host: str) -> None:
    with pytest.raises(Undelivered, match="where no webhook goes"):
        post(f"http://{host}:9/hook", {})


def test_a_host_that_none_can_have_is_not_reached() -> None:
    with pytest.raises(Undelivered, match="can't be reached"):
        post("http://a\0b:9/hook", {})


@pytest.mark.parametrize(
    "url",
    ["ftp://example.com/x", "example.com/x", "https:///x", "https://me:word@example.com/x", "file:///etc/passwd", 7],
)
def test_what_is_no_web_address_is_refused_without_saying_it(tmp_path: Path, url: object) -> None:
    with pytest.raises(SpecError) as refused:
        JobSpec.from_dict(job(tmp_path, notify={"webhook": url}))
    assert "webhook" in str(refused.value) and str(url) not in str(refused.value).replace("got 7", "")


def test_the_kept_job_hides_a_webhook_that_is_given_in_the_open(tmp_path: Path) -> None:
    open_ = JobSpec.from_dict(job(tmp_path, notify={"webhook": "https://hooks.example.com/services/s3cr3t"}))
    assert yaml.safe_load(open_.as_written())["notify"] == {"webhook": "https://hooks.example.com/..."}
    assert open_.notify.webhook == "https://hooks.example.com/services/s3cr3t"


def test_the_newest_runs_progress_is_found(tmp_path: Path) -> None:
    for run_id in ("20260101T000000Z-aaa", "20260102T000000Z-bbb"):
        RunFolder(str(tmp_path), run_id).write_json("progress", {"state": run_id})
    RunFolder(str(tmp_path), "20260103T000000Z-compaction").write_spec("output: x\n")
    assert latest(str(tmp_path))["state"] == "20260102T000000Z-bbb"
    path = tmp_path / "runs" / "20260102T000000Z-bbb" / "progress.json"
    path.write_bytes(path.read_bytes()[:9])
    with pytest.raises(OutputError, match=r"bbb/progress\.json: .*; delete it; no row depends on it"):
        latest(str(tmp_path))
