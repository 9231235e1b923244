"""One training loop for every task: a step number -> a loss, with a log, checkpoints, and a resume that changes no bit.

Batches are made from the step's number and nothing else, so a run that was stopped goes on exactly as it would have.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

_MATRIX_RATE = 4  # Muon's steps have an even spectrum and bear a higher rate than AdamW's


@dataclass(frozen=True)
class Task:
    """What is learned: `loss` makes the batch of a step, `measure` gives figures on held-out seeds."""

    name: str
    model: nn.Module
    loss: Callable[[int], Tensor]
    measure: Callable[[int], dict[str, float]]
    steps: int
    peak_lr: float


@dataclass(frozen=True)
class Pace:
    """How often to look up: what the user sets beside the task."""

    folder: Path
    stop_at: int
    log_every: int = 25
    measure_every: int = 250
    save_every: int = 250


def train(task: Task, pace: Pace) -> list[float]:
    """Runs from the newest checkpoint (or from step 0) up to `stop_at`; returns the losses of the steps that it ran."""
    optimizers = _optimizers(task)
    step = _restore(task, optimizers, pace.folder)
    losses: list[float] = []
    started, first = time.monotonic(), step
    while step < min(pace.stop_at, task.steps):
        losses.append(_step(task, optimizers, step))
        step += 1
        if step % pace.log_every == 0:
            recent = losses[-pace.log_every :]
            pace_s = (time.monotonic() - started) / (step - first)
            _log(pace.folder, {"step": step, "loss": round(sum(recent) / len(recent), 4), "step_s": round(pace_s, 3)})
        if step % pace.measure_every == 0:
            _log(pace.folder, {"step": step, **task.measure(step)})
        if step % pace.save_every == 0 or step == min(pace.stop_at, task.steps):
            _save(task, optimizers, step, pace.folder)
    return losses


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm up over 100 steps, stay, and fall to a fiftieth over the last half: most is learned while it falls."""
    warm = min(1.0, (step + 1) / 100)
    left = (steps - step) / (steps / 2)
    return peak * warm * max(0.02, min(1.0, left))


def _optimizers(task: Task) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside layers, AdamW for the rest (embeddings, norms, biases, patches)."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in task.model.named_parameters():
        if parameter.requires_grad:
            inner = parameter.ndim == 2 and ".layers." in name
            (matrices if inner else rest).append(parameter)
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.0)]
    if matrices:
        optimizers.append(torch.optim.Muon(matrices, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def _step(task: Task, optimizers: Iterable[torch.optim.Optimizer], step: int) -> float:
    rate = learning_rate(step, task.steps, task.peak_lr)
    loss = task.loss(step)
    loss.backward()
    nn.utils.clip_grad_norm_([p for p in task.model.parameters() if p.requires_grad], 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * (_MATRIX_RATE if isinstance(optimizer, torch.optim.Muon) else 1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    value = loss.item()
    if not math.isfinite(value):
        raise RuntimeError(f"{task.name}: the loss became {value} at step {step}; the last checkpoint is from before")
    return value


def _restore(task: Task, optimizers: list[torch.optim.Optimizer], folder: Path) -> int:
    path = folder / "last.pt"
    if not path.exists():
        return 0
    saved = torch.load(path, weights_only=True, map_location="cpu")  # each takes what it holds to where it is
    task.model.load_state_dict(saved["model"])
    for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    return int(saved["step"])


def _save(task: Task, optimizers: list[torch.optim.Optimizer], step: int, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / "last.pt.part"
    states = [optimizer.state_dict() for optimizer in optimizers]
    torch.save({"step": step, "model": task.model.state_dict(), "optimizers": states}, scratch)
    scratch.rename(folder / "last.pt")


def _log(folder: Path, row: dict[str, float]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    line = json.dumps(row)
    print(line, flush=True)
    with (folder / "log.jsonl").open("a") as file:
        file.write(line + "\n")
