"""`python -m mlb_batch.tiny.train video|paired|image`: trains, resumes by itself, and exports with --export.

Checkpoints and logs lie under .cache/train; delete a folder there to start that lesson again. `paired` begins with the
vision layers that `video` has learned, so it comes second.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from torch import Tensor

from mlb_batch.tiny.architectures import IMAGE_LAYERS, VIDEO_LAYERS
from mlb_batch.tiny.train import image, paired, video
from mlb_batch.tiny.train.drawing import Lesson
from mlb_batch.tiny.train.export import as_stored, export
from mlb_batch.tiny.train.grow import grow
from mlb_batch.tiny.train.loop import Pace, train
from mlb_batch.tiny.train.reading import text_tasks


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mlb_batch.tiny.train", description=__doc__)
    parser.add_argument("what", choices=("video", "paired", "image"))
    parser.add_argument("--steps", type=int, default=10**9, help="stop after so many steps past the first lesson")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--folder", type=Path, default=Path(".cache/train"))
    parser.add_argument("--export", action="store_true", help="measure what was learned and write it into the package")
    args = parser.parse_args()
    if args.seed:
        args.folder /= f"seed-{args.seed}"  # the lessons of one seed don't go on from those of another
    torch.set_num_threads(args.threads)
    args.processes = max(1, (os.cpu_count() or 1) - 2) if args.device != "cpu" else 0  # a GPU waits for its batches
    {"video": _video, "paired": _paired, "image": _image}[args.what](args)


def _video(args: argparse.Namespace) -> None:
    shallow = video.fresh_model(args.seed, video.SHALLOW_LAYERS).to(args.device)
    for lesson in video.frame_tasks(shallow, args.seed):
        train(lesson, Pace(args.folder / lesson.name, 10**9))
    student = video.ClipStudent(shallow)
    for lesson in text_tasks(student, video.reader_of(shallow), args.seed):
        train(lesson, Pace(args.folder / lesson.name, 10**9, measure_every=100, save_every=100))
    done = _clips(args, "video-shallow", student, 0, video.SHALLOW_LESSONS, 5e-4, 0)
    student = video.grown(student, video.fresh_model(args.seed, VIDEO_LAYERS).to(args.device))
    done = _clips(args, "video-deep", student, 1, video.DEEP_LESSONS, 3e-4, done)
    done = _clips(args, "video-last", student, 2, video.LAST_LESSONS, 3e-4, done)
    for number, stage in enumerate(video.STAGES_ON_A_PACKAGE, 3):
        as_stored(student.model)  # what goes on from here can go on from a package, too
        student = video.ClipStudent(student.model, stage.noted)
        done = _clips(args, stage.name, student, number, stage.lessons, stage.peak_lr, done)
    if args.export:
        figures = video.final_exam(student.model, args.seed)
        export("tiny", student.model, figures, "video", args.seed, min(args.steps, done))


def _clips(args: argparse.Namespace, name: str, student: video.ClipStudent, number: int,
           lessons: tuple[Lesson, ...], peak_lr: float, done: int) -> int:  # fmt: skip
    """One stage of clip lessons, up to the step at which the user stops; how many steps are behind it."""
    task = video.clip_task(student, args.seed + number, lessons, peak_lr, args.processes)
    train(task, Pace(args.folder / name, args.steps - done, measure_every=250, save_every=50))
    return done + task.steps


def _paired(args: argparse.Namespace) -> None:
    task_model = paired.fresh_model(args.seed, _video_tower(args.folder)).to(args.device)
    task = paired.task(task_model, args.seed)
    train(task, Pace(args.folder / "paired", args.steps, measure_every=100, save_every=100))
    if args.export:
        as_stored(task_model)
        export("tiny-paired", task_model, task.measure(0), "paired", args.seed, min(args.steps, task.steps))


def _image(args: argparse.Namespace) -> None:
    shallow = image.fresh_model(args.seed, image.SHALLOW_LAYERS).to(args.device)
    train(image.frame_task(shallow, args.seed), Pace(args.folder / "image-frames", 10**9))
    first = image.scene_task(shallow, args.seed, image.SHALLOW_STEPS, image.DRILLS_FROM, processes=args.processes)
    train(first, Pace(args.folder / "image-shallow", args.steps, measure_every=100, save_every=50))
    model = grow(shallow, image.fresh_model(args.seed, IMAGE_LAYERS).to(args.device))
    deep = image.scene_task(model, args.seed + 1, image.DEEP_STEPS, processes=args.processes)
    train(deep, Pace(args.folder / "image-deep", args.steps - first.steps, measure_every=100, save_every=50))
    as_stored(model)  # what goes on from here can go on from a package, too
    done = first.steps + deep.steps
    long = image.long_task(model, args.seed + 2, args.processes)
    train(long, Pace(args.folder / "image-long", args.steps - done, measure_every=250, save_every=50))
    if args.export:
        figures = image.final_exam(model, args.seed)
        export("tiny-image", model, figures, "image", args.seed, min(args.steps, done + long.steps))


def _video_tower(folder: Path) -> dict[str, Tensor]:
    path = folder / "video-places" / "last.pt"
    if not path.exists():
        raise SystemExit(f"{path} is not there: run `python -m mlb_batch.tiny.train video` first")
    student = torch.load(path, weights_only=True, map_location="cpu")["model"]
    return {key.removeprefix("tower."): value for key, value in student.items() if key.startswith("tower.")}


if __name__ == "__main__":
    main()
