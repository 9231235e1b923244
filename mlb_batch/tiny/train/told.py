"""What the lessons in text are about: clips for the video model, still scenes for the image model.

Each tells facts about named shapes, to be looked up again, and has texts with questions about them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mlb_batch.tiny.questions import act_sentence
from mlb_batch.tiny.scenes import Thing, make_scene, thing_sentence
from mlb_batch.tiny.train.lessons import exam_talk, lesson_talk, scene_talk
from mlb_batch.tiny.train.packing import Dialogue
from mlb_batch.tiny.truth import Act
from mlb_batch.tiny.words import DIRECTIONS, PLACES
from mlb_batch.tiny.world import HELD_OUT_FROM, Clip, make_clip
from mlb_batch.vlm.choices import LETTERS

# A text, and what is asked of it.
Told = tuple[str, list[Dialogue]]
_CLIPS, _MOST_ACTS, _MOST_FLASHES = 32, 4, 3
_SCENES = 64
_PLAIN_SHARE = 0.25  # of the lessons about clips: captions of two sentences
_SMALL_PX = 8  # of frames that nobody looks at


@dataclass(frozen=True)
class Subject:
    name: str
    fact: Callable[[np.random.Generator, str, str], str]  # a sentence about a shape of this colour and kind
    found: tuple[str, ...]  # the words in it that are no guess: only a look-up gives them
    lesson: Callable[[np.random.Generator], list[Told]]
    exam: Callable[[int], list[Told]]  # of so many held-out texts


def _clip_fact(rng: np.random.Generator, colour: str, shape: str) -> str:
    direction, place = str(rng.choice(DIRECTIONS)), str(rng.choice(PLACES))
    return act_sentence(
        Act(colour, shape, direction, None, 0, 1) if rng.random() < 0.5 else Act(colour, shape, None, place, 0, 1)
    )


def _clip_lesson(rng: np.random.Generator) -> list[Told]:
    acts = 2 if rng.random() < _PLAIN_SHARE else _MOST_ACTS
    clips = [_clip(seed, acts) for seed in rng.integers(0, HELD_OUT_FROM, _CLIPS).tolist()]
    return [(clip.caption, _readable(lesson_talk(clip, rng))) for clip in clips]


def _clip_exam(count: int) -> list[Told]:
    clips = [_clip(seed, _MOST_ACTS) for seed in range(HELD_OUT_FROM, HELD_OUT_FROM + count)]
    return [(clip.caption, _readable(exam_talk(clip))) for clip in clips]


def _clip(seed: int, acts: int) -> Clip:
    return make_clip(seed, 16, size=_SMALL_PX, max_acts=acts, max_flashes=min(acts, _MOST_FLASHES))


def _readable(talks: list[Dialogue]) -> list[Dialogue]:
    """Without the caption itself, and without what none says: when; and each choice once more, its answer given."""
    asked = [talk for talk in talks if talk.kind != "caption" and "When" not in talk.prompt]
    return asked + [_letter_asked(talk) for talk in asked if talk.kind == "choice"]


def _letter_asked(talk: Dialogue) -> Dialogue:
    """The same options behind the answer itself: to name its letter is a skill apart from knowing it."""
    _, *options = talk.prompt.splitlines()
    answer = options[LETTERS.index(talk.answer)].split(". ")[1]
    return Dialogue("\n".join((answer, *options)), talk.answer, "letter")


def _scene_fact(rng: np.random.Generator, colour: str, shape: str) -> str:
    return thing_sentence(Thing(colour, shape, str(rng.choice(PLACES))))


def _scene_lesson(rng: np.random.Generator) -> list[Told]:
    scenes = [make_scene(seed, _SMALL_PX) for seed in rng.integers(0, HELD_OUT_FROM, _SCENES).tolist()]
    return [(scene.caption, _readable(scene_talk(scene, rng))) for scene in scenes]


def _scene_exam(count: int) -> list[Told]:
    scenes = [make_scene(seed, _SMALL_PX) for seed in range(HELD_OUT_FROM, HELD_OUT_FROM + count)]
    return [(scene.caption, _readable(scene_talk(scene))) for scene in scenes]


CLIPS = Subject("video", _clip_fact, DIRECTIONS, _clip_lesson, _clip_exam)
SCENES = Subject("image", _scene_fact, ("top", "bottom"), _scene_lesson, _scene_exam)
