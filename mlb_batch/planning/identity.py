"""What makes a job this job: the fingerprint of its rows, and the key under which its solved schedule is frozen."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from mlb_batch.ledger import fingerprint
from mlb_batch.planning.record import Solved
from mlb_batch.planning.setup import Setup
from mlb_batch.spec import JobSpec
from mlb_batch.spec_parts import PromptSpec


def fingerprint_of(spec: JobSpec, means: Setup, solved: Solved) -> str:
    """Of everything that changes a text: the job as asked, and the schedule that its budget came to."""
    return fingerprint({**_asked(spec, means), "solved": dataclasses.asdict(solved)})


def key_of(spec: JobSpec, means: Setup) -> str:
    """Of the job as asked with its budget as written: the same whatever videos there are."""
    return fingerprint({**_asked(spec, means), "budget": spec.budget.model_dump()})


def _asked(spec: JobSpec, means: Setup) -> dict[str, object]:
    generate = spec.generate.model_dump(exclude={"expected_new_tokens"})
    return {
        "model": [means.checkpoint.revision, spec.model.dtype],
        "pair": means.pair and means.pair.revision,
        "method": repr(means.method),
        "frames": spec.frames.model_dump(),
        "clips": spec.clips and spec.clips.model_dump(),
        "prompts": [prompt.model_dump() for prompt in _prompts(spec)],
        "generate": {**generate, "seed": generate["seed"] if generate["temperature"] else 0},  # nothing is drawn at 0
        # Whether a version makes an annotation a new one: under both rules every video is answered twice.
        **({"changed": spec.input.changed} if spec.input.changed != "version" else {}),
    }


def _prompts(spec: JobSpec) -> Sequence[PromptSpec]:
    """In an order of their own where that of the file changes no text: one selection for all may hang on it."""
    return spec.prompts if spec.prune.select == "per_video" else sorted(spec.prompts, key=lambda prompt: prompt.id)
