"""What a device has left, and how it says that it has no more."""

from __future__ import annotations

import torch

_USED = 0.9  # of what is left; the rest is lost between blocks, or taken by who shares the device


def room_bytes(device: torch.device) -> int | None:
    """For clips, torch's own reserve included. None on a CPU: batches are small there, and memory is everyone's."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return int(_USED * (free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)))


def is_out_of_memory(error: Exception) -> bool:
    """A GPU without memory has an error of its own; torch's allocator on the CPU says it in words only."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
