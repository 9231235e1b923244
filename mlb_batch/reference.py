"""The reference of the job file, jobs/README.md, from the words below each key of the spec.

python -m mlb_batch.reference      prints it; the file is held to it by a test
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo

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
`pflops`, `pflops_per_hour_of_video` and `gpu_hours` is set.

| key | default | |
|---|---|---|"""


def markdown() -> str:
    return "\n".join([_HEAD, *_rows(JobSpec, "")])


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
    return "" if field.default in (None, (), {}) else f"`{json.dumps(field.default)}`"


if __name__ == "__main__":
    print(markdown())
