"""`python -m mlb_batch.tiny.train video|paired|image`: trains, resumes by itself, and exports into the package.

Checkpoints and logs lie under .cache/train; delete a folder there to start that lesson again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from mlb_batch.tiny.train import video
from mlb_batch.tiny.train.loop import Pace, train


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mlb_batch.tiny.train", description=__doc__)
    parser.add_argument("what", choices=("video",))
    parser.add_argument("--steps", type=int, default=10**9, help="stop after this step of the last lesson")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(".cache/train"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = video.fresh_model(args.seed)
    train(video.frame_task(model, args.seed), Pace(args.folder / "video-frames", 10**9))
    train(video.clip_task(model, args.seed), Pace(args.folder / "video-clips", args.steps))


if __name__ == "__main__":
    main()
