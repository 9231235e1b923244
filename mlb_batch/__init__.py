"""Captions and answers for a bucket of videos, in Parquet, at the compute budget you set.

from mlb_batch import JobSpec, plan, run
spec = JobSpec.load("job.yaml"); p = plan(spec); summary = run(spec)

run.py         the whole way of a job; chain/: what holds it together, on Ray
stages.py      its three steps, over video/ and vlm/; work.py: what travels between them
spec.py        what a job file may say; spec_parts.py: its keys; spec_text.py, spec_types.py: how it is read
source/        what there is to annotate; stored_file.py: a file that is read as it comes, wherever it is
planning/      what it will cost, by cost/ and the methods of prune/; engine.py: the plan as a model that answers
books/         what arrived, what waits, how it ended; rows.py: an answer or a failure as a row of columns.py
ledger/        the output, on storage.py (and storage_errors.py, web.py)
progress.py    what a person sees of a run; stop.py: why it ends early; notify.py: the word at its end
report.py      what an output holds; page/: as a page; unresolved.py: what failed
quality/       whether quality held; words.py: texts compared by their words
evaluate/, bench/   methods compared; seconds measured
tiny/          the embedded models and the world they were taught in; demo.py
cli.py         the commands; errors.py: every error that a user meets; reference.py: all keys of a job file as a page
amounts.py, outside.py   numbers as people read them; text from outside, made harmless
environment.py, processes.py, threads.py   versions and machines; processes; threads
cache.py       what this machine keeps for every job
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlb_batch.environment import VERSION as __version__
    from mlb_batch.planning import plan
    from mlb_batch.run import run
    from mlb_batch.spec import JobSpec

__all__ = ["JobSpec", "__version__", "plan", "run"]


def _from(home: str, name: str) -> property:
    def get(package: ModuleType) -> Any:
        return getattr(import_module(home), name)

    def put(package: ModuleType, submodule: Any) -> None:
        """The import system puts the module run.py here; what is exported is the function of that name."""

    return property(get, put)


class _Package(ModuleType):
    """Exports load when asked for: mlb_batch.cost must import where torch and ray are not even installed."""

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})

    JobSpec = _from("mlb_batch.spec", "JobSpec")
    __version__ = _from("mlb_batch.environment", "VERSION")
    plan = _from("mlb_batch.planning", "plan")
    run = _from("mlb_batch.run", "run")


sys.modules[__name__].__class__ = _Package
