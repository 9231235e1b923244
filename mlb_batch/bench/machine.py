"""What a figure was measured on, and how long to wait for it."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mlb_batch.environment import environment


def machine(device: torch.device) -> dict[str, Any]:
    here = environment([])
    return {
        "device": device_name(device),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "python": here["python"],
        "packages": {name: version for name, version in here["packages"].items() if version},
    }


def device_name(device: torch.device) -> str:
    """As a calibration is kept by: a GPU's own name, or the threads of a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} x {torch.get_num_threads()}"


def settler(device: torch.device) -> Callable[[], None]:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
