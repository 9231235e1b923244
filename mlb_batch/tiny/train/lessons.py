"""What is said about a clip in a lesson and in an exam."""

from __future__ import annotations

import numpy as np

from mlb_batch.tiny.questions import CAPTION_PROMPTS
from mlb_batch.tiny.train.drills import answered_first, given_away, lettered, of_acts, of_flashes, some
from mlb_batch.tiny.train.packing import Dialogue
from mlb_batch.tiny.world import Clip

_QUESTIONS_A_CLIP = 12
# How often a kind is asked in training: those learned at once seldom, choices (as many as all others together) less.
_WEIGHT = {"first_colour": 0.5, "first_shape": 0.8, "last_colour": 0.5, "last_shape": 0.8, "choice": 0.6,
           "direction": 2.0, "place": 2.0, "exists": 2.5, "order": 2.5, "when": 2.0}  # fmt: skip
# In the last lesson: what took longest.
_LAST_WEIGHT = {"first_colour": 0.5, "first_shape": 0.5, "last_colour": 0.5, "last_shape": 0.5, "count_shapes": 0.5,
                "direction": 0.7, "place": 0.7, "exists": 0.7, "when": 0.7, "choice": 1.5}  # fmt: skip
_LAST_WEIGHT_OF_OTHERS = 3.0


def lesson_talk(clip: Clip, rng: np.random.Generator) -> list[Dialogue]:
    """A caption and some questions, hard kinds more often."""
    return _talk(clip, rng, [_WEIGHT.get(question.kind, 1.5) for question in clip.questions])


def last_talk(clip: Clip, rng: np.random.Generator) -> list[Dialogue]:
    """The same with what took longest, and a few drills: with all of them at once nothing else would be learned."""
    return _drilled(clip, rng, [_LAST_WEIGHT.get(question.kind, _LAST_WEIGHT_OF_OTHERS) for question in clip.questions])


def drilled_talk(clip: Clip, rng: np.random.Generator) -> list[Dialogue]:
    """A caption, every question as often as any other, and the drills."""
    return _drilled(clip, rng, [1.0] * len(clip.questions))


def even_talk(clip: Clip, rng: np.random.Generator) -> list[Dialogue]:
    """A caption, and every question as often as any other."""
    return _talk(clip, rng, [1.0] * len(clip.questions))


def _drilled(clip: Clip, rng: np.random.Generator, often: list[float]) -> list[Dialogue]:
    choices = [question for question in clip.questions if question.choices]
    one, given, answered = some(choices, 3, rng)
    told = [*of_acts(clip.truth, rng), of_flashes(clip.truth), lettered(one, rng)]
    return [*_talk(clip, rng, often), *some(told, 1, rng), given_away(given), answered_first(answered)]


def _talk(clip: Clip, rng: np.random.Generator, often: list[float]) -> list[Dialogue]:
    weights = np.array(often)
    count = min(_QUESTIONS_A_CLIP, len(clip.questions))
    picked = rng.choice(len(clip.questions), count, replace=False, p=weights / weights.sum())
    talks = [Dialogue(str(rng.choice(CAPTION_PROMPTS)), clip.caption, "caption")]
    return talks + [_dialogue(clip, int(index)) for index in picked]


def exam_talk(clip: Clip) -> list[Dialogue]:
    """The caption, every plain question, and every third with choices."""
    plain = [index for index, question in enumerate(clip.questions) if not question.choices]
    choice = [index for index, question in enumerate(clip.questions) if question.choices][::3]
    return [
        Dialogue(CAPTION_PROMPTS[0], clip.caption, "caption"),
        *(_dialogue(clip, index) for index in plain + choice),
    ]


def _dialogue(clip: Clip, index: int) -> Dialogue:
    question = clip.questions[index]
    return Dialogue(question.prompt, question.answer, question.kind)
