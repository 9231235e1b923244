"""Still scenes for the image model: one to four shapes in different corners, with captions and questions.

The questions are those of the clips that need no time (where, which colour, what shape, how many, is there), so that an
image model that never saw a video can be asked them about one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlb_batch.tiny.questions import Question, near_miss, with_choices
from mlb_batch.tiny.render import RGB, Sprite, draw
from mlb_batch.tiny.words import COLOURS, NUMBERS, PLACES, SHAPES
from mlb_batch.tiny.world import CORNER

TELLING_PROMPT = "Tell me about each thing."
CHECKING_PROMPT = "Tell me what is there and what is not."
CAPTION_PROMPTS = ("Describe the image in detail.", "Describe the image.", "Describe this picture in one sentence.")


@dataclass(frozen=True)
class Thing:
    colour: str
    shape: str
    place: str

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True, eq=False)
class Scene:
    pixels_HWC: NDArray[np.uint8]
    things: tuple[Thing, ...]
    caption: str
    questions: tuple[Question, ...]


def make_scene(seed: int, size: int) -> Scene:
    """The same seed shows the same scene at every size."""
    plot, pixels, talk = (np.random.default_rng((seed, stream)) for stream in range(3, 6))
    count = int(plot.integers(1, 5))
    names = plot.choice(len(COLOURS) * len(SHAPES), count, replace=False)
    places = sorted(plot.choice(len(PLACES), count, replace=False).tolist())
    things = tuple(
        Thing(COLOURS[name // len(SHAPES)], SHAPES[name % len(SHAPES)], PLACES[place])
        for name, place in zip(names, places, strict=True)
    )
    sprites = [_sprite(thing, plot) for thing in things]
    if plot.random() < 0.4:
        grey = int(plot.integers(60, 150))
        x, y = plot.uniform(0, 1, 2).tolist()
        sprites.insert(0, Sprite(0, x, y, 0.08, "square", (grey, grey, grey)))
    background_1C = (int(plot.integers(10, 60)) + plot.integers(-10, 11, (1, 3))).astype(np.uint8)
    return Scene(draw(background_1C, sprites, size, pixels)[0], things, caption(things), ask(things, talk))


def caption(things: tuple[Thing, ...]) -> str:
    return " ".join(
        f"{'An' if thing.name[0] in 'aeiou' else 'A'} {thing.name} at the {thing.place}." for thing in things
    )


def tell(things: tuple[Thing, ...], rng: np.random.Generator) -> str:
    """The things in any order, and of each its three traits in any order."""
    told = [rng.permutation([thing.colour, thing.shape, thing.place]) for thing in things]
    return " ".join(f"{' '.join(told[index])}." for index in rng.permutation(len(things)))


def check(things: tuple[Thing, ...], rng: np.random.Generator) -> str:
    """What is there and as much that is not, in any order, each with a word on that."""
    said = [f"{thing.name} yes." for thing in things] + [f"{_absent(things, thing, rng)} no." for thing in things]
    return " ".join(rng.permutation(said))


def ask(things: tuple[Thing, ...], rng: np.random.Generator) -> tuple[Question, ...]:
    """Every question that the things can answer without doubt, and as many again with choices."""
    plain = [_question("count", "How many shapes are there?", NUMBERS[len(things)]), _exists(things, rng)]
    for thing in things:
        plain.append(_question("place", f"Where is the {thing.name}?", thing.place))
        if sum(other.shape == thing.shape for other in things) == 1:
            plain.append(_question("colour", f"What colour is the {thing.shape}?", thing.colour))
        if sum(other.colour == thing.colour for other in things) == 1:
            plain.append(_question("shape", f"What shape is the {thing.colour} thing?", thing.shape))
    return tuple(plain + [with_choices(question, rng) for question in plain])


def _question(kind: str, text: str, answer: str) -> Question:
    return Question(kind, text, answer[0].upper() + answer[1:], "any")


def _sprite(thing: Thing, rng: np.random.Generator) -> Sprite:
    x, y = (centre + float(rng.uniform(-0.08, 0.08)) for centre in CORNER[thing.place])
    return Sprite(0, x, y, float(rng.uniform(0.10, 0.15)), thing.shape, RGB[thing.colour])


def _exists(things: tuple[Thing, ...], rng: np.random.Generator) -> Question:
    thing = things[int(rng.integers(len(things)))]
    if rng.random() < 0.5:
        return _question("exists", f"Is there a {thing.name}?", "yes")
    return _question("exists", f"Is there a {_absent(things, thing, rng)}?", "no")


def _absent(things: tuple[Thing, ...], thing: Thing, rng: np.random.Generator) -> str:
    return near_miss(thing.colour, thing.shape, {other.name for other in things}, rng)
