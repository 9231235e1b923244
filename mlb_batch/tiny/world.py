"""The procedural world: a seed -> a clip whose truth is known.

A clip is one to four *acts* in a row; in each act one coloured shape either crosses the frame (left, right, up, down)
or stays in a corner. *Flashes* are small shapes that show for a moment beside the act. A grey *flicker* at a fixed
place is a distractor that no question asks for, and a *cut* changes the background between two acts. Time is
continuous, so a clip of 64 frames is the same kind of film as one of 16.

Seeds under HELD_OUT_FROM are for training; those from it on are for tests and evaluation: no training ever draws one.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from mlb_batch.tiny.questions import Question, ask, caption
from mlb_batch.tiny.render import RGB, Sprite, draw
from mlb_batch.tiny.truth import Act, Flash, Truth
from mlb_batch.tiny.words import COLOURS, DIRECTIONS, PLACES, SHAPES

HELD_OUT_FROM = 1_000_000_000
WORLD_PX = 64
MIN_ACT_FRAMES = 4

CORNER = {
    "top left": (0.28, 0.28),
    "top right": (0.72, 0.28),
    "bottom left": (0.28, 0.72),
    "bottom right": (0.72, 0.72),
}
_HEADING = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_TRAVEL = 0.56  # how far a mover goes, as a share of the frame
_FLASH_CLEARANCE = 0.34  # least distance of a flash from the act's shape


Shown = tuple[Act | Flash, Sprite]  # a thing, and where it is in one frame


@dataclass(frozen=True, eq=False)
class Clip:
    pixels_FHWC: NDArray[np.uint8]
    truth: Truth
    caption: str
    questions: tuple[Question, ...]
    shown: tuple[Shown, ...]  # every thing in every frame that it is in


def make_clip(
    seed: int, frames: int, *, size: int = WORLD_PX, max_acts: int = 4, max_flashes: int = 3, least_flash: int = 1
) -> Clip:
    """The same arguments give the same clip, bit for bit. No flash is shorter than `least_flash` frames."""
    plot, pixels, talk = (np.random.default_rng((seed, frames, stream)) for stream in range(3))
    truth, shown, flicker, background_FC = _imagine(plot, frames, max_acts, max_flashes, least_flash)
    sprites = flicker + [sprite for _, sprite in shown]
    return Clip(draw(background_FC, sprites, size, pixels), truth, caption(truth), ask(truth, talk), tuple(shown))


def _imagine(
    rng: np.random.Generator, frames: int, max_acts: int, max_flashes: int, least_flash: int
) -> tuple[Truth, list[Shown], list[Sprite], NDArray[np.uint8]]:
    acts = _acts(rng, frames, max_acts)
    in_acts: list[Shown] = [(act, sprite) for act in acts for sprite in _act_sprites(rng, act)]
    free = [name for name in product(COLOURS, SHAPES) if name not in {(act.colour, act.shape) for act in acts}]
    flashes, in_flashes = _flashes(rng, frames, max_flashes, least_flash, [sprite for _, sprite in in_acts], free)
    cuts = tuple(act.start for act in acts[1:] if rng.random() < 0.5)
    where = (float(rng.uniform(0.08, 0.92)), float(rng.uniform(0.08, 0.92))) if rng.random() < 0.5 else None
    flicker_sprites = _flicker_sprites(rng, frames, where) if where else []
    truth = Truth(frames, acts, flashes, where, cuts)
    return truth, in_acts + in_flashes, flicker_sprites, _background(rng, frames, cuts)


def _acts(rng: np.random.Generator, frames: int, max_acts: int) -> tuple[Act, ...]:
    count = int(rng.integers(1, min(max_acts, frames // MIN_ACT_FRAMES) + 1))
    spare = frames - count * MIN_ACT_FRAMES
    inner = np.sort(rng.integers(0, spare + 1, count - 1)) + MIN_ACT_FRAMES * np.arange(1, count)
    edges = [0, *(int(edge) for edge in inner), frames]
    names = rng.choice(len(COLOURS) * len(SHAPES), count, replace=False)
    acts = []
    for name, start, end in zip(names, edges[:-1], edges[1:], strict=True):
        colour, shape = COLOURS[name // len(SHAPES)], SHAPES[name % len(SHAPES)]
        moves = rng.random() < 0.6
        direction = str(rng.choice(DIRECTIONS)) if moves else None
        acts.append(Act(colour, shape, direction, None if moves else str(rng.choice(PLACES)), start, end))
    return tuple(acts)


def _act_sprites(rng: np.random.Generator, act: Act) -> list[Sprite]:
    radius = float(rng.uniform(0.11, 0.15))
    if act.place:
        x, y = (centre + float(rng.uniform(-0.05, 0.05)) for centre in CORNER[act.place])
        heading = (0, 0)
    else:
        assert act.direction
        heading = _HEADING[act.direction]
        lane = float(rng.uniform(0.22, 0.78))
        x, y = (0.5, lane) if heading[0] else (lane, 0.5)
    sprites = []
    for frame in range(act.start, act.end):
        along = _TRAVEL * ((frame - act.start + 0.5) / (act.end - act.start) - 0.5)
        at = (x + heading[0] * along, y + heading[1] * along)
        sprites.append(Sprite(frame, at[0], at[1], radius, act.shape, RGB[act.colour]))
    return sprites


def _flashes(
    rng: np.random.Generator, frames: int, max_flashes: int, least_flash: int, act_sprites: list[Sprite],
    names: list[tuple[str, str]],
) -> tuple[tuple[Flash, ...], list[Shown]]:  # fmt: skip
    """Flashes at different times, each clear of the act's shape; one that finds no place is left out.

    `names`: those that no act has. A question names an act, and means one thing.
    """
    wanted = min(int(rng.choice(4, p=(0.2, 0.5, 0.2, 0.1))), max_flashes, frames // 8)
    flashes: list[Flash] = []
    shown: list[Shown] = []
    busy: set[int] = set()
    for _ in range(wanted * 8):
        if len(flashes) == wanted:
            break
        length = max(least_flash, int(rng.integers(max(1, frames // 32), max(1, frames // 16) + 1)))
        start = int(rng.integers(0, frames - length + 1))
        span = range(start, start + length)
        place = str(rng.choice(PLACES))
        x, y = (centre + float(rng.uniform(-0.06, 0.06)) for centre in CORNER[place])
        clear = all(np.hypot(act_sprites[frame].x - x, act_sprites[frame].y - y) > _FLASH_CLEARANCE for frame in span)
        if not clear or busy & set(span):
            continue
        busy |= set(range(start - 1, start + length + 1))
        flash = Flash(*names[int(rng.integers(len(names)))], place, start, start + length)
        radius = float(rng.uniform(0.10, 0.12))
        flashes.append(flash)
        shown += [(flash, Sprite(frame, x, y, radius, flash.shape, RGB[flash.colour])) for frame in span]
    return tuple(sorted(flashes, key=lambda flash: flash.start)), shown


def _flicker_sprites(rng: np.random.Generator, frames: int, where: tuple[float, float]) -> list[Sprite]:
    greys = rng.integers(60, 150, frames)
    return [Sprite(frame, *where, 0.08, "square", (grey, grey, grey)) for frame, grey in enumerate(greys.tolist())]


def _background(rng: np.random.Generator, frames: int, cuts: tuple[int, ...]) -> NDArray[np.uint8]:
    background_FC = np.empty((frames, 3), np.uint8)
    for start in (0, *cuts):
        background_FC[start:] = int(rng.integers(10, 60)) + rng.integers(-10, 11, 3)
    return background_FC
