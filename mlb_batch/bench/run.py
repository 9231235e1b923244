"""Each benchmark by its name; those on a shape share its weights, which are made once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from mlb_batch.bench.bed import Bed
from mlb_batch.bench.calibrate import calibrate
from mlb_batch.bench.captioner import captioner
from mlb_batch.bench.generate import generate
from mlb_batch.bench.machine import machine
from mlb_batch.bench.options import Options
from mlb_batch.bench.pipeline import pipeline
from mlb_batch.bench.prefill import prefill
from mlb_batch.bench.read import read
from mlb_batch.bench.scale import scale
from mlb_batch.bench.vision import vision
from mlb_batch.vlm.load import pick_device

ON_A_SHAPE: dict[str, Callable[[Bed, Options], dict[str, Any]]] = {
    "vision": vision,
    "prefill": prefill,
    "generate": generate,
    "captioner": captioner,
}
ALONE: dict[str, Callable[[Options], dict[str, Any]]] = {
    "calibrate": calibrate,
    "read": read,
    "pipeline": pipeline,
    "scale": scale,
}


def runner(options: Options) -> Callable[[str], dict[str, Any]]:
    if options.threads:
        torch.set_num_threads(options.threads)

    @cache
    def bed() -> Bed:
        return Bed.made(options)

    return lambda name: ON_A_SHAPE[name](bed(), options) if name in ON_A_SHAPE else ALONE[name](options)


def machine_of(options: Options) -> dict[str, Any]:
    return machine(pick_device(options.device))
