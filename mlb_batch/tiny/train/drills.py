"""What is said in lessons only: each step of an answer by itself, one word after what it follows from.

A question takes several steps (find its word for a thing, look for the thing, go on from there), and none is learned
while another is missing. In a drill the step's result is the next word, so that it is learned alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np

from mlb_batch.tiny.questions import Question
from mlb_batch.tiny.train.packing import Dialogue
from mlb_batch.tiny.truth import Act, Truth
from mlb_batch.tiny.words import NUMBERS
from mlb_batch.vlm.choices import LETTERS, choice_text

Thing = TypeVar("Thing")
_ORDERS = 4  # pairs of acts in a drill


def some(things: Sequence[Thing], count: int, rng: np.random.Generator) -> list[Thing]:
    return [things[index] for index in rng.permutation(len(things))[:count].tolist()]


def of_acts(truth: Truth, rng: np.random.Generator) -> list[Dialogue]:
    """The acts backwards, each act's neighbours, and which of two came first."""
    acts = truth.acts
    talks = [
        Dialogue("Tell me the shapes from last to first.", _sentences([act.name for act in acts[::-1]]), "backwards"),
    ]
    if len(acts) > 1:
        talks.append(Dialogue("Tell me what comes before and after each.", _neighbours(acts, rng), "neighbours"))
        talks.append(Dialogue("Tell me which comes before which.", _orders(acts, rng), "orders"))
    return talks


def of_flashes(truth: Truth) -> Dialogue:
    """How many, then each by its place."""
    told = [f"{flash.place} {flash.colour} {flash.shape}" for flash in truth.flashes]
    return Dialogue("Tell me about each flash.", _sentences([NUMBERS[len(told)], *told]), "flashes")


def given_away(question: Question) -> Dialogue:
    return Dialogue(f"It is {_chosen(question)}.\n{question.prompt}", question.answer, "given away")


def answered_first(question: Question) -> Dialogue:
    """The option in words, then its letter."""
    answer = f"{_chosen(question)} {question.answer}"
    return Dialogue(f"Say the answer first.\n{question.prompt}", answer, "answered first")


def lettered(question: Question, rng: np.random.Generator) -> Dialogue:
    """Every option with its letter, in any order."""
    said = [f"{option} {letter}" for letter, option in zip(LETTERS, question.choices, strict=False)]
    prompt = choice_text("Tell me the letter of each option.", question.choices)
    return Dialogue(prompt, _sentences(rng.permutation(said).tolist()), "lettered")


def _neighbours(acts: Sequence[Act], rng: np.random.Generator) -> str:
    said = []
    for one, following in pairwise(acts):
        said += [f"after {one.name} {following.name}", f"before {following.name} {one.name}"]
    return _sentences(rng.permutation(said).tolist())


def _orders(acts: Sequence[Act], rng: np.random.Generator) -> str:
    said = []
    for _ in range(_ORDERS):
        one, other = (int(index) for index in rng.choice(len(acts), 2, replace=False))
        said.append(f"{acts[one].name} before {acts[other].name} {'yes' if one < other else 'no'}")
    return _sentences(said)


def _chosen(question: Question) -> str:
    return question.choices[LETTERS.index(question.answer)]


def _sentences(said: Sequence[str]) -> str:
    return " ".join(f"{sentence}." for sentence in said)
