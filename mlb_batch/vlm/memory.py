"""What a device has left, and how it says that it has no more."""

from __future__ import annotations

import torch

_USED = 0.9  # of what is left; the rest is lost between blocks, or taken by who shares the device


def keep_to(device: torch.device, share: float) -> None:
    """Where several processes stand on one GPU, none takes what another was promised."""
    if device.type == "cuda" and share < 1:
        torch.cuda.set_per_process_memory_fraction(share, device)


def room_bytes(device: torch.device) -> int | None:
    """For clips, torch's own reserve included. None on a CPU: batches are small there, and memory is everyone's."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    granted = total * torch.cuda.get_per_process_memory_fraction(device)
    ours = min(free + torch.cuda.memory_reserved(device), granted)
    return int(_USED * (ours - torch.cuda.memory_allocated(device)))


def is_out_of_memory(error: Exception) -> bool:
    """A GPU without memory has an error of its own; torch's allocator on the CPU says it in words only."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
