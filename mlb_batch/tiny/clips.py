"""Sample videos with their truth: the procedural world as real .mp4 files and the manifest of a job over them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlb_batch.tiny.questions import Question
from mlb_batch.tiny.world import HELD_OUT_FROM, Clip, make_clip
from mlb_batch.video.write import write_mp4

FRAMES, FPS = 32, 4


def write_sample_clips(directory: Path, n: int, seed: int) -> Path:
    """Writes n held-out clips of eight seconds and `manifest.jsonl`, one row a video; returns the manifest's path."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = [_write_one(directory, HELD_OUT_FROM + seed * 100_000 + index) for index in range(n)]
    manifest = directory / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def _write_one(directory: Path, clip_seed: int) -> dict[str, Any]:
    # Flashes of two frames in 32, so that a job which reads every second frame sees each.
    clip = make_clip(clip_seed, FRAMES, least_flash=2)
    video_id = f"clip-{clip_seed - HELD_OUT_FROM:07d}"
    path = directory / f"{video_id}.mp4"
    write_mp4(path, clip.pixels_FHWC, FPS)
    return {
        "video_id": video_id,
        "uri": str(path.resolve()),
        "questions": [_as_asked(index, question) for index, question in enumerate(_picked(clip))],
        "truth": {
            "seed": clip_seed,
            "caption": clip.caption,
            "answers": {f"q{index}": question.answer for index, question in enumerate(_picked(clip))},
            **asdict(clip.truth),
        },
    }


def _picked(clip: Clip) -> list[Question]:
    """One plain question of each kind that the clip can answer, and two with choices."""
    first_of_kind = {question.kind: question for question in reversed(clip.questions) if not question.choices}
    with_choices = [question for question in clip.questions if question.choices]
    return [*first_of_kind.values(), *with_choices[:2]]


def _as_asked(index: int, question: Question) -> dict[str, Any]:
    asked: dict[str, Any] = {"id": f"q{index}", "question": question.text}
    return asked | {"choices": list(question.choices)} if question.choices else asked
