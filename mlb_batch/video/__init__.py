"""Videos in, sampled frames at the model's input size out. The only package of a job that imports `av`.

fetch.py       a uri -> a file to read from, and its version:
remote.py        what is in storage, fetched as far as it is wanted (fsspec); objects.py: one file as its store gives it
refusals.py      what storage says, as a video's error or the job's end
several.py     one for each thread that reads:
sandbox.py     Reader, Prober: the supervisors of
process.py       one killable child process, in which
child.py         a loop runs; shared.py: pixels between the two
parts.py         over a file that may have holes
frames.py          read_frames: container -> timeline -> sampling -> runs -> model size
known.py       what was found out of one file: its index, its packets, its frames
clock.py       what time a video has left
container.py   opening safely, and what is wrong with a file that does not open
timeline.py    every packet: what is shown when, what each frame needs, what is missing
asf.py         how long a file was that is cut off, where FFmpeg does not say
sampling.py    which frames are wanted
ranges.py      which bytes the wanted frames need
runs.py        the wanted frames by the shortest way ...
straight.py    ... and by the long way, where packets do not say what they hold
packets.py     packets out of a container, frames out of packets
resize.py      a raw frame -> upright RGB at the model's input size
probe.py       what the headers say
length.py      how long the pictures last
values.py      what goes into reading and comes out of it
write.py       the other way: frames -> an .mp4, for sample clips
"""

from mlb_batch.video.fetch import version_of
from mlb_batch.video.frames import Wanted, read_frames
from mlb_batch.video.probe import probe
from mlb_batch.video.sandbox import Prober, Reader
from mlb_batch.video.several import Several
from mlb_batch.video.values import Frames, FrameSize, Header, Limits, Sampling

__all__ = [
    "FrameSize",
    "Frames",
    "Header",
    "Limits",
    "Prober",
    "Reader",
    "Sampling",
    "Several",
    "Wanted",
    "probe",
    "read_frames",
    "version_of",
]
