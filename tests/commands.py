"""Commands as processes of their own: started, waited for, the processes under them found, and all of them killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlb_batch.processes import below

MLB_BATCH = str(Path(sys.executable).parent / "mlb-batch")
# What Ray's processes call themselves on their command lines.
READER, CAPTIONER, RAYLET = "MapBatches(ReadFrames)", "MapBatches(Caption)", "raylet/raylet "
PATIENCE_S = 240.0


def start(*command: str, **environment: str) -> subprocess.Popen[str]:
    """A command in a process group of its own."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdout=pipe, stderr=pipe, stdin=subprocess.DEVNULL, text=True, start_new_session=True,
        env=os.environ | environment,
    )  # fmt: skip


def mlb_batch(*arguments: str, **environment: str) -> tuple[int, dict[str, Any], str]:
    """A whole command: its exit code, the JSON of stdout's last line, and stderr."""
    process = start(MLB_BATCH, *arguments, **environment)
    out, err = process.communicate(timeout=1500)
    last = out.strip().splitlines()[-1] if out.strip() else "{}"
    return process.returncode, json.loads(last), err


def until(true: Callable[[], object], what: str) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end_s, f"{what} did not come within {PATIENCE_S:.0f} s"
        time.sleep(0.2)


def descendants(pid: int) -> dict[int, str]:
    """Every process under this one, with its command line."""
    return {one.pid: one.read("cmdline").decode().replace("\0", " ") for one in below(pid)}


def found(process: subprocess.Popen[str], part: str) -> list[int]:
    """The processes under a command whose command line has `part`."""
    return [pid for pid, line in descendants(process.pid).items() if part in line]


def kill_all(process: subprocess.Popen[str]) -> None:
    """A command and everything under it."""
    for pid in [process.pid, *descendants(process.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()
