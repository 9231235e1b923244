"""One raw frame -> upright RGB at the model's input size.

Resizing is Pillow's, antialiased, on uint8, because that is what the checkpoints' own (PIL-based) processors do: the
pixels are equal, bit for bit, to transformers' SiglipImageProcessorPil and CLIPImageProcessorPil (tested). The colour
matrix and range are those that the stream states, BT.601 limited where it states none (swscale's rule, and so that of
the readers the checkpoints were trained with). Alpha is dropped. Pixels are taken as square, HDR is not tone-mapped.
"""

from __future__ import annotations

from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from mlb_batch.video.values import FrameSize, Pixels

RESAMPLE = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}

# The signs of a display matrix (a, b, c, d), by which the pixel (x, y) is shown at (a x + c y, b x + d y), y pointing
# down. Anything but quarter turns and mirrors is a broken header.
UPRIGHT = {
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}
ASKEW = 1 / 57.3  # a degree: an axis may be off by less, as in FFmpeg


# What PILLOW_BLOCKS_MAX does. Without it the memory of every picture is fetched from the system anew, and the pictures
# of a video are as large as each other.
Image.core.set_blocks_max(4)  # type: ignore[attr-defined]


class ToRGB:
    """Of the frames of one video: what a conversion needs is worked out for the first one and holds for the others."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> Image.Image:
        # One thread: another reader has the next core, and by itself it starts as many for each frame as there are.
        return Image.fromarray(self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray())


def upright(image: Image.Image, frame: av.VideoFrame) -> Image.Image:
    """The frame's picture, turned and mirrored as its display matrix says."""
    try:
        side_data: Any = frame.side_data  # PyAV's own types don't know what is in it
    except ValueError:  # it has no name for a kind that lies there, like Exif, and knows no mirrors elsewhere
        return image.rotate(frame.rotation, expand=True) if frame.rotation % 90 == 0 else image
    if "DISPLAYMATRIX" not in side_data:
        return image
    axes_22 = np.frombuffer(side_data["DISPLAYMATRIX"], np.int32, 9).reshape(3, 3)[:2, :2].astype(float)
    longest_21 = np.abs(axes_22).max(axis=1, keepdims=True)
    signs_22 = np.where(np.abs(axes_22) < ASKEW * longest_21, 0, np.sign(axes_22))
    transpose = UPRIGHT.get(tuple(signs_22.ravel()))
    return image if transpose is None else image.transpose(transpose)


def resize(image: Image.Image, size: FrameSize) -> Pixels:
    height, width = resized_shape(image.height, image.width, size)
    if (height, width) != (image.height, image.width):
        image = image.resize((width, height), RESAMPLE[size.resample])
    pixels_HWC: Pixels = np.asarray(image)
    return pixels_HWC if size.crop is None else centre_crop(pixels_HWC, size.crop)


def resized_shape(height: int, width: int, size: FrameSize) -> tuple[int, int]:
    """(h, w) before cropping. The longer edge is rounded down, as the processors do."""
    if not isinstance(size.resize, int):
        return size.resize
    edge = size.resize
    if width <= height:
        return int(edge * height / width), edge
    return edge, int(edge * width / height)


def centre_crop(pixels_HWC: Pixels, crop: tuple[int, int]) -> Pixels:
    """The middle of the picture; an edge shorter than the crop is padded with zeros, the odd row going before it."""
    out_HWC = np.zeros((*crop, pixels_HWC.shape[2]), np.uint8)
    rows_from, rows_to = _overlap(pixels_HWC.shape[0], crop[0])
    cols_from, cols_to = _overlap(pixels_HWC.shape[1], crop[1])
    out_HWC[rows_to, cols_to] = pixels_HWC[rows_from, cols_from]
    return out_HWC


def _overlap(length: int, wanted: int) -> tuple[slice, slice]:
    """Along one edge: what is taken, and where it is put."""
    if length >= wanted:
        start = (length - wanted) // 2
        return slice(start, start + wanted), slice(0, wanted)
    before = -(-(wanted - length) // 2)
    return slice(0, length), slice(before, before + length)
