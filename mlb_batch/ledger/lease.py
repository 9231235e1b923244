"""The lease: one run writes to an output at a time."""

from __future__ import annotations

from types import TracebackType


class Lease:
    """Held from `with` to its end; a heartbeat renews it every few seconds."""

    def __init__(self, output_uri: str, run_id: str, ttl_s: float = 30.0) -> None:
        raise NotImplementedError

    def __enter__(self) -> Lease:
        raise NotImplementedError

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        raise NotImplementedError

    def check(self) -> None:
        """JobError where another run took the lease over."""
        raise NotImplementedError
