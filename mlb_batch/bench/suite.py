"""The table of benchmarks and of the options that each takes, and how those that were asked for are run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mlb_batch.bench.options import Options, flag
from mlb_batch.errors import SpecError
from mlb_batch.spec_text import did_you_mean

Figures = dict[str, Any]
Say = Callable[[str], None]

_TIMED = {"rounds", "device", "threads"}
_PREFILL = {"shape", "frames", "batch", "method", "ratio"}
TAKES = {
    "calibrate": _TIMED | {"job", "sets", "model", "frames", "new_tokens", "batch", "method", "ratio"},
    "read": {"rounds", "threads", "videos", "clips"},
    "vision": _TIMED | {"shape", "frames", "batch"},
    "prefill": _TIMED | _PREFILL,
    "generate": _TIMED | _PREFILL | {"new_tokens"},
    "captioner": _TIMED | _PREFILL | {"new_tokens"},
    "pipeline": _PREFILL | {"rounds", "device", "new_tokens", "model", "videos", "clips", "readers"},
    "scale": {"device", "model", "frames", "new_tokens", "rows", "actors", "speed"},
}
NAMES = tuple(TAKES)
ON_A_SHAPE = ("vision", "prefill", "generate", "captioner")  # on one set of random weights


def bench(names: Sequence[str], options: Options, say: Say) -> Figures:
    """Figures by benchmark, all in this process, one after the other; none named: all."""
    for name in names:
        if name not in NAMES:
            raise SpecError(f"bench: {name!r} is no benchmark{did_you_mean(name, NAMES)}; one of {', '.join(NAMES)}")
    _refuse_untaken(names or NAMES, options)
    from mlb_batch.bench.figures import lines, plain
    from mlb_batch.bench.run import machine_of, runner

    run, found = runner(options), {}
    for name in names or NAMES:
        say(f"{name} ...")
        found[name] = run(name)
        say("\n".join(f"  {line}" for line in lines(found[name])))
    return {"machine": plain(machine_of(options)), "benchmarks": plain(found)}


def _refuse_untaken(names: Sequence[str], options: Options) -> None:
    """An option that none of these takes would change nothing, and nobody would know."""
    taken = set[str]().union(*(TAKES[name] for name in names))
    untaken = [option for option in options.given if option not in taken]
    takers = {option: [name for name, takes in TAKES.items() if option in takes] for option in untaken}
    if takers:
        asked = " ".join(names)
        raise SpecError("\n".join(
            f"bench {asked}: {flag(option)} goes with {', '.join(some)}" for option, some in takers.items()
        ))  # fmt: skip
