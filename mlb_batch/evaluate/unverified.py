"""The README's table of what was not yet run on public checkpoints, made from the table of benchmarks.

python -m mlb_batch.evaluate.unverified      prints it; the README's copy is held to it by a test
"""

from __future__ import annotations

from mlb_batch.evaluate.benchmarks import BENCHMARKS, Benchmark

_HEAD = ("benchmark", "answers", "format built from", "reported by others", "ours", "the command that fills the row")


def table() -> str:
    rows = [_row(name, one) for name, one in BENCHMARKS.items()]
    return "\n".join(["| " + " | ".join(_HEAD) + " |", "|" + "---|" * len(_HEAD), *rows])


def command(name: str) -> str:
    """With DIR for the folder of the annotation files and VIDEOS for that of the videos."""
    public = BENCHMARKS[name]
    files = ",".join(f"DIR/{file}" for file in public.files)
    judge = " --set judge.url=URL --set judge.model=MODEL" if public.form == "judged" else ""
    return (
        f"mlb-batch evaluate jobs/{public.job} --set benchmark.name={name} --set 'benchmark.annotations=[{files}]' "
        f"--set benchmark.videos=VIDEOS --set output=OUT/{name}{judge}"
    )


def _row(name: str, public: Benchmark) -> str:
    title = f"{public.title} ({public.note})" if public.note else public.title
    seen = {"files": "its files", "copies": "copies of its files", "documentation": "its documentation"}[public.seen]
    return "| " + " | ".join([title, public.form, seen, public.reported, "not run", f"`{command(name)}`"]) + " |"


if __name__ == "__main__":
    print(table())
