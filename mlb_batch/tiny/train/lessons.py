"""What is said about a clip in a lesson and in an exam."""

from __future__ import annotations

import numpy as np

from mlb_batch.tiny.questions import CAPTION_PROMPTS
from mlb_batch.tiny.train.packing import Dialogue
from mlb_batch.tiny.world import Clip

_QUESTIONS_A_CLIP = 12
# How often a kind is asked in training: those learned at once seldom, choices (as many as all others together) less.
_WEIGHT = {"first_colour": 0.5, "first_shape": 0.8, "last_colour": 0.5, "last_shape": 0.8, "choice": 0.6,
           "direction": 2.0, "place": 2.0, "exists": 2.5, "order": 2.5, "when": 2.0}  # fmt: skip


def lesson_talk(clip: Clip, rng: np.random.Generator) -> list[Dialogue]:
    """A caption and some questions, hard kinds more often."""
    weights = np.array([_WEIGHT.get(question.kind, 1.5) for question in clip.questions])
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
