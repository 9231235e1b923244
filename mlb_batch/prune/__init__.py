"""The registry of methods, and how a job's options become one.

A method is a frozen dataclass with `schedule` (where tokens leave: arithmetic, no model) and `pick` (which stay: a
pure function of a View). Adding one is a file with both and a line in METHODS. One that is no plain choice of tokens
(it may keep fewer than asked, has segments, needs room in the context) says so by deriving from Traits.

adatp.py, mlb.py   reconstructions of two papers; PROVENANCE.md labels every step
similarity.py      two families that ask no query; baselines.py: what all are held against
method.py          what a method is; view.py: what it sees, and what it answers
scores.py          tensor helpers that methods share
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mlb_batch.cost.schedule import ClipShape, Schedule
from mlb_batch.cost.shapes import ModelShape
from mlb_batch.errors import SpecError
from mlb_batch.prune.adatp import AdaTP
from mlb_batch.prune.baselines import FastV, Frames, Pool, Random, Uniform, Vanilla
from mlb_batch.prune.method import Method, Traits
from mlb_batch.prune.mlb import Mlb, MlbG, SegAttn
from mlb_batch.prune.similarity import Density, Unique
from mlb_batch.prune.view import Pick, View

METHODS: dict[str, Method] = {  # name -> the method with its defaults
    "none": Vanilla(),
    "adatp": AdaTP(),
    "segattn": SegAttn,
    "mlb-g": MlbG,
    "mlb": Mlb(),
    "fastv": FastV(),
    "random": Random(),
    "uniform": Uniform(),
    "pool": Pool(),
    "frames": Frames(),
    "density": Density(),
    "unique": Unique(),
}


@dataclass(frozen=True)
class Pruning:
    """A method as a job uses it: with or without a selection for every prompt, with or without compacted caches.

    `see_all`: a clip's keep comes from what all of its frames show. It changes a price and no text, so that it is no
    part of the record.
    """

    name: str
    method: Method
    select: str = "per_prompt"
    compact: bool = False
    see_all: bool = field(default=False, repr=False)

    def schedule(self, shape: ModelShape, clip: ClipShape, keep: int) -> Schedule:
        schedule = self.method.schedule(shape, clip, keep)
        fork = schedule.fork and self.select == "per_prompt" and len(clip.suffixes) > 1
        return replace(schedule, fork=fork, compact=self.compact, see_all=self.see_all)

    def pick(self, view: View, keep: int) -> Pick:
        return self.method.pick(view, keep)

    @property
    def traits(self) -> Traits:
        return self.method if isinstance(self.method, Traits) else Traits()

    def positions(self, schedule: Schedule, clip: ClipShape) -> int:
        """How many a one-pass method's visual tokens take."""
        return schedule.kept(clip) if self.traits.renumbers else clip.visual


def named(name: str, key: str = "prune.method") -> Method:
    """The method with its defaults; `key` is where the job names it."""
    if name not in METHODS:
        raise SpecError(f"{key}: {name!r} is not a method; one of {', '.join(METHODS)}{_nearest(name, METHODS)}")
    return METHODS[name]


def make(name: str, options: Mapping[str, Any] | None = None, select: str = "per_prompt", compact: bool = False,
         paired: bool = False, new_tokens: int = 0) -> Pruning:  # fmt: skip
    """The method that a job names. `paired`: a text/vision model is at hand; without one AdaTP uses attention.

    `new_tokens`: of the longest answer, for which the context has to have room too.
    """
    options = options or {}
    method = _with_options(named(name), options)
    if isinstance(method, AdaTP) and not paired:
        if "features" in options and method.uses_pair:
            raise SpecError("prune.options.features: paired needs prune.feature_model; name one, or use attention")
        method = replace(method, features="attention")
    if isinstance(method, Mlb):
        method = replace(method, room=max(method.room, new_tokens))
    return Pruning(name, method, select, compact)


def _with_options(method: Any, options: Mapping[str, Any]) -> Any:
    fields = {f.metadata.get("option", f.name): f for f in dataclasses.fields(method)}
    for key, value in options.items():
        if key not in fields:
            raise SpecError(
                f"prune.options.{key}: not an option of this method; "
                f"{'one of ' + ', '.join(fields) if fields else 'it has none'}{_nearest(key, fields)}"
            )
        _check_value(key, value, fields[key], getattr(method, fields[key].name))
    return replace(
        method, **{fields[k].name: _one_spelling(v, getattr(method, fields[k].name)) for k, v in options.items()}
    )


def _one_spelling(value: Any, default: Any) -> Any:
    """2 and 2.0 are the same job."""
    if isinstance(value, (list, tuple)):
        return tuple(map(float, value))
    return float(value) if isinstance(default, float) else value


def _check_value(key: str, value: Any, field: dataclasses.Field[Any], default: Any) -> None:
    one_of, least, most = (field.metadata.get(name) for name in ("one_of", "least", "most"))
    if isinstance(value, (list, tuple)) and field.metadata.get("steps"):
        if not all(_is_a(step, 0.0) and 0 <= step <= 1 for step in value) or list(value) != sorted(value):
            raise SpecError(f"prune.options.{key}: {value!r} are not steps that rise from 0 to 1")
    elif one_of and value not in one_of:
        raise SpecError(f"prune.options.{key}: {value!r} is not one of {', '.join(one_of)}")
    elif not one_of and not _is_a(value, default):
        raise SpecError(f"prune.options.{key}: {value!r} is not a {type(default).__name__}")
    elif least is not None and value < least:
        raise SpecError(f"prune.options.{key}: {value!r} is too small; at least {least}")
    elif most is not None and value > most:
        raise SpecError(f"prune.options.{key}: {value!r} is too large; at most {most}")


def _is_a(value: Any, default: Any) -> bool:
    """A value of the default's type; a whole number is a float too, and one without end is none."""
    if isinstance(default, float):
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is type(default)


def _nearest(word: str, words: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(word, words, 1)
    return f"; did you mean {close[0]!r}?" if close else ""
