"""The reference of job and evaluation files, jobs/README.md, from the words below each key of their specs.

python -m mlb_batch.reference      prints it; the file is held to it by a test
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mlb_batch.evaluate.spec import EvalSpec
from mlb_batch.spec import JobSpec
from mlb_batch.spec_text import part_of

_HEAD = """\
# Jobs

The files here are starting points: `captions.yaml` (the least that a job can say), `nightly.yaml` (what is new or has
changed, with questions of the manifest), `budget.yaml` (a fixed amount of compute), `evaluate*.yaml` (for `mlb-batch
evaluate`). `annotate.py` is what `ray job submit` runs.

## What a job file may say

Only `input`, `prompts` and `output` are needed. Any key can be set on the command line too: `--set prune.method=none`.
`${ENV}` is expanded in addresses and nowhere else. An unknown key, a value of another kind and keys that exclude each
other are one line and exit code 2. `deploy/job.schema.json` lets an editor check and complete a job.

`output: URI` and `model: ID` are short for `output: {uri: URI}` and `model: {id: ID}`. At most one of `budget.ratio`,
`pflops`, `pflops_per_hour_of_video` and `gpu_hours` is set. *Needed* inside a part that may be left out: where that is
given.

"""

_OF_EVALUATIONS = """
## What an evaluation file may say

For `mlb-batch evaluate`. Only `methods` (or `bias`) and `output` are needed. `benchmark: NAME`, `output: URI`, and a
model or a method by its name are short forms. What is left out of `job` is as in a job.

"""
_COLUMNS = ["| key | default | |", "|---|---|---|"]


def markdown() -> str:
    of_jobs = "\n".join([*_COLUMNS, *_rows(JobSpec, "")])
    of_evaluations = "\n".join([*_COLUMNS, *_rows(EvalSpec, "")])
    return f"{_HEAD}{of_jobs}\n{_OF_EVALUATIONS}{of_evaluations}"


def _rows(part: type[BaseModel], path: str) -> Iterator[str]:
    for name, field in part.model_fields.items():
        inner = part_of(field.annotation)
        if inner is None:
            yield f"| `{path}{name}` | {_default(field)} | {' '.join((field.description or '').split())} |"
        else:
            yield from _rows(inner, f"{path}{name}.")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "*needed*"
    default = field.get_default(call_default_factory=True)
    return "" if default in (None, (), {}) else f"`{json.dumps(default)}`"


if __name__ == "__main__":
    print(markdown())
