"""Frames -> an .mp4 file: how the sample clips of the procedural world become real videos."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray


def write_mp4(path: Path, pixels_FHWC: NDArray[np.uint8], fps: int, *, scale: int = 4) -> None:
    """H.264 at high quality; a pixel becomes `scale` squared, so that halved colour planes keep small colours."""
    _, height, width, _ = pixels_FHWC.shape
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "14", "preset": "veryfast", "threads": "1"})
        stream.width, stream.height = width * scale, height * scale
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, fps)
        for pixels_HWC in pixels_FHWC:
            large_HWC = pixels_HWC.repeat(scale, axis=0).repeat(scale, axis=1)
            for packet in stream.encode(av.VideoFrame.from_ndarray(large_HWC, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
