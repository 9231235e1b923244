"""Makes video files, good, odd and broken ones, whose frames say their own number.

Every frame is a 4 x 4 chequer of black and white blocks, the 16 bits of its number, which survives any codec and size:
`numbers` reads it back, so that a test knows which frames it got without asking the reader; `error_class` is what it
got where there were to be none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from mlb_batch.errors import RowError
from mlb_batch.video import FrameSize, Reader

CORPUS = Path(__file__).parents[2] / "shared" / "videos"
MODEL_SIZE = FrameSize((96, 96))
# 50 kB a second, whatever is in the picture
HEAVY = {"b": "400k", "minrate": "400k", "maxrate": "400k", "bufsize": "400k", "x264-params": "nal-hrd=cbr:filler=1"}


def corpus() -> list[dict[str, Any]]:
    """The public files' descriptions; none where they are not there."""
    manifest = CORPUS / "manifest.json"
    return json.loads(manifest.read_text()) if manifest.exists() else []


def picture(number: int, height: int, width: int) -> np.ndarray:
    bits_44 = np.array([(number >> bit) & 1 for bit in range(16)], np.uint8).reshape(4, 4)
    rows, cols = np.arange(height) * 4 // height, np.arange(width) * 4 // width
    return np.repeat((32 + 192 * bits_44[rows][:, cols])[..., None], 3, axis=2).astype(np.uint8)


def numbers(pixels_FHWC: np.ndarray) -> list[int]:
    height, width = pixels_FHWC.shape[1:3]
    rows, cols = (np.arange(4) * 2 + 1) * height // 8, (np.arange(4) * 2 + 1) * width // 8
    bits_F44 = pixels_FHWC[:, rows][:, :, cols].mean(axis=-1) > 128
    return [sum(1 << int(bit) for bit in np.flatnonzero(one)) for one in bits_F44.reshape(len(bits_F44), 16)]


def error_class(reader: Reader, uri: str, **rest: str) -> str:
    with pytest.raises(RowError) as caught:
        reader.read(uri, **rest)
    return caught.value.error_class


def write_video(
    path: Path,
    frames: int = 50,
    size: tuple[int, int] = (96, 128),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    fps: int = 25,
    times_ms: Sequence[int] | None = None,
    gop: int = 12,
    audio: bool = False,
    audio_s: float | None = None,
    matrix: list[int] | None = None,
    codec_options: dict[str, str] | None = None,
    **container: Any,
) -> Path:
    """`times_ms` instead of `fps`: when each frame is shown; `audio_s`: of sound, where it is not as long as the
    pictures; `container`: options of av.open.
    """
    height, width = size
    with av.open(str(path), "w", **container) as out:
        video = out.add_stream(codec, rate=fps, options=codec_options or {})
        video.width, video.height, video.pix_fmt = width, height, pix_fmt
        video.codec_context.gop_size = gop
        if matrix is not None:
            video.set_display_matrix(matrix)
        if times_ms is not None:
            video.codec_context.time_base = Fraction(1, 1000)
        if audio or audio_s:
            sound = out.add_stream("aac", rate=48000)
            for packet in sound.encode(_silence(audio_s or frames / fps)):
                out.mux(packet)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number, height, width), format="rgb24").reformat(format=pix_fmt)
            frame.pts = number if times_ms is None else times_ms[number]
            frame.time_base = Fraction(1, fps) if times_ms is None else Fraction(1, 1000)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
    return path


def repeated(path: Path, source: Path, times: int) -> Path:
    """The source's packets, again and again: hours in seconds."""
    with av.open(str(source)) as given, av.open(str(path), "w", options={"movflags": "faststart"}) as out:
        stream = out.add_stream_from_template(given.streams.video[0])
        packets = [packet for packet in given.demux(video=0) if packet.size]
        length = max(p.dts + p.duration for p in packets) - min(p.dts for p in packets)
        data = [(bytes(p), p.pts, p.dts, p.duration, p.is_keyframe, p.time_base) for p in packets]
        for n in range(times):
            for raw, pts, dts, duration, key, base in data:
                packet = av.Packet(raw)
                packet.pts, packet.dts, packet.duration, packet.time_base = (
                    pts + n * length, dts + n * length, duration, base)  # fmt: skip
                packet.is_keyframe, packet.stream = key, stream
                out.mux(packet)
    return path


