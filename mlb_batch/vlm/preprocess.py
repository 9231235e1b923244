"""How frames become a model's input, read from the checkpoint's own processor config.

The processor classes themselves are not used: the video ones want torchvision, which may be absent, and frames leave
the reading actors as uint8 at this size already.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlb_batch.cost.shapes import paired_shape
from mlb_batch.errors import ModelError
from mlb_batch.vlm.checkpoint import Checkpoint, read_json

# PIL's numbers, which the configs use.
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
# What the processor classes take where a config says nothing: (mean, std). A test holds these to them.
_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_SIGLIP = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
# In this order: a video model's frames follow its video processor, an image model's its image processor; and of two
# files the newer form, as transformers has it. A checkpoint that was saved again holds both.
_PLACES = (
    ("processor_config.json", "video_processor"),
    ("video_preprocessor_config.json", None),
    ("processor_config.json", "image_processor"),
    ("preprocessor_config.json", None),
)


Colour = tuple[float, ...]  # of the three channels


@dataclass(frozen=True)
class FrameRecipe:
    resize: tuple[int, int] | int  # height and width; or the shortest edge
    crop: tuple[int, int] | None  # centre crop behind it
    resample: str
    mean: Colour
    std: Colour
    scale: float


def frame_recipe(checkpoint: Checkpoint) -> FrameRecipe:
    """The recipe of a checkpoint. An image model's frame is one image, not tiles: its base view."""
    config, family = _processor_config(checkpoint.folder), checkpoint.shape.family
    if family == "llava" and config.get("do_pad"):
        raise ModelError(f"{checkpoint.name}: its processor pads images to a square (do_pad), which is not done here")
    size = _sides(config.get("size"), square=family == "llava_onevision")
    if "height" in size:
        resize: tuple[int, int] | int = (size["height"], size["width"])
    elif "shortest_edge" not in size:
        raise ModelError(f"{checkpoint.name}: its processor config names no size this project knows: {size}")
    elif family == "llava_next":
        resize = (size["shortest_edge"],) * 2  # LLaVA-NeXT squashes the whole image into its base view
    else:
        resize = size["shortest_edge"]
    crops = isinstance(resize, int) and config.get("do_center_crop", True)
    crop = _sides(config.get("crop_size"), square=True) if crops else {}
    if "shortest_edge" in crop:
        raise ModelError(f"{checkpoint.name}: its processor's crop_size is {crop}, and must be a height and a width")
    usual = _SIGLIP if "siglip" in str(config.get("image_processor_type")).lower() else _CLIP
    recipe = _recipe(checkpoint, config, resize, (crop["height"], crop["width"]) if crop else None, usual)
    _check_size(checkpoint, recipe, checkpoint.vision_size)
    return recipe


def paired_recipe(checkpoint: Checkpoint) -> FrameRecipe:
    """The recipe of a text/vision pair, which takes whole images at one size."""
    config = _processor_config(checkpoint.folder)
    size = _sides(config.get("size"), square=True)
    if "height" not in size:
        raise ModelError(f"{checkpoint.name}: its processor config names no size this project knows: {size}")
    recipe = _recipe(checkpoint, config, (size["height"], size["width"]), None, _SIGLIP)
    _check_size(checkpoint, recipe, paired_shape(checkpoint.config).vision.image_size)
    return recipe


def _sides(size: Any, square: bool) -> Mapping[str, int]:
    """A size as the configs write it: by its edges, or (older ones) as one number; empty where it is neither."""
    if isinstance(size, int):
        return {"height": size, "width": size} if square else {"shortest_edge": size}
    known = isinstance(size, dict) and any(edges <= size.keys() for edges in ({"height", "width"}, {"shortest_edge"}))
    return size if known else {}


def _recipe(checkpoint: Checkpoint, config: Mapping[str, Any], resize: tuple[int, int] | int,
            crop: tuple[int, int] | None, usual: tuple[Colour, Colour]) -> FrameRecipe:  # fmt: skip
    resample = config.get("resample", 3)
    if not isinstance(resample, int) or resample not in _RESAMPLE or config.get("do_resize") is False:
        known = ", ".join(f"{number} ({name})" for number, name in _RESAMPLE.items())
        raise ModelError(f"{checkpoint.name}: its processor does not resize by a filter that is known here ({known})")
    mean, std = (_colour(checkpoint, config, name, usual[i]) for i, name in enumerate(("image_mean", "image_std")))
    if not config.get("do_normalize", True):
        mean, std = (0.0,) * 3, (1.0,) * 3
    factor = config.get("rescale_factor")
    scale = 1.0 if not config.get("do_rescale", True) else 1 / 255 if factor is None else factor
    return FrameRecipe(resize, crop, _RESAMPLE[resample], mean, std, scale)


def _colour(checkpoint: Checkpoint, config: Mapping[str, Any], name: str, usual: Colour) -> Colour:
    """Three numbers, or one for all channels."""
    value = usual if config.get(name) is None else config[name]
    each = (value,) * 3 if isinstance(value, int | float) else value
    if not (isinstance(each, list | tuple) and len(each) == 3 and all(isinstance(one, int | float) for one in each)):
        raise ModelError(f"{checkpoint.name}: its processor's {name} is {value!r}, and must be three numbers")
    return tuple(each)


def _check_size(checkpoint: Checkpoint, recipe: FrameRecipe, side: int) -> None:
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
        config = read_json(path)
        if part is None and "size" in config:
            return config
        nested = config.get(part) if part else None
        if isinstance(nested, dict):
            return nested
    raise ModelError(f"{folder}: no processor config (preprocessor_config.json or processor_config.json) found")
