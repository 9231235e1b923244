"""Captions and answers for a bucket of videos, in Parquet, at the compute budget you set.

from mlb_batch import JobSpec, plan, run
spec = JobSpec.load("job.yaml"); p = plan(spec); summary = run(spec)
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlb_batch.planning import plan
    from mlb_batch.run import run
    from mlb_batch.spec import JobSpec

__all__ = ["JobSpec", "plan", "run"]


def _from(home: str, name: str) -> property:
    def get(package: ModuleType) -> Any:
        return getattr(import_module(home), name)

    def put(package: ModuleType, submodule: Any) -> None:
        """The import system puts the module run.py here; what is exported is the function of that name."""

    return property(get, put)


class _Package(ModuleType):
    """Exports load when asked for: mlb_batch.cost must import where torch and ray are not even installed."""

    JobSpec = _from("mlb_batch.spec", "JobSpec")
    plan = _from("mlb_batch.planning", "plan")
    run = _from("mlb_batch.run", "run")


sys.modules[__name__].__class__ = _Package
