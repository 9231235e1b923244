"""The commands. People's text goes to stderr, stdout ends with one JSON object, a user's mistake is one line."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from mlb_batch.bench.suite import NAMES
from mlb_batch.environment import VERSION
from mlb_batch.errors import JobError, UserError
from mlb_batch.spec import JobSpec
from mlb_batch.spec_parts import MOST_FRAMES
from mlb_batch.stop import INTERRUPTED, STOPPED, Stop, exit_code_of

app = typer.Typer(
    help="Captions and answers for a bucket of videos, in Parquet, at the compute budget you set.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Say which version this is.")] = False,
) -> None:
    if version:
        answer({"version": VERSION})
        raise typer.Exit


Job = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job file.")]
Output = Annotated[str, typer.Argument(metavar="OUTPUT", help="The job's output.uri.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY.SUB=VALUE", help="Change a key of the job; may be repeated.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Only the JSON, over several lines.")]
Replan = Annotated[bool, typer.Option("--replan", help="Solve the budget again: a new fingerprint.")]


@app.command()
def plan(job: Job, sets: Sets = None, as_json: AsJson = False, replan: Replan = False) -> None:
    """Price a job: its cost, its schedule, its keep. Holds nothing and starts nothing."""
    spec = JobSpec.load(job, sets or ())  # first: a mistake in the file is said before anything heavy is loaded
    from mlb_batch.planning import describe
    from mlb_batch.planning import plan as price
    from mlb_batch.quality.rivals import refuse_costly_rivals

    priced = price(spec, replan)
    refuse_costly_rivals(spec, lambda: priced)
    if not as_json:
        say(describe(priced))
    answer(priced.to_json(), as_json)


@app.command()
def run(
    job: Job,
    sets: Sets = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N rows of the input.")] = None,
    replan: Replan = False,
) -> None:
    """Annotate what is not annotated yet. The same command again resumes, and adds nothing to what is done."""
    spec = JobSpec.load(job, sets or ())
    from mlb_batch.run import run as run_job

    summary = run_job(spec, limit, replan)
    answer(summary)
    raise typer.Exit(summary["exit_code"])


@app.command()
def preview(
    job: Job, sets: Sets = None, n: Annotated[int, typer.Option(min=1, help="How many videos to look at.")] = 20
) -> None:
    """Show a few videos' answers unpruned, as the job would give them, and with random pruning. Writes no output."""
    spec = JobSpec.load(job, sets or ())
    from rich.console import Console

    from mlb_batch.chain.cluster import connected
    from mlb_batch.quality import preview as look
    from mlb_batch.quality import side_by_side
    from mlb_batch.run import annotate

    with connected():
        stop = Stop(spec.limits.deadline_h)
        found = look(spec, lambda job: annotate(job, stop, n))
    if not found.get("stopped"):
        Console(stderr=True).print(side_by_side(found))
    answer(found)
    raise typer.Exit(found.get("exit_code", 0))


@app.command()
def status(output: Output, as_json: AsJson = False) -> None:
    """How a running or an ended job stands, from its progress file."""
    from mlb_batch.progress import describe, latest

    progress = latest(output)
    if not as_json:
        say(describe(progress))
    answer(progress, as_json)


@app.command()
def report(
    output: Output,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report as one HTML page.")] = None,
    fingerprint: Annotated[str | None, typer.Option(help="Of which rows; default: the newest run's.")] = None,
    as_json: AsJson = False,
) -> None:
    """What an output holds: rows, errors by class, cost, and how to read it."""
    from mlb_batch.report import report as count
    from mlb_batch.report import to_text

    if html is not None:
        from mlb_batch.page import write_page

        numbers = write_page(output, html, fingerprint)
        say(f"written to {html}")
    else:
        numbers = count(output, fingerprint)
        if not as_json:
            say(to_text(numbers))
    answer(numbers, as_json)


@app.command()
def verify(output: Output, as_json: AsJson = False) -> None:
    """Check every file and invariant of an output, and name what is damaged."""
    from mlb_batch.ledger import verify as check

    findings = check(output)
    if not as_json:
        say("\n".join(map(str, findings)) or "nothing is damaged")
    answer({"output": output, "damaged": len(findings), "findings": [vars(one) for one in findings]}, as_json)
    raise typer.Exit(1 if findings else 0)


