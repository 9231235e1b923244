"""The embedded models: where their checkpoint folders lie.

`folder(name)` is the packaged, trained checkpoint; where none is packaged it is one with random weights, built once
from code into the user's cache. Nothing heavy is imported here, so that planning a job stays light.

world.py          a seed -> a clip whose truth is known (truth.py), drawn by render.py
scenes.py         still scenes, for the image model
questions.py      what can be asked and said of them, in the words of words.py
clips.py          sample clips as real files
architectures.py  the models' shapes; tokenizer.py; build.py: all of it as a checkpoint folder
train/            how the shipped weights were made
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from mlb_batch.cache import made_once
from mlb_batch.errors import ModelError

NAMES = ("tiny", "tiny-image", "tiny-paired")
_HERE = Path(__file__).parent
_RECIPE = ("build.py", "architectures.py", "tokenizer.py", "words.py")


def folder(name: str) -> Path:
    """The checkpoint folder of an embedded model, as a hub download would look."""
    if name not in NAMES:
        remedy = "use tiny or tiny-image; tiny-paired is a pair, for prune.feature_model"
        raise ModelError(f"no embedded model is called {name!r}: {remedy}")
    return _packaged(name) if trained(name) else _cached_random(name)


def trained(name: str) -> bool:
    """Whether the package carries trained weights for this model."""
    return (_packaged(name) / "model.safetensors").is_file()


def _packaged(name: str) -> Path:
    return _HERE / "weights" / name


def _cached_random(name: str) -> Path:
    recipe = hashlib.sha256(b"".join((_HERE / file).read_bytes() for file in _RECIPE)).hexdigest()[:12]

    def fill(folder: Path) -> None:
        from mlb_batch.tiny.build import build

        build(name, folder, seed=0)

    return made_once(f"random-{recipe}", name, fill)
