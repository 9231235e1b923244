"""The gallery's data: clips, pictures and failures as JSON, held to a size that a browser opens with ease."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlb_batch.amounts import percent
from mlb_batch.page.cards import Clip, Row
from mlb_batch.page.escape import visible
from mlb_batch.page.kept import kept
from mlb_batch.page.thumbs import Picture
from mlb_batch.progress import clock

MOST_CHARS = 4_000  # of one text
MOST_FAILED = 1_000
MOST_TEXT_BYTES = 24 << 20
MOST_PICTURE_BYTES = 16 << 20
SHORT = 300
UNREAD = Picture()


@dataclass(frozen=True)
class Gallery:
    """JSON texts, and how much of it they hold."""

    clips: str
    pictures: str
    num_clips: int
    num_rows: int
    num_pictures: int
    num_failed: int


def gallery(clips: Sequence[Clip], pictures: Mapping[int, Picture], failed: Sequence[Row]) -> Gallery:
    """Clips with a picture first, then the others, then what failed; each by its id."""
    prompts: dict[str, int] = {}
    images = _Within(MOST_PICTURE_BYTES)
    texts = _Within(MOST_TEXT_BYTES)
    shown = rows = 0
    for clip in sorted(clips, key=lambda one: (one.key not in pictures, _order(one))):
        if texts.add(_clip(clip, pictures.get(clip.key, UNREAD), images, prompts)):
            shown, rows = shown + 1, rows + len(clip.answers)
    failures = sum(texts.add(_failure(some, prompts)) for some in _by_video(failed[:MOST_FAILED]))
    told = [{"id": visible(prompt, MOST_CHARS)} for prompt in prompts]
    document = f'{{"prompts":{_json(told)},"clips":[{",".join(texts.kept)}]}}'
    return Gallery(document, f"[{','.join(images.kept)}]", shown, rows, len(images.kept), failures)


class _Within:
    """JSON values that fit into so many bytes together."""

    def __init__(self, most_bytes: int) -> None:
        self.kept: list[str] = []
        self._left = most_bytes

    def add(self, value: object) -> bool:
        text = _json(value)
        self._left -= len(text.encode())
        if self._left < 0:
            return False
        self.kept.append(text)
        return True


def _order(clip: Clip) -> tuple[str, float]:
    return str(clip.first["video_id"]), clip.first["clip_start_s"]


def _clip(clip: Clip, picture: Picture, images: _Within, prompts: dict[str, int]) -> dict[str, Any]:
    row, answers = clip.first, sorted(clip.answers, key=lambda one: str(one["prompt_id"]))
    seen, of_answer = _selections(clip, picture, answers)
    told: dict[str, Any] = {
        "id": visible(row["video_id"], SHORT),
        "uri": visible(row["uri"], SHORT),
        "span": f"{clock(row['clip_start_s'])} – {clock(row['clip_end_s'])}",
        "columns": [[visible(name, SHORT), visible(str(value), SHORT)] for name, value in clip.passthrough.items()],
        "answers": [_answer(one, prompts, of_answer) for one in answers],
    }
    if picture.problem:
        told["problem"] = visible(picture.problem, SHORT)
    elif picture.data and images.add(picture.data):
        told["picture"] = {
            "at": len(images.kept) - 1,
            "times": [f"{at_s:.1f} s" for at_s in picture.times_s],
            "of": row["frames_read"],
            "kept": seen,
        }
    return told


def _selections(clip: Clip, picture: Picture, answers: Sequence[Row]) -> tuple[list[Any], dict[str, int]]:
    """The different selections of a clip, and which of them is whose: often all answers share one."""
    seen: list[Any] = []
    of_answer: dict[str, int] = {}
    for row in answers:
        cuts = clip.cuts.get(row["annotation_id"])
        if picture.data and cuts:
            one = kept(cuts, picture.frames).as_json()
            if one not in seen:
                seen.append(one)
            of_answer[row["annotation_id"]] = seen.index(one)
    return seen, of_answer


def _answer(row: Row, prompts: dict[str, int], of_answer: Mapping[str, int]) -> dict[str, Any]:
    text = row["text"]
    told: dict[str, Any] = {
        "prompt": prompts.setdefault(row["prompt_id"], len(prompts)),
        "asked": visible(row["prompt"], SHORT),
        "text": visible(row["choice"] or text, MOST_CHARS),
        "kept": f"{row['num_kept_tokens']:,} of {row['num_visual_tokens']:,} tokens",
    }
    if len(text) > MOST_CHARS:
        told["chars"] = len(text)
    if row["status"] != "ok":
        told["status"] = row["status"]
    if row["flops_vanilla"]:
        told["cost"] = percent(row["flops_planned"] / row["flops_vanilla"])
    if row["annotation_id"] in of_answer:
        told["selection"] = of_answer[row["annotation_id"]]
    return told


def _by_video(failed: Iterable[Row]) -> list[list[Row]]:
    videos: dict[str, list[Row]] = {}
    for row in sorted(failed, key=lambda one: str(one["video_id"])):
        videos.setdefault(row["video_id"], []).append(row)
    return list(videos.values())


def _failure(rows: Sequence[Row], prompts: dict[str, int]) -> dict[str, Any]:
    row = rows[0]
    asked = sorted({one["prompt_id"] for one in rows})
    return {
        "id": visible(row["video_id"], SHORT),
        "uri": visible(row["uri"], SHORT),
        "span": "",
        "columns": [],
        "answers": [],
        "failed": visible(row["error_class"], SHORT),
        "problem": visible(row["message"], SHORT),
        "unanswered": [prompts.setdefault(prompt, len(prompts)) for prompt in asked],
    }


def _json(value: object) -> str:
    """JSON that can stand in a <script>: nothing in it can end the element or open a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
