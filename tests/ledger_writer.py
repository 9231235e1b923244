"""A process that writes to a ledger, for tests to race, stop and kill: one JSON object in, its answers out as lines.

{"output": URI, "fingerprints": [..], "count": N, "batch": B, "lease_ttl_s": T or null, "asleep_s": A,
 "paced": bool, "shift": S}
For each fingerprint it opens the ledger, says "ready", waits for a line where it is paced, and commits rows S..N-1 and
0..S-1 in batches, saying "committed K" after each; it ends with "done", or with the error that stopped it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys

from ledger_rows import annotation

from mlb_batch.errors import MlbBatchError
from mlb_batch.ledger import Lease, Ledger, log


def say(text: str) -> None:
    print(text, flush=True)


def write(job: dict[str, object], fingerprint: str, lease: Lease | None) -> None:
    ledger = Ledger(str(job["output"]), fingerprint, f"run-{os.getpid()}", lease=lease)
    say("ready")
    if job["paced"]:
        sys.stdin.readline()
    count, batch = int(str(job["count"])), int(str(job["batch"]))
    done = ledger.done()
    rows = [annotation((n + int(str(job["shift"]))) % count, fingerprint) for n in range(count)]
    rows = [row for row in rows if row["annotation_id"] not in done]
    for start in range(0, len(rows), batch):
        say(f"committed {ledger.commit(rows[start : start + batch], [])}")


def main() -> int:
    job = json.loads(sys.stdin.readline())
    log.ASLEEP_S = job["asleep_s"]
    with contextlib.ExitStack() as stack:
        try:
            lease = None
            if job["lease_ttl_s"] is not None:
                lease = stack.enter_context(Lease(job["output"], f"run-{os.getpid()}", ttl_s=job["lease_ttl_s"]))
            for fingerprint in job["fingerprints"]:
                write(job, fingerprint, lease)
        except MlbBatchError as error:
            say(f"{type(error).__name__}: {error}")
            return 1
        say("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
