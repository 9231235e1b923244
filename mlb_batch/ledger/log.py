"""The log of one fingerprint: what is done, what failed so far, and the commit of new rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from mlb_batch.ledger.ids import DoneIds
from mlb_batch.ledger.lease import Lease
from mlb_batch.spec import RetrySpec


@dataclass(frozen=True)
class Attempt:
    """How often an unresolved annotation was tried, over all runs, and how it last ended."""

    attempts: int
    retryable: bool
    error_class: str


def pending(attempt: Attempt | None, retry: RetrySpec) -> bool:
    """Whether an annotation that isn't done is to be tried (again)."""
    if attempt is None or retry.errors:
        return True
    return attempt.retryable and attempt.attempts < retry.attempts


class Ledger:
    def __init__(
        self,
        output_uri: str,
        fingerprint: str,
        run_id: str,
        passthrough: pa.Schema,
        *,
        lease: Lease | None = None,
        target_file_mb: int = 256,
    ) -> None:
        """Opens the log (reads what is committed); OutputError where another schema wrote it."""
        raise NotImplementedError

    def done(self) -> DoneIds:
        raise NotImplementedError

    def attempts(self) -> Mapping[str, Attempt]:
        """By annotation id: unresolved errors so far."""
        raise NotImplementedError

    def commit(self, annotations: Sequence[Mapping[str, Any]], errors: Sequence[Mapping[str, Any]]) -> int:
        """Write the rows that aren't there yet, durably; returns how many were written.

        Rows have all columns but the stamped ones (schema_version, fingerprint, run_id, created_at).
        JobError where the storage is gone or the lease is lost.
        """
        raise NotImplementedError
