"""Videos in, sampled frames at the model's input size out. The only package that imports `av`.

fetch.py       a uri -> an open file (fsspec), and its version
sandbox.py     Reader: the supervisor of one killable child process, in which
child.py         a loop runs
frames.py          read_frames: container -> timeline -> sampling -> runs -> model size
container.py   opening safely, and what is wrong with a file that does not open
timeline.py    every packet: what is shown when, what each frame needs, what is missing
sampling.py    which frames are wanted
runs.py        the wanted frames by the shortest way ...
straight.py    ... and by the long way, where packets do not say what they hold
packets.py     packets out of a container, frames out of packets
resize.py      a raw frame -> upright RGB at the model's input size
probe.py       what the headers say
"""

from mlb_batch.video.fetch import open_uri, version_of
from mlb_batch.video.frames import read_frames
from mlb_batch.video.probe import probe
from mlb_batch.video.sandbox import Reader
from mlb_batch.video.values import Frames, FrameSize, Header, Limits, Sampling

__all__ = [
    "FrameSize",
    "Frames",
    "Header",
    "Limits",
    "Reader",
    "Sampling",
    "open_uri",
    "probe",
    "read_frames",
    "version_of",
]
