"""Sample videos with their truth: the procedural world as real .mp4 files and the manifest of a job over them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlb_batch.tiny.questions import KINDS, Question
from mlb_batch.tiny.world import HELD_OUT_FROM, Clip, make_clip
from mlb_batch.video.write import write_mp4

FPS = 4


@dataclass(frozen=True)
class Scope:
    """How much happens in a sample clip, and which kinds of question are asked about it."""

    frames: int = 32
    max_acts: int = 4
    max_flashes: int = 3
    kinds: tuple[str, ...] = KINDS


def write_sample_clips(directory: Path, n: int, seed: int, scope: Scope = Scope()) -> Path:
    """Writes n held-out clips and `manifest.jsonl`, one row a video; returns the manifest's path."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = [_write_one(directory, HELD_OUT_FROM + seed * 100_000 + index, scope) for index in range(n)]
    manifest = directory / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def _write_one(directory: Path, clip_seed: int, scope: Scope) -> dict[str, Any]:
    # Flashes of two frames, so that a job which reads about every second frame sees nearly all of them.
    clip = make_clip(
        clip_seed, scope.frames, max_acts=scope.max_acts, max_flashes=scope.max_flashes, least_flash=2
    )  # fmt: skip
    picked = _picked(clip, scope.kinds)
    video_id = f"clip-{clip_seed - HELD_OUT_FROM:07d}"
    path = directory / f"{video_id}.mp4"
    write_mp4(path, clip.pixels_FHWC, FPS)
    return {
        "video_id": video_id,
        "uri": str(path.resolve()),
        "questions": [_as_asked(index, question) for index, question in enumerate(picked)],
        "truth": {
            "seed": clip_seed,
            "caption": clip.caption,
            "answers": {f"q{index}": question.answer for index, question in enumerate(picked)},
            **asdict(clip.truth),
        },
    }


def _picked(clip: Clip, kinds: tuple[str, ...]) -> list[Question]:
    """One plain question of each kind that the clip can answer, and two with choices."""
    asked = [question for question in clip.questions if question.kind in kinds]
    first_of_kind = {question.kind: question for question in reversed(asked) if not question.choices}
    with_choices = [question for question in asked if question.choices]
    return [*first_of_kind.values(), *with_choices[:2]]


def _as_asked(index: int, question: Question) -> dict[str, Any]:
    asked: dict[str, Any] = {"id": f"q{index}", "question": question.text}
    return asked | {"choices": list(question.choices)} if question.choices else asked
