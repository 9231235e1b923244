"""Pixels: the checkpoints' own resizing to the bit, and colours by the stream's own matrix and range."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from mlb_batch.video import FrameSize, Limits, Sampling, Wanted, read_frames
from mlb_batch.video.resize import ToRGB, resize

SHAPES = [(180, 320), (320, 180), (97, 131), (384, 384), (20, 500), (1080, 1920), (1, 1)]


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_processor_of_siglip(shape: tuple[int, int]) -> None:
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    processor = SiglipImageProcessorPil(size={"height": 384, "width": 384}, do_normalize=False, do_rescale=False)
    theirs_CHW = processor(noise(*shape), return_tensors="np")["pixel_values"][0]
    ours_HWC = resize(noise(*shape), FrameSize((384, 384)))
    np.testing.assert_array_equal(ours_HWC, theirs_CHW.transpose(1, 2, 0))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("crop", [(336, 336), (224, 301), (401, 336)])
def test_equals_the_processor_of_clip(shape: tuple[int, int], crop: tuple[int, int]) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    height, width = crop
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 336},
        crop_size={"height": height, "width": width},
        do_normalize=False,
        do_rescale=False,
    )
    theirs_CHW = processor(noise(*shape), return_tensors="np")["pixel_values"][0]
    ours_HWC = resize(noise(*shape), FrameSize(336, crop))
    np.testing.assert_array_equal(ours_HWC, theirs_CHW.transpose(1, 2, 0))


@pytest.mark.parametrize("name", ["bicubic", "bilinear", "lanczos", "nearest"])
def test_filters_are_the_ones_they_are_called(name: str) -> None:
    filters = {"bicubic": 3, "bilinear": 2, "lanczos": 1, "nearest": 0}  # Pillow's and the processors' numbers
    ours = resize(noise(97, 131), FrameSize((40, 60), None, name))
    np.testing.assert_array_equal(ours, np.asarray(noise(97, 131).resize((60, 40), filters[name])))


# ITU-R BT.601 and BT.709: luma weights of red and blue
WEIGHTS = {"bt601": (0.299, 0.114, 5), "bt709": (0.2126, 0.0722, 1)}
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 120, 40), (128, 128, 128), (255, 255, 255), (0, 0, 0)]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", WEIGHTS)
def test_colours_follow_the_streams_matrix_and_range(matrix: str, full: bool, tmp_path: Path) -> None:
    """Flat colours, turned into Y'CbCr here by the standards' formulas, come back as they were."""
    red_weight, blue_weight, colourspace = WEIGHTS[matrix]
    path = tmp_path / "v.mkv"
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=1, options={"qp": "1"})
        video.width = video.height = 32
        video.pix_fmt = "yuv444p"
        video.codec_context.colorspace = colourspace
        video.codec_context.color_range = 2 if full else 1
        for number, colour in enumerate(COLOURS):
            r, g, b = (value / 255 for value in colour)
            luma = red_weight * r + (1 - red_weight - blue_weight) * g + blue_weight * b
            chroma = (b - luma) / (2 - 2 * blue_weight), (r - luma) / (2 - 2 * red_weight)
            planes = [luma * 255, *(128 + c * 255 for c in chroma)]
            if not full:
                planes = [16 + luma * 219, *(128 + c * 224 for c in chroma)]
            frame = av.VideoFrame(32, 32, "yuv444p")
            for plane, value in zip(frame.planes, planes, strict=True):
                plane.update(bytes([min(255, round(value))]) * plane.buffer_size)
            frame.pts, frame.colorspace, frame.color_range = number, colourspace, 2 if full else 1
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
    frames = read_frames(path, Wanted(Sampling(len(COLOURS)), FrameSize((8, 8)), Limits()))
    got = frames.pixels_FHWC[:, 4, 4].astype(int)
    assert np.abs(got - np.array(COLOURS)).max() <= 3


def test_frames_that_change_on_the_way_are_converted_as_each_alone() -> None:
    """Size, layout of the pixels, matrix, range: what was worked out for the frame before must not stand."""
    to_rgb, rng = ToRGB(), np.random.default_rng(0)
    kinds = [(layout, size, matrix, limits) for layout in ("yuv420p", "yuv444p", "yuvj420p", "gray", "rgb24")
             for size in ((64, 48), (32, 80)) for matrix in (1, 5) for limits in (1, 2)]  # fmt: skip
    for layout, (width, height), matrix, limits in [kinds[at] for at in rng.permutation(len(kinds))]:
        frame = av.VideoFrame(width, height, layout)
        frame.colorspace, frame.color_range = matrix, limits
        for plane in frame.planes:
            plane.update(rng.integers(0, 256, plane.buffer_size, np.uint8).tobytes())
        ours_HWC = np.asarray(to_rgb(frame))
        np.testing.assert_array_equal(ours_HWC, frame.to_ndarray(format="rgb24"))


def test_transparent_pixels_lose_only_their_alpha(tmp_path: Path) -> None:
    path = tmp_path / "v.mov"
    with av.open(str(path), "w") as out:
        video = out.add_stream("qtrle", rate=1)
        video.width, video.height, video.pix_fmt = 32, 32, "argb"
        pixels_HWC = np.full((32, 32, 4), 0, np.uint8)
        pixels_HWC[..., :] = (10, 200, 30, 40)  # alpha, red, green, blue
        frame = av.VideoFrame.from_ndarray(pixels_HWC, format="argb")
        frame.pts = 0
        out.mux(video.encode(frame))
        out.mux(video.encode(None))
    frames = read_frames(path, Wanted(Sampling(1), FrameSize((8, 8)), Limits()))
    assert frames.pixels_FHWC[0, 4, 4].tolist() == [200, 30, 40]
