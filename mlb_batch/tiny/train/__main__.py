"""`python -m mlb_batch.tiny.train video|paired`: trains, resumes by itself, and exports with --export.

Checkpoints and logs lie under .cache/train; delete a folder there to start that lesson again. `paired` begins with the
vision layers that `video` has learned, so it comes second.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from mlb_batch.tiny.train import paired, video
from mlb_batch.tiny.train.export import export
from mlb_batch.tiny.train.loop import Pace, train


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mlb_batch.tiny.train", description=__doc__)
    parser.add_argument("what", choices=("video", "paired"))
    parser.add_argument("--steps", type=int, default=10**9, help="stop after this step of the last lesson")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(".cache/train"))
    parser.add_argument("--export", action="store_true", help="measure what was learned and write it into the package")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    (_video if args.what == "video" else _paired)(args)


def _video(args: argparse.Namespace) -> None:
    model = video.fresh_model(args.seed)
    train(video.frame_task(model, args.seed), Pace(args.folder / "video-frames", 10**9))
    task, pace = video.clip_task(model, args.seed), Pace(args.folder / "video-clips", args.steps)
    train(task, pace)
    if args.export:
        figures = video.final_exam(model, args.seed)
        export("tiny", model, figures, "video", args.seed, min(args.steps, task.steps))


def _paired(args: argparse.Namespace) -> None:
    task_model = paired.fresh_model(args.seed, _video_tower(args.folder))
    task = paired.task(task_model, args.seed)
    train(task, Pace(args.folder / "paired", args.steps, measure_every=100, save_every=100))
    if args.export:
        export("tiny-paired", task_model, task.measure(0), "paired", args.seed, min(args.steps, task.steps))


def _video_tower(folder: Path) -> dict[str, Tensor]:
    path = folder / "video-frames" / "last.pt"
    if not path.exists():
        raise SystemExit(f"{path} is not there: run `python -m mlb_batch.tiny.train video` first")
    student = torch.load(path, weights_only=True)["model"]
    return {key.removeprefix("tower."): value for key, value in student.items() if key.startswith("tower.")}


if __name__ == "__main__":
    main()
