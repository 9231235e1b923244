"""Hypothesis inside a parametrised test: the same draws in every quick run, new ones in every slow one."""

from __future__ import annotations

import zlib
from collections.abc import Callable

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st


def each(examples: int, key: str | None, body: Callable[[st.DataObject], None]) -> None:
    """Run `body` on that many examples; `key` fixes which, None leaves them to chance."""

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def drawn(data: st.DataObject) -> None:
        body(data)

    (seed(zlib.crc32(key.encode()))(drawn) if key else drawn)()
