"""The commands as a user meets them: exit codes, one JSON object at the end of stdout, one line for a mistake."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import mlb_batch
from conftest import RAY_FOLDER
from ledger_rows import FINGERPRINT, annotation
from small_jobs import clips, job, job_file

import mlb_batch as mlb_batch_package
from mlb_batch import tiny
from mlb_batch.books.ending import exit_code
from mlb_batch.cli import app, ended
from mlb_batch.errors import OutputError
from mlb_batch.ledger import Lease, Ledger
from mlb_batch.spec import JobSpec
from mlb_batch.stop import Stop

Command = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Command:
    """A command in this process: its exit code, the JSON of stdout's last line, and stderr."""

    def run(*arguments: str) -> tuple[int, dict[str, Any], str]:
        code = ended(lambda: app(list(arguments)))
        out, err = capsys.readouterr()
        return code, json.loads(out.splitlines()[-1]) if out else {}, err

    return run


def test_plan_run_status_report_verify(ray_cluster: None, tmp_path: Path, here: Command) -> None:
    clips(tmp_path / "videos", 2)
    (tmp_path / "videos" / "empty.mp4").touch()
    path, out = job_file(tmp_path), str(tmp_path / "out")
    code, planned, err = here("plan", str(path))
    assert code == 0 and planned["prompts"] == 6 and "budget" in err
    assert not Path(out).exists(), "a plan leaves nothing"
    code, summary, err = here("run", str(path))
    assert code == summary["exit_code"] == 3 and (summary["annotated"], summary["errors"]) == (4, 2)
    assert "done 4" in err and "failed 2" in err and "\x1b" not in err, "no colours where there is no terminal"
    code, progress, err = here("status", out)
    assert (code, progress["state"], progress["annotated"]) == (0, "ended", 4) and "ended" in err
    code, numbers, err = here("report", out, "--html", str(tmp_path / "report.html"))
    assert (code, numbers["annotations"]) == (0, 4) and (tmp_path / "report.html").stat().st_size > 0
    assert here("verify", out)[:2] == (0, {"output": out, "damaged": 0, "findings": []})
    part = next((tmp_path / "out" / "annotations").rglob("*.parquet"))
    part.write_bytes(part.read_bytes()[:-9] + bytes(9))
    code, found, err = here("verify", out)
    assert code == 1 and found["damaged"] > 0 and part.name in err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"promts": []}, "promts"),
        ({"frames": {"count": "many"}}, "frames.count"),
        ({"budget": {"ratio": 0.5, "pflops": 1}}, "budget"),
        ({"input": {"videos": "/nowhere/*.mp4"}}, "/nowhere"),
        ({"input": {"videos": "~nosuchuser/*.mp4"}}, "~nosuchuser/*.mp4: this machine knows no home folder"),
        ({"output": "~nosuchuser/out"}, "~nosuchuser/out: this machine knows no home folder"),
        ({"model": "embedded:huge"}, "huge"),
        ({"prune": {"method": "magic"}}, "magic"),
        ({"prune": {"method": "fastv", "options": {"depth": 3}}}, "depth"),
    ],
)
def test_a_mistake_is_one_clear_line_and_ray_never_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, object], says: str
) -> None:
    clips(tmp_path / "videos", 1)
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({**job(tmp_path), **change}))
    sessions = sorted(RAY_FOLDER.rglob("session_*"))
    assert ended(lambda: app(["run", str(path)])) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and says in err and len(err.strip().splitlines()) == 1
    assert sorted(RAY_FOLDER.rglob("session_*")) == sessions and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [("run", "no-such.yaml"), ("status", "no-such-output"), ("report", "no-such-output"), ("status", "~nosuchuser/out"),
     ("run",), ("dance",)],
)  # fmt: skip
def test_wrong_arguments_are_the_users_mistake(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ended(lambda: app(list(arguments))) == 2
    out, err = capsys.readouterr()
    assert out == "" and err and "Traceback" not in err


def a_file(folder: Path) -> Path:
    (folder / "out").write_text("a file")
    return folder / "out"


def below_a_file(folder: Path) -> Path:
    return a_file(folder) / "deeper" / "still"


def a_link_that_leads_nowhere(folder: Path) -> Path:
    (folder / "out").symlink_to(folder / "unmounted")
    return folder / "out"


@pytest.mark.parametrize("place", [a_file, below_a_file, a_link_that_leads_nowhere])
def test_an_output_that_can_be_no_folder_is_one_line_for_every_command(
    tmp_path: Path, here: Command, place: Callable[[Path], Path]
) -> None:
    clips(tmp_path / "videos", 1)
    output = str(place(tmp_path))
    job = str(job_file(tmp_path, output=output))
    for arguments in (("plan", job), ("run", job), *((name, output) for name in ("report", "verify"))):
        code, _, err = here(*arguments)
        assert code == 2 and f"{output} can't be a folder: {tmp_path}/out is a" in err, (arguments, err)
        assert len(err.strip().splitlines()) == 1
    for name in ("status", "compact"):
        code, _, err = here(name, output)
        assert code == 2 and len(err.strip().splitlines()) == 1, (name, err)
    with pytest.raises(OutputError, match="can't be a folder"), Lease(output, "run-1"):
        pass


def test_an_output_that_may_not_be_read_is_one_line_for_every_command(tmp_path: Path, here: Command) -> None:
    """Root may read everything, so a link to itself stands for another user's folder."""
    clips(tmp_path / "videos", 1)
    output, job = tmp_path / "out", str(job_file(tmp_path))
    output.symlink_to(output)
    commands = [(name, str(output)) for name in ("status", "report", "verify", "compact")]
    for arguments in [("plan", job), ("run", job), *commands]:
        code, _, err = here(*arguments)
        assert code == 1 and err.startswith(f"failed: can't read {output}/"), (arguments, err)
        assert len(err.strip().splitlines()) == 1


def test_the_report_of_another_fingerprint(tmp_path: Path, here: Command) -> None:
    for n, fingerprint in enumerate((FINGERPRINT, FINGERPRINT[::-1])):
        Ledger(str(tmp_path), fingerprint, "run").commit([annotation(i, fingerprint) for i in range(n + 1)], [])
    code, _, err = here("report", str(tmp_path))
    assert code == 2 and "--fingerprint" in err
    for n, fingerprint in enumerate((FINGERPRINT, FINGERPRINT[::-1])):
        code, numbers, _ = here("report", str(tmp_path), "--fingerprint", fingerprint)
        assert (code, numbers["annotations"], numbers["fingerprint"]) == (0, n + 1, fingerprint)
    assert here("report", str(tmp_path), "--fingerprint", "0" * 16)[0] == 2


def test_settings_reach_the_job(tmp_path: Path, here: Command) -> None:
    clips(tmp_path / "videos", 1)
    path = job_file(tmp_path)
    assert here("plan", str(path), "--set", "frames.count=2")[1]["frames"] == 2
    code, _, err = here("plan", str(path), "--set", "frames.cuont=2")
    assert code == 2 and "cuont" in err


def test_the_package_offers_its_three_names_without_loading_anything() -> None:
    script = (
        "import sys, mlb_batch.cost.flops, mlb_batch;"
        "heavy = {'ray', 'torch', 'transformers', 'av'} & sys.modules.keys();"
        "assert not heavy, heavy; from mlb_batch import JobSpec, plan, run; import mlb_batch.run;"
        "from mlb_batch import run as again; assert callable(plan) and callable(run) and again is run"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    ("errors", "stopped", "allowed", "code"),
    [(0, "", None, 0), (1, "", None, 3), (5, "", 0.05, 0), (6, "", 0.05, 3), (29, "", 0.28, 3), (29, "", 0.29, 0),
     (0, "SIGTERM", None, 143), (9, "SIGTERM", None, 143), (0, "SIGINT", None, 130), (0, "deadline", None, 3)],
)  # fmt: skip
def test_exit_codes(tmp_path: Path, errors: int, stopped: str, allowed: float | None, code: int) -> None:
    """A share is counted as it is written: of 100, 29 are not more than 0.29, which in floats is a little less."""
    spec = JobSpec.from_dict(job(tmp_path, limits={"max_error_share": allowed}))
    assert exit_code(spec, {"errors": errors, "expected": 100, "stopped": stopped}) == code


@pytest.mark.parametrize("signals", [(signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)])
def test_only_a_second_ctrl_c_means_now(signals: tuple[signal.Signals, ...]) -> None:
    """Where a person and a scheduler both stop a run, it still commits what is finished."""
    with Stop(None) as stop:
        for number in signals:
            signal.raise_signal(number)
        assert stop.reason == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_package_is_a_command_and_says_which_version_it_is(here: Command) -> None:
    code, told, _ = here("--version")
    assert (code, told) == (0, {"version": mlb_batch_package.__version__}) and told["version"]
    started = [sys.executable, "-m", "mlb_batch", "--version"]
    assert json.loads(subprocess.run(started, check=True, capture_output=True, text=True).stdout) == told
    assert set(mlb_batch_package.__all__) <= set(dir(mlb_batch_package))


@pytest.mark.whole_run
def test_the_demo_shows_its_answers_and_adds_nothing_the_second_time(
    ray_cluster: None, tmp_path: Path, here: Command
) -> None:
    code, first, err = mlb_batch("demo", str(tmp_path / "demo"), COLUMNS="200")
    assert code == 0 and first["rows_written"] == first["expected"] > 0
    assert "clip-0000000" in err and "Describe the video" in err
    assert "random weights" not in err and tiny.trained("tiny")
    code, second, err = here("demo", str(tmp_path / "demo"))
    assert (code, second["rows_written"], second["skipped_done"]) == (0, 0, first["expected"])
    assert "added no row" in err


def test_a_demo_takes_nobodys_job_for_its_own(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    (theirs / "clips").mkdir(parents=True)
    (theirs / "job.yaml").write_text("input: {videos: 's3://theirs/*'}")
    (tmp_path / "file").touch()
    mistakes = {
        theirs: r"clips is there and not a demo's; give the demo a folder of its own",
        tmp_path / "file": r"can't write in .*file: .*; name a folder that can be written",
    }
    for folder, said in mistakes.items():
        code, _, err = mlb_batch("demo", str(folder))
        assert code == 2 and re.search(rf"^error: .*{said}$", err, re.M) and "Traceback" not in err
    assert [path.name for path in sorted(theirs.iterdir())] == ["clips", "job.yaml"]
