"""The table of benchmarks, and how those that were asked for are run."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any

from mlb_batch.bench.options import Options
from mlb_batch.errors import SpecError

Figures = dict[str, Any]
Say = Callable[[str], None]

ON_A_SHAPE = ("vision", "prefill", "generate", "captioner")  # on one set of random weights
NAMES = ("calibrate", "read", *ON_A_SHAPE, "pipeline", "scale")


def bench(names: Sequence[str], options: Options, say: Say) -> Figures:
    """Figures by benchmark, all in this process, one after the other; none named: all."""
    for name in names:
        if name not in NAMES:
            close = difflib.get_close_matches(name, NAMES, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise SpecError(f"bench: {name!r} is no benchmark; one of {', '.join(NAMES)}{hint}")
    from mlb_batch.bench.figures import lines, plain
    from mlb_batch.bench.run import machine_of, runner

    run, found = runner(options), {}
    for name in names or NAMES:
        say(f"{name} ...")
        found[name] = run(name)
        say("\n".join(f"  {line}" for line in lines(found[name])))
    return {"machine": plain(machine_of(options)), "benchmarks": plain(found)}
