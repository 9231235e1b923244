"""What can be said about a clip: its caption and its questions.

Every answer is one or two words and follows from the clip's truth. A question says what it hangs on: `early` (the
answer shows only in the first of several acts), `few` (it shows in a moment, so in few tokens), or `any`.
A question with choices is put as every multiple choice is here (see vlm/choices.py); its answer is the letter.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from mlb_batch.tiny.truth import Act, Flash, Truth
from mlb_batch.tiny.words import COLOURS, DIRECTIONS, NUMBERS, PLACES, SHAPES
from mlb_batch.vlm.choices import LETTERS, choice_text

CAPTION_PROMPTS = (
    "Describe the video in detail.",
    "Describe the video.",
    "What happens in the video?",
    "Describe this clip in one sentence.",
)
KINDS = (
    "first_colour", "first_shape", "last_colour", "last_shape", "direction", "place", "after", "before", "order",
    "exists", "count_shapes", "when", "count_flashes", "flash_colour", "flash_shape", "flash_place", "flash_when",
    "choice",
)  # fmt: skip
_WHEN = ("start", "middle", "end")


@dataclass(frozen=True)
class Question:
    kind: str
    text: str
    answer: str
    hangs_on: str
    choices: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """The text as the model sees it."""
        return choice_text(self.text, self.choices) if self.choices else self.text


def caption(truth: Truth) -> str:
    """One sentence an act, then one a flash, each in time order; nothing that is not so."""
    return " ".join([*(act_sentence(act) for act in truth.acts), *(_flash_sentence(flash) for flash in truth.flashes)])


def ask(truth: Truth, rng: np.random.Generator) -> tuple[Question, ...]:
    """Every question that this clip can answer, and as many again with choices."""
    plain = _about_ends(truth) + _about_each(truth) + _about_order(truth, rng) + _about_flashes(truth)
    acts = [act.name for act in truth.acts]
    return tuple(plain + [with_choices(question, rng, acts) for question in plain])


def _an(name: str) -> str:
    return f"An {name}" if name[0] in "aeiou" else f"A {name}"


def act_sentence(act: Act) -> str:
    return f"{_an(act.name)} moves {act.direction}." if act.direction else f"{_an(act.name)} stays at the {act.place}."


def _flash_sentence(flash: Flash) -> str:
    return f"{_an(flash.colour)} {flash.shape} flashes at the {flash.place}."


def _question(kind: str, text: str, answer: str, hangs_on: str) -> Question:
    return Question(kind, text, answer[0].upper() + answer[1:], hangs_on)


def _about_ends(truth: Truth) -> list[Question]:
    first, last = truth.acts[0], truth.acts[-1]
    early = "early" if len(truth.acts) > 1 else "any"
    return [
        _question("first_colour", "What colour is the first shape?", first.colour, early),
        _question("first_shape", "What shape comes first?", first.shape, early),
        _question("last_colour", "What colour is the last shape?", last.colour, "any"),
        _question("last_shape", "What shape comes last?", last.shape, "any"),
        _question("count_shapes", "How many shapes move or stay?", NUMBERS[len(truth.acts)], "any"),
    ]


def _about_each(truth: Truth) -> list[Question]:
    questions = []
    for index, act in enumerate(truth.acts):
        hangs_on = "early" if index == 0 and len(truth.acts) > 1 else "any"
        if act.direction:
            text = f"Which direction does the {act.name} move?"
            questions.append(_question("direction", text, act.direction, hangs_on))
        else:
            assert act.place
            questions.append(_question("place", f"Where does the {act.name} stay?", act.place, hangs_on))
        when = _third(truth, act)
        if when and (act.end - act.start) * 2 <= truth.frames:
            questions.append(_question("when", f"When does the {act.name} appear?", when, hangs_on))
    return questions


def _about_order(truth: Truth, rng: np.random.Generator) -> list[Question]:
    questions = []
    for index, (act, following) in enumerate(zip(truth.acts[:-1], truth.acts[1:], strict=True)):
        early = "early" if index == 0 else "any"
        questions.append(_question("after", f"What comes after the {act.name}?", following.name, "any"))
        questions.append(_question("before", f"What comes before the {following.name}?", act.name, early))
    if len(truth.acts) > 1:
        one, other = (truth.acts[i] for i in rng.choice(len(truth.acts), 2, replace=False))
        answer = "yes" if one.start < other.start else "no"
        hangs_on = "early" if truth.acts[0] in (one, other) else "any"
        questions.append(_question("order", f"Does the {one.name} come before the {other.name}?", answer, hangs_on))
    return [*questions, _exists(truth, rng)]


def _exists(truth: Truth, rng: np.random.Generator) -> Question:
    """Asked of a shape that is there, or of one that shares only its colour or only its shape with one that is."""
    act = truth.acts[int(rng.integers(len(truth.acts)))]
    hangs_on = "early" if act is truth.acts[0] and len(truth.acts) > 1 else "any"
    if rng.random() < 0.5:
        return _question("exists", f"Is there a {act.name}?", "yes", hangs_on)
    things: list[Act | Flash] = [*truth.acts, *truth.flashes]
    seen = {f"{thing.colour} {thing.shape}" for thing in things}
    return _question("exists", f"Is there a {near_miss(act.colour, act.shape, seen, rng)}?", "no", "any")


def near_miss(colour: str, shape: str, seen: Collection[str], rng: np.random.Generator) -> str:
    """The name of something that was not seen and shares a colour or a shape with this."""
    near = [f"{other} {shape}" for other in COLOURS] + [f"{colour} {other}" for other in SHAPES]
    absent = [name for name in near if name not in seen]
    return absent[int(rng.integers(len(absent)))]


def _about_flashes(truth: Truth) -> list[Question]:
    count = len(truth.flashes)
    questions = [_question("count_flashes", "How many flashes are there?", NUMBERS[count], "few")]
    if count == 1:
        flash = truth.flashes[0]
        questions += [
            _question("flash_colour", "What colour is the flash?", flash.colour, "few"),
            _question("flash_shape", "What shape is the flash?", flash.shape, "few"),
            _question("flash_place", "Where is the flash?", flash.place, "few"),
        ]
        when = _third(truth, flash)
        if when:
            questions.append(_question("flash_when", "When is the flash?", when, "few"))
    return questions


def _third(truth: Truth, thing: Act | Flash) -> str | None:
    """Which third of the clip a thing's middle falls in; None near a border, where an answer would be a coin's toss."""
    middle = (thing.start + thing.end) / 2 / truth.frames
    if min(abs(middle - 1 / 3), abs(middle - 2 / 3)) < 0.04:
        return None
    return _WHEN[int(middle * 3)]


def with_choices(question: Question, rng: np.random.Generator, true_of_others: Collection[str] = ()) -> Question:
    """The same question with two to four options, the right one among them and nothing that is nearly as right."""
    answer = question.answer.lower()
    pool = [option for option in _alternatives(answer, rng) if option != answer and option not in true_of_others]
    most = int(rng.integers(1, 4))
    if not pool:  # by chance all that was drawn is true; a stream of its own leaves the questions behind it as they are
        every = (f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
        pool = [name for name in every if name != answer and name not in true_of_others]
        rng = rng.spawn(1)[0]
    count = min(most, len(pool))
    options = [answer, *(pool[i] for i in rng.choice(len(pool), count, replace=False))]
    order = [options[i] for i in rng.permutation(len(options))]
    return replace(question, kind="choice", answer=LETTERS[order.index(answer)], choices=tuple(order))


def _alternatives(answer: str, rng: np.random.Generator) -> list[str]:
    for pool in (COLOURS, SHAPES, DIRECTIONS, PLACES, NUMBERS[:5], _WHEN, ("yes", "no")):
        if answer in pool:
            return list(pool)
    colour, shape = answer.split()
    others = [f"{rng.choice(COLOURS)} {rng.choice(SHAPES)}" for _ in range(3)]
    return list(dict.fromkeys([*others, f"{colour} {rng.choice(SHAPES)}", f"{rng.choice(COLOURS)} {shape}"]))
