"""The procedural world as a benchmark: its held-out clips as real video files, and what is asked of them.

`world` is for video models; `world-image` shows still scenes one after another, and asks what a model that was only
ever shown images can be asked. Clips are made from their seeds again whenever they are needed; their files are written
once, in a folder that is named by whatever shapes them and what is asked of them.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlb_batch import tiny
from mlb_batch.evaluate.items import Item
from mlb_batch.evaluate.spec import MOST_CLIPS, WorldSpec
from mlb_batch.storage import Store
from mlb_batch.tiny.questions import CAPTION_PROMPTS, Question
from mlb_batch.tiny.scenes import Scene, Thing, make_scene
from mlb_batch.tiny.world import HELD_OUT_FROM, make_clip
from mlb_batch.video.write import write_mp4

Say = Callable[[str], None]

FPS = 4
TOLD_EVERY = 250  # clips: thousands of long ones take minutes
MOST_SCENES = 3
IMAGE_WORLD_PX = 72  # what a frame of the image model has; the other model's frames have the world's own
_SHAPES_CLIPS = ("world.py", "render.py", "scenes.py", "words.py", "truth.py", "questions.py")  # and this file
_STREAM = 9  # of random numbers, apart from those that make a clip


@dataclass(frozen=True, eq=False)
class Shown:
    """One clip: its frames, its questions, and its caption, empty where it has none to be held against."""

    pixels_FHWC: NDArray[np.uint8]
    questions: tuple[Question, ...]
    caption: str


def folder_of(name: str, spec: WorldSpec) -> str:
    """Of the clips' files in the evaluation's output."""
    return f"videos/{name}-{_key(name, spec)}"


def write_world(store: Store, name: str, spec: WorldSpec, say: Say) -> list[Item]:
    """What is asked of its clips, whose files are all present then."""
    folder = folder_of(name, spec)
    there = set(store.list(folder))
    items: list[Item] = []
    for index in range(spec.clips):
        if index and index % TOLD_EVERY == 0:
            say(f"{index:,} of {spec.clips:,} clips")
        shown = show(name, spec, index)
        file = f"clip-{index:06d}.mp4"
        if file not in there:
            store.create(f"{folder}/{file}", _as_mp4(shown.pixels_FHWC))
        items += _items(shown, spec, index, file)
    return items


def show(name: str, spec: WorldSpec, index: int) -> Shown:
    seed = HELD_OUT_FROM + spec.seed * MOST_CLIPS + index
    if name == "world-image":
        return _slides(seed, spec.frames)
    clip = make_clip(
        seed, spec.frames, max_acts=spec.max_acts, max_flashes=spec.max_flashes, least_flash=spec.least_flash
    )
    return Shown(clip.pixels_FHWC, clip.questions, clip.caption)


def _key(name: str, spec: WorldSpec) -> str:
    """Of all that shapes clips and their questions; not of how many there are."""
    shape = spec.model_dump(exclude={"clips", "questions", "captions"})
    return hashlib.sha256(json.dumps([name, shape, FPS, _code()]).encode()).hexdigest()[:12]


@cache
def _code() -> str:
    files = [*(Path(tiny.__file__).parent / name for name in _SHAPES_CLIPS), Path(__file__)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _as_mp4(pixels_FHWC: NDArray[np.uint8]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="mlb-batch-") as folder:
        path = Path(folder) / "clip.mp4"
        write_mp4(path, pixels_FHWC, FPS)
        return path.read_bytes()


def _items(shown: Shown, spec: WorldSpec, index: int, file: str) -> list[Item]:
    rng = np.random.default_rng((HELD_OUT_FROM + spec.seed * MOST_CLIPS + index, _STREAM))
    items = [
        _asked(f"{index:06d}-{number}", file, question)
        for number, question in enumerate(_chosen(shown.questions, spec.questions, rng))
    ]
    if spec.captions and shown.caption:
        items.append(Item(f"{index:06d}-caption", file, "caption", CAPTION_PROMPTS[0], shown.caption))
    return items


def _chosen(questions: Sequence[Question], count: int, rng: np.random.Generator) -> list[Question]:
    """Of different kinds, so that no kind crowds out the rest; kinds come again when each has had its turn."""
    by_kind: dict[str, list[Question]] = {}
    for place in rng.permutation(len(questions)).tolist():
        by_kind.setdefault(questions[place].kind, []).append(questions[place])
    chosen: list[Question] = []
    while len(chosen) < count and any(by_kind.values()):
        chosen += [some.pop() for some in by_kind.values() if some]
    return chosen[:count]


def _asked(key: str, file: str, question: Question) -> Item:
    tags = {"kind": question.kind, "hangs_on": question.hangs_on}
    if question.choices:
        answer = question.choices[ord(question.answer) - ord("A")]
        return Item(key, file, "choice", question.text, answer, question.choices, shaped=False, tags=tags)
    return Item(key, file, "open", question.text, question.answer, tags=tags)


# Slides: still scenes, each for some frames.


def _slides(seed: int, frames: int) -> Shown:
    rng = np.random.default_rng((seed, _STREAM + 1))
    scenes = _scenes(rng, int(rng.integers(1, min(MOST_SCENES, frames) + 1)))
    cuts = np.sort(rng.choice(np.arange(1, frames), len(scenes) - 1, replace=False))
    lengths = np.diff([0, *cuts.tolist(), frames])
    pixels_FHWC = np.concatenate([
        np.repeat(scene.pixels_HWC[None], length, axis=0)
        for scene, length in zip(scenes, lengths.tolist(), strict=True)
    ])  # fmt: skip
    things = [thing for scene in scenes for thing in scene.things]
    questions = [
        replace(question, hangs_on="early" if number == 0 < len(scenes) - 1 and _said(question) != "no" else "any")
        for number, scene in enumerate(scenes)
        for question in scene.questions
        if _holds(question, things)
    ]
    return Shown(pixels_FHWC, tuple(questions), "")


def _holds(question: Question, things: Sequence[Thing]) -> bool:
    """Whether a question about one scene has the same one answer among all of them."""
    text = question.text.rstrip("?")
    if text.startswith("What colour"):
        return sum(thing.shape == text.split()[-1] for thing in things) == 1
    if text.startswith("What shape"):
        return sum(thing.colour == text.split()[-2] for thing in things) == 1
    if text.startswith("Is there"):
        there = text.removeprefix("Is there a ") in {thing.name for thing in things}
        return there == (_said(question) == "yes")
    return text.startswith("Where")  # no two things of a clip have the same name


def _said(question: Question) -> str:
    """The answer in words, of a choice too."""
    plain = question.choices[ord(question.answer) - ord("A")] if question.choices else question.answer
    return plain.lower()


def _scenes(rng: np.random.Generator, count: int) -> list[Scene]:
    """Scenes of which no two show the same thing."""
    scenes: list[Scene] = []
    names: set[str] = set()
    while len(scenes) < count:
        scene = make_scene(int(rng.integers(HELD_OUT_FROM, 2 * HELD_OUT_FROM)), IMAGE_WORLD_PX)
        new = {thing.name for thing in scene.things}
        if names & new:
            continue
        scenes.append(scene)
        names |= new
    return scenes
