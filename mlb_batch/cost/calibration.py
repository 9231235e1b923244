"""From operations to seconds: what was measured on one device with one model, and where it is kept.

    seconds = vision operations / vision rate + (prefill + scoring operations) / prefill rate + bytes moved / byte rate

Encoding frames and prefill are bound by arithmetic; generating a token is bound by memory: it reads every
weight of the language model once for a whole batch, and each sequence's own keys and values. The two rates of
operations and the one of bytes are what a calibration measures, each as the counted amount over the seconds it took.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from mlb_batch.cache import cache_folder, writable
from mlb_batch.cost.flops import head, layer
from mlb_batch.cost.shapes import DecoderShape

NANO = 10**9


@dataclass(frozen=True)
class Calibration:
    device: str  # as the driver names it, like "NVIDIA H200" or "cpu x 2"
    kind: str  # cpu | cuda
    model: str
    revision: str
    dtype: str
    bytes_per_number: int  # of the dtype, for weights and caches
    batch: int  # sequences that generate together
    vision_flops_per_s: int
    prefill_flops_per_s: int
    generate_bytes_per_s: int
    measured_at: str  # ISO 8601, UTC; the newest one is used

    def __post_init__(self) -> None:
        rates = (self.vision_flops_per_s, self.prefill_flops_per_s, self.generate_bytes_per_s)
        assert min(*rates, self.batch, self.bytes_per_number) > 0, self

    def nanoseconds(self, vision: int, llm: int, generated_bytes: int) -> int:
        """Whole, each part rounded up."""
        return sum(
            -(-amount * NANO // rate)
            for amount, rate in (
                (vision, self.vision_flops_per_s),
                (llm, self.prefill_flops_per_s),
                (generated_bytes, self.generate_bytes_per_s),
            )
        )


def weight_numbers(d: DecoderShape) -> int:
    """Weights of the language model that one generated token reads, in its layers and the head: each is multiplied and
    added once.
    """
    return (d.layers * layer(d, 1, 0) + head(d, 1)) // 2


def generate_bytes(d: DecoderShape, cached: list[int], new_tokens: int, bytes_per_number: int, batch: int) -> int:
    """Bytes that one sequence's generation moves: its share of the weights, and its keys and values at each step."""
    passes = max(new_tokens - 1, 0)
    weights = -(-passes * weight_numbers(d) // batch)
    held = passes * sum(cached) + d.layers * passes * (passes + 1) // 2
    return bytes_per_number * (weights + 2 * d.kv_dim * held)


def store_folder() -> Path:
    return cache_folder("calibrations")


def save(calibration: Calibration, folder: Path | None = None) -> Path:
    """One file for each device, weights and dtype; a new measurement takes the place of the old one."""
    folder = writable(folder or store_folder())
    name = "\n".join((calibration.device, calibration.revision, calibration.dtype))
    path = folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"
    scratch = path.with_suffix(f".{os.getpid()}.tmp")
    scratch.write_text(json.dumps(dataclasses.asdict(calibration), indent=1))
    scratch.replace(path)
    return path


def usual_dtype(kind: str) -> str:
    """auto: bfloat16 on a GPU; fp32 on a CPU, where half precision is slower and answers differ by batch."""
    return "bfloat16" if kind == "cuda" else "float32"


def load(revision: str, device: str = "auto", dtype: str = "auto", folder: Path | None = None) -> Calibration | None:
    """The newest of those that fit."""
    return next(iter(fitting(revision, device, dtype, folder)), None)


def fitting(
    revision: str, device: str = "auto", dtype: str = "auto", folder: Path | None = None
) -> list[Calibration]:  # fmt: skip
    """The calibrations of these weights as the job asks for them, on its kind of device (auto: on any) and in its
    dtype; the newest first.
    """
    found = [c for c in map(_read, sorted((folder or store_folder()).glob("*.json"))) if c and c.revision == revision]
    there = [c for c in found if device == "auto" or device == c.kind]
    alike = [c for c in there if c.dtype == (usual_dtype(c.kind) if dtype == "auto" else dtype)]
    return sorted(alike, key=lambda c: c.measured_at, reverse=True)


def _read(path: Path) -> Calibration | None:
    """None of what this version can't read: who needs it is told to measure, and no other job stops for it."""
    try:
        return TypeAdapter(Calibration).validate_json(path.read_bytes(), strict=True)
    except (ValueError, OSError, AssertionError):
        return None
