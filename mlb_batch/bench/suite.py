"""The table of benchmarks, and how those that were asked for are run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mlb_batch.bench.options import Options
from mlb_batch.errors import SpecError
from mlb_batch.spec_text import did_you_mean

Figures = dict[str, Any]
Say = Callable[[str], None]

ON_A_SHAPE = ("vision", "prefill", "generate", "captioner")  # on one set of random weights
NAMES = ("calibrate", "read", *ON_A_SHAPE, "pipeline", "scale")


def bench(names: Sequence[str], options: Options, say: Say) -> Figures:
    """Figures by benchmark, all in this process, one after the other; none named: all."""
    for name in names:
        if name not in NAMES:
            raise SpecError(f"bench: {name!r} is no benchmark{did_you_mean(name, NAMES)}; one of {', '.join(NAMES)}")
    from mlb_batch.bench.figures import lines, plain
    from mlb_batch.bench.run import machine_of, runner

    run, found = runner(options), {}
    for name in names or NAMES:
        say(f"{name} ...")
        found[name] = run(name)
        say("\n".join(f"  {line}" for line in lines(found[name])))
    return {"machine": plain(machine_of(options)), "benchmarks": plain(found)}
