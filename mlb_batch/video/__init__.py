"""Videos in, sampled frames at the model's input size out. The only package that imports `av`.

fetch.py      a uri -> an open file (fsspec), and its version
sandbox.py    Reader: the supervisor of one killable child process, which runs
child.py        a loop of read_frames
frames.py     read_frames: container -> timeline -> sampling -> the wanted frames -> resize
probe.py      what the container's headers say
"""

from mlb_batch.video.values import Frames, FrameSize, Header, Limits, Sampling

__all__ = ["FrameSize", "Frames", "Header", "Limits", "Sampling"]