@app.command()
def compact(
    output: Output,
    target_mb: Annotated[
        int | None, typer.Option(min=1, help="Size of a file; default: the newest run's output.target_file_mb.")
    ] = None,
    grace_s: Annotated[
        float, typer.Option(min=0, help="How long a read may take that began before the files are exchanged.")
    ] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Merge small files, under readers that are at work: who reads what current.json names notices nothing."""
    from mlb_batch.ledger import compact as merge
    from mlb_batch.ledger.runs import last_target_mb, new_run_id

    done = merge(output, new_run_id(), target_mb or last_target_mb(output), grace_s)
    if not as_json:
        say(f"{done.files_before:,} files before, {done.files_after:,} now")
    answer({"output": output, **vars(done)}, as_json)


@app.command()
def evaluate(
    file: Annotated[Path, typer.Argument(metavar="EVAL.yaml", help="The evaluation file.")], sets: Sets = None
) -> None:
    """Compare methods and budgets on a benchmark: accuracy with intervals, costs, pictures. Resumes like any job."""
    from mlb_batch.evaluate.spec import EvalSpec

    spec = EvalSpec.load(file, sets or ())  # first: a mistake in the file is said before anything heavy is loaded
    from mlb_batch.chain.cluster import connected
    from mlb_batch.evaluate.job import evaluate as compare
    from mlb_batch.run import run as run_job

    with ExitStack() as session:

        def one(job: JobSpec) -> dict[str, Any]:
            session.enter_context(connected())  # the first cell starts Ray, or joins one; the others use it too
            return run_job(job)

        try:
            summary = compare(spec, one, say)
        except (KeyboardInterrupt, SystemExit) as left:  # outside a cell; within one its job says what stopped it
            code = exit_code_of(left)
            if code not in (STOPPED, INTERRUPTED):
                raise
            stopped = "SIGTERM" if code == STOPPED else "SIGINT"
            summary = {"output": spec.output.uri, "stopped": stopped, "exit_code": code}
    if not summary.get("stopped"):
        say(f"written to {spec.output.uri}/README.md")
    answer(summary)
    raise typer.Exit(summary["exit_code"])


@app.command()
def bench(
    what: Annotated[
        list[str] | None, typer.Argument(metavar="[WHAT ...]", help=f"Of {', '.join(NAMES)}; none: all.")
    ] = None,
    shape: Annotated[str, typer.Option(help="tiny | mid | 7b | 34b, with random weights.")] = "tiny",
    rounds: Annotated[int, typer.Option(min=3, help="In each, everyone has a turn.")] = 3,
    device: Annotated[str, typer.Option(help="auto | cpu | cuda.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch, on a CPU.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, max=MOST_FRAMES, help="Of a clip; default: the shape's.")] = None,
    new_tokens: Annotated[int | None, typer.Option(min=2, help="Of an answer; default: the shape's.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Clips at once; default: each one's best.")] = None,
    method: Annotated[str | None, typer.Option(help="The pruning method; default: the shape's.")] = None,
    ratio: Annotated[float | None, typer.Option(min=0, max=1, help="Of the unpruned prefill.")] = None,
    model: Annotated[str, typer.Option(help="For calibrate, scale; pipeline, not with a shape.")] = "embedded:tiny",
    job: Annotated[Path | None, typer.Option(metavar="JOB.yaml", help="calibrate: for this job.")] = None,
    sets: Sets = None,
    videos: Annotated[str | None, typer.Option(metavar="FOLDER|URI", help="For read and pipeline.")] = None,
    clips: Annotated[int, typer.Option(min=1, help="For read and pipeline: at most so many.")] = 24,
    readers: Annotated[int, typer.Option(min=1, help="For pipeline.")] = 1,
    rows: Annotated[list[int] | None, typer.Option(min=2, help="For scale; may be repeated.")] = None,
    actors: Annotated[list[int] | None, typer.Option(min=1, help="For scale; may be repeated.")] = None,
    speed: Annotated[float, typer.Option(min=1e-3, help="scale: times the calibrated device.")] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Measure the project beside its yardsticks, in turn: ratios with their spread."""
    from mlb_batch.bench.options import Options
    from mlb_batch.bench.suite import bench as measure

    options = Options(
        shape=shape, rounds=rounds, device=device, threads=threads, frames=frames, new_tokens=new_tokens, batch=batch,
        method=method, ratio=ratio, model=model, job=job, sets=tuple(sets or ()), videos=videos, clips=clips,
        readers=readers, rows=tuple(rows or Options.rows), actors=tuple(actors or Options.actors), speed=speed,
    )  # fmt: skip
    answer(measure(what or (), options, (lambda _: None) if as_json else say), as_json)


@app.command()
def demo(folder: Annotated[Path, typer.Argument(metavar="[DIR]")] = Path("demo")) -> None:
    """Make a handful of sample clips, annotate them on the embedded model, and show the answers."""
    from mlb_batch.demo import demo as show

    summary = show(folder)
    answer(summary)
    raise typer.Exit(summary["exit_code"])


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def answer(value: dict[str, Any], pretty: bool = False) -> None:
    print(json.dumps(value, indent=1 if pretty else None), flush=True)


def ended(command: Callable[[], object]) -> int:
    """The exit code of a command: what it raised on purpose becomes one line, never a traceback."""
    try:
        command()
    except (UserError, JobError, SystemExit) as error:
        if not isinstance(error, SystemExit):
            say(f"{'error' if isinstance(error, UserError) else 'failed'}: {error}")
        return exit_code_of(error)
    return 0


def main() -> None:
    _to_the_end(app)


def annotate() -> None:
    """`mlb-batch run` for a script that is submitted: the job file comes first, without a command's name."""
    _to_the_end(lambda: app(["run", *sys.argv[1:]]))


def _to_the_end(command: Callable[[], object]) -> NoReturn:
    # Ray reads it when it is imported, which no command has done yet: else a thread of Ray Data that outlives its run
    # starts a Ray of its own.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    # Until a run has something to commit (then it answers by itself): its lease is given back on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))
    sys.exit(ended(command))
