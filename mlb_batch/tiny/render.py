"""Sprites -> pixels. Shapes are drawn from their distance fields, so edges are soft and every size works.

Legend: F frames, H height, W width, C colour channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Far apart in hue and brightness, so that they stay apart after 4:2:0 video compression.
RGB: dict[str, tuple[int, int, int]] = {
    "red": (225, 30, 35),
    "green": (30, 175, 50),
    "blue": (40, 70, 235),
    "yellow": (240, 225, 40),
    "purple": (160, 40, 190),
    "cyan": (50, 215, 225),
    "orange": (245, 130, 20),
    "white": (240, 240, 240),
}
_NOISE = 4


@dataclass(frozen=True)
class Sprite:
    """One shape in one frame; lengths are shares of the frame's side, (0, 0) is the top left."""

    frame: int
    x: float
    y: float
    radius: float
    shape: str
    rgb: tuple[int, int, int]


def draw(
    background_FC: NDArray[np.uint8], sprites: list[Sprite], size: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Later sprites lie over earlier ones; a little noise lies over everything."""
    frames = len(background_FC)
    canvas_FHWC = np.broadcast_to(background_FC[:, None, None, :], (frames, size, size, 3)).astype(np.float32)
    for sprite in sprites:
        _stamp(canvas_FHWC[sprite.frame], sprite, size)
    noise_FHWC = rng.integers(-_NOISE, _NOISE + 1, canvas_FHWC.shape, dtype=np.int8)
    canvas_FHWC += noise_FHWC
    return np.clip(canvas_FHWC, 0, 255).astype(np.uint8)


def _stamp(frame_HWC: NDArray[np.float32], sprite: Sprite, size: int) -> None:
    x, y, radius = sprite.x * size, sprite.y * size, sprite.radius * size
    reach = radius + 2
    left, right = max(0, int(x - reach)), min(size, int(x + reach) + 1)
    top, bottom = max(0, int(y - reach)), min(size, int(y + reach) + 1)
    if left >= right or top >= bottom:
        return
    dx = np.arange(left, right, dtype=np.float32)[None, :] + 0.5 - x
    dy = np.arange(top, bottom, dtype=np.float32)[:, None] + 0.5 - y
    alpha = np.clip(0.5 - _distance(sprite.shape, dx, dy, radius), 0, 1)[..., None]
    patch = frame_HWC[top:bottom, left:right]
    patch += alpha * (np.asarray(sprite.rgb, np.float32) - patch)


def _distance(shape: str, dx: NDArray[np.float32], dy: NDArray[np.float32], radius: float) -> NDArray[np.floating]:
    """Signed distance to the shape's edge, negative inside."""
    if shape == "circle":
        return np.hypot(dx, dy) - radius
    if shape == "ring":
        return np.abs(np.hypot(dx, dy) - radius * 0.75) - radius * 0.25
    ax, ay = np.abs(dx), np.abs(dy)
    if shape == "square":
        return np.maximum(ax, ay) - radius * 0.9
    if shape == "diamond":
        return (ax + ay - radius * 1.15) * 0.7071
    if shape == "cross":
        arm = radius * 0.3
        return np.minimum(np.maximum(ax - arm, ay - radius), np.maximum(ax - radius, ay - arm))
    assert shape == "triangle", shape
    return np.maximum((ax * 2 - dy - radius) * 0.4472, dy - radius * 0.85)
