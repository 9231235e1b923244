"""A handle on a ledger_writer process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from ledger_rows import FINGERPRINT

from mlb_batch.ledger.log import ASLEEP_S


class Writer:
    """Started on construction; ended with the `with` block, if it hasn't ended by itself."""

    def __init__(
        self,
        output: str,
        count: int,
        batch: int,
        *,
        fingerprints: list[str] | None = None,
        lease_ttl_s: float | None = None,
        asleep_s: float = ASLEEP_S,
        paced: bool = False,
        shift: int = 0,
        environment: dict[str, str] | None = None,
    ) -> None:
        script = Path(__file__).with_name("ledger_writer.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        job = {"output": output, "fingerprints": fingerprints or [FINGERPRINT], "count": count, "batch": batch}
        self.say(json.dumps({**job, "lease_ttl_s": lease_ttl_s, "asleep_s": asleep_s, "paced": paced, "shift": shift}))

    def say(self, line: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        """The next line; empty where the process has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def hear_all(self) -> list[str]:
        assert self.process.stdout is not None
        lines = self.process.stdout.read().splitlines()
        self.process.wait(60)
        return lines

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.process.kill()
        self.process.communicate()
