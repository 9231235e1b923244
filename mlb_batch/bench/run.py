"""Each benchmark by its name; those on a shape share its weights, which are made once.

A benchmark is loaded when it runs: those on a shape need neither ray nor av, and run where there is only torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from transformers.utils import logging

from mlb_batch.bench.bed import Bed
from mlb_batch.bench.machine import machine
from mlb_batch.bench.options import Options
from mlb_batch.bench.suite import ON_A_SHAPE
from mlb_batch.vlm.load import pick_device


def runner(options: Options) -> Callable[[str], dict[str, Any]]:
    logging.set_verbosity_error()  # what transformers has to say of weights is no figure
    logging.disable_progress_bar()
    if options.threads:
        torch.set_num_threads(options.threads)

    @cache
    def bed() -> Bed:
        return Bed.made(options)

    def run(name: str) -> dict[str, Any]:
        benchmark = getattr(importlib.import_module(f"mlb_batch.bench.{name}"), name)
        figures: dict[str, Any] = benchmark(bed(), options) if name in ON_A_SHAPE else benchmark(options)
        return figures

    return run


def machine_of(options: Options) -> dict[str, Any]:
    return machine(pick_device(options.device))
