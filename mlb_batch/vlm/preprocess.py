"""How frames become a model's input, read from the checkpoint's own processor config.

The processor classes themselves are not used: the video ones want torchvision, which may be absent, and frames leave
the reading actors as uint8 at this size already.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlb_batch.errors import ModelError
from mlb_batch.vlm.checkpoint import Checkpoint

# PIL's numbers, which the configs use.
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
# In this order: a video model's frames follow its video processor, an image model's its image processor.
_PLACES = (
    ("video_preprocessor_config.json", None),
    ("processor_config.json", "video_processor"),
    ("preprocessor_config.json", None),
    ("processor_config.json", "image_processor"),
)


@dataclass(frozen=True)
class FrameRecipe:
    resize: tuple[int, int] | int  # height and width; or the shortest edge
    crop: tuple[int, int] | None  # centre crop behind it
    resample: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    scale: float


def frame_recipe(checkpoint: Checkpoint) -> FrameRecipe:
    """The recipe of a checkpoint. An image model's frame is one image, not tiles: its base view."""
    config = _processor_config(checkpoint.folder)
    size = config.get("size") or {}
    tiled = checkpoint.config.get("model_type") == "llava_next"
    if "height" in size:
        resize: tuple[int, int] | int = (size["height"], size["width"])
    elif tiled and "shortest_edge" in size:
        resize = (size["shortest_edge"],) * 2  # LLaVA-NeXT squashes the whole image into its base view
    elif "shortest_edge" in size:
        resize = size["shortest_edge"]
    else:
        raise ModelError(f"{checkpoint.name}: its processor config names no size this project knows: {size}")
    crop = config.get("crop_size") if config.get("do_center_crop") and isinstance(resize, int) else None
    recipe = _recipe(config, resize, (crop["height"], crop["width"]) if crop else None)
    _check_size(checkpoint, recipe)
    return recipe


def paired_recipe(checkpoint: Checkpoint) -> FrameRecipe:
    """The recipe of a text/vision pair, which takes whole images at one size."""
    config = _processor_config(checkpoint.folder)
    size = config["size"]
    return _recipe(config, (size["height"], size["width"]), None)


def _recipe(config: Mapping[str, Any], resize: tuple[int, int] | int, crop: tuple[int, int] | None) -> FrameRecipe:
    return FrameRecipe(
        resize=resize,
        crop=crop,
        resample=_RESAMPLE[config.get("resample", 3)],
        mean=tuple(config.get("image_mean") or (0.5, 0.5, 0.5)),
        std=tuple(config.get("image_std") or (0.5, 0.5, 0.5)),
        scale=config.get("rescale_factor", 1 / 255),
    )


def _check_size(checkpoint: Checkpoint, recipe: FrameRecipe) -> None:
    side = checkpoint.vision_size
    out = recipe.crop or (recipe.resize if isinstance(recipe.resize, tuple) else None)
    if out != (side, side):
        raise ModelError(
            f"{checkpoint.name}: its processor makes frames of {out}, its vision tower wants {side} square"
        )


def _processor_config(folder: Path) -> Mapping[str, Any]:
    for name, part in _PLACES:
        path = folder / name
        if not path.is_file():
            continue
        config: Mapping[str, Any] = json.loads(path.read_text())
        if part is None and "size" in config:
            return config
        if part is not None and part in config:
            nested: Mapping[str, Any] = config[part]
            return nested
    raise ModelError(f"{folder}: no processor config (preprocessor_config.json or processor_config.json) found")