def _silence(seconds: float) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(np.zeros((1, int(seconds * 48000)), np.float32), format="fltp", layout="mono")
    frame.sample_rate, frame.pts = 48000, 0
    return frame


def write_audio(path: Path, cover: bool = False) -> Path:
    """Sound alone, or with a cover picture, which is a video stream by name only."""
    with av.open(str(path), "w") as out:
        sound = out.add_stream("aac", rate=48000)
        art = out.add_stream("mjpeg", rate=1) if cover else None
        if art is not None:
            art.width, art.height, art.pix_fmt = 128, 96, "yuvj420p"
            art.disposition = av.stream.Disposition.attached_pic
            frame = av.VideoFrame.from_ndarray(picture(7, 96, 128), format="rgb24").reformat(format="yuvj420p")
            frame.pts = 0
            out.mux(art.encode(frame))
            out.mux(art.encode(None))
        for packet in sound.encode(_silence(1.0)):
            out.mux(packet)
        out.mux(sound.encode(None))
    return path


def write_bomb(path: Path, codec: str, side: int) -> Path:
    """A small file with huge pictures."""
    pix_fmt = "rgb24" if codec == "png" else "yuv420p"
    with av.open(str(path), "w") as out:
        video = out.add_stream(codec, rate=1)
        video.width = video.height = side
        video.pix_fmt = pix_fmt
        frame = av.VideoFrame(side, side, pix_fmt)
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        frame.pts = 0
        out.mux(video.encode(frame))
        out.mux(video.encode(None))
    return path


def write_encrypted(path: Path) -> Path:
    keys = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "0f" * 16, "encryption_kid": "a0" * 16}
    return write_video(path, container_options=keys)


def cut(source: Path, path: Path, share: float) -> Path:
    data = source.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def flip(data: bytes, seed: int) -> bytes:
    """The same mutant for the same seed: 1 to 1,000 bytes changed."""
    chance = np.random.default_rng(seed)
    mutant = np.frombuffer(data, np.uint8).copy()
    places = chance.integers(0, len(mutant), int(10 ** chance.uniform(0, 3)))
    mutant[places] ^= chance.integers(1, 256, len(places), dtype=np.uint8)
    return mutant.tobytes()


def not_videos(folder: Path) -> Iterator[tuple[str, Path]]:
    """Things with a video's name: text, pictures, an archive, and the lists that name other files or hosts."""
    victim = folder / "victim.mp4"
    write_video(victim, frames=5)
    texts = {
        "one byte": b"a",
        "text": b"This is not a video.\n" * 50,
        "zip": b"PK\x03\x04" + bytes(200),
        "concat list": f"ffconcat version 1.0\nfile {victim}\n".encode(),
        "playlist": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{victim}\n#EXT-X-ENDLIST\n".encode(),
        "session": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    }
    for name, data in texts.items():
        path = folder / f"{name}.mp4"
        path.write_bytes(data)
        yield name, path
    for kind in ("jpeg", "png", "webp", "bmp"):
        path = folder / f"{kind}.mp4"
        Image.fromarray(picture(3, 96, 128)).save(path, kind)
        yield kind, path


# ---- the oracle: a plain sequential read, which shares no code with the reader


def sequential_times(path: Path) -> tuple[np.ndarray, float]:
    """The times of all frames in the codec's order, from the video's start, and the start."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        base = Fraction(container.start_time or 0, av.time_base)
        # the codec's order is the order of showing, whatever the times say
        shown = sorted(frame.pts * stream.time_base for frame in _frames(container))
        start = min(base, shown[0])
        return np.array([float(one - start) for one in shown]), float(start)


def sequential_pictures(path: Path, wanted: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    pictures = {}
    with av.open(str(path)) as container:
        for position, frame in enumerate(_frames(container)):
            if position in wanted:
                upright = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                image = Image.fromarray(upright).resize(size[::-1], Image.Resampling.BICUBIC)
                pictures[position] = np.asarray(image)
    return np.stack([pictures[position] for position in wanted])


def _frames(container: av.container.InputContainer) -> Iterator[av.VideoFrame]:
    stream = container.streams.video[0]
    stream.codec_context.thread_type = "SLICE"
    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except av.FFmpegError:
            continue
