"""How the job's actors fit the cluster: pure arithmetic over the nodes' resources, before anything starts.

Ray waits for ever for an actor that fits nowhere, and so would the job. So every actor is placed here first, as Ray
would place it; what does not fit is refused, and pools that may grow are bounded by what really is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlb_batch.errors import ClusterError
from mlb_batch.spec import JobSpec

# On CPUs, under one core, so that one reader (1 CPU) and one captioner share a machine with two; and not a reader's 1
# either: steps with equal resources could be fused into one actor. On GPUs none: a captioner never waits for a core
# then, wherever Ray puts the readers; what it needs is only left free when the most readers are counted.
CAPTION_CPUS = 0.75
# Captioners on CPUs beyond this share of the cores would only take them from each other.
CPU_CAPTIONERS_SHARE = 0.5
# Clips that a captioner gets at once. A GPU has room for many (the engine looks how much), and a step of generation
# reads the weights once for all of them; but of a short job every captioner is to have some batches, so
# that none works alone in the end.
MOST_ON_GPU, LEAST_ON_GPU, BATCH_ON_CPU = 32, 8, 2
BATCHES_EACH = 4
# Clips wait in Ray's object store, where Ray Data lets them have about a third. It counts those that come together for
# a batch, and of each reader as many as it lets wait until it looks again. What would be more it lets through one clip
# every ten seconds, so that a batch would take minutes to come together.
STORE_SHARE = 0.3
# It looks ten times a second. With the two that it lets wait by its own choice, a reader would give no more than thirty
# clips a second, however short they are.
MOST_A_LOOK, LEAST_A_LOOK, BYTES_A_LOOK = 8, 2, 8 * 2**20

# Ray Data looks ten times a second at what has ended, and sends on: with the two batches of its own choice in flight, a
# captioner of short clips rests while they wait.
BATCHES_IN_FLIGHT = 4
# Videos between the source and the driver: in any job, and for each reader; or as many as all captioners' batches take.
LEAST_UNDER_WAY, OF_A_READER = 1000, 256

Bounds = tuple[int, int]


@dataclass(frozen=True)
class Pools:
    read_cpus: float
    readers: Bounds
    caption_cpus: float
    caption_gpus: float
    captioners: Bounds
    batch_videos: int
    clips_a_look: int

    @property
    def gpus(self) -> float:
        """That the captioners hold, when all are there."""
        return self.captioners[1] * self.caption_gpus

    @property
    def under_way(self) -> int:
        batches = BATCHES_IN_FLIGHT * self.captioners[1] * self.batch_videos
        return max(LEAST_UNDER_WAY, OF_A_READER * self.readers[1], batches)

    @property
    def least(self) -> dict[str, float]:
        """Without so much nothing moves."""
        return {
            "CPU": self.readers[0] * self.read_cpus + self.captioners[0] * self.caption_cpus,
            "GPU": self.captioners[0] * self.caption_gpus,
        }


def refuse_hours_of(budget: str, device: str, sizes: Pools) -> None:
    """A budget in hours is solved by the rates of one device, and on one of another kind it is another budget."""
    if budget == "gpu_hours" and device.startswith("cpu") == bool(sizes.gpus):
        raise ClusterError(
            f"budget.gpu_hours: its hours are those of {device}, and the captioners of this cluster run on "
            f"{'GPUs' if sizes.gpus else 'CPUs'}; run `mlb-batch bench calibrate --job JOB.yaml` on one of its nodes, "
            "or set model.device to what the job is to run on"
        )


class _Room:
    """The CPUs that are left on each node."""

    def __init__(self, nodes: Sequence[Mapping[str, float]]) -> None:
        self.free = [node.get("CPU", 0.0) for node in nodes]

    def place(self, cpus: float, most: int) -> int:
        """How many of `most` actors without a GPU fit, node by node; they take their place."""
        placed = 0
        for n in range(len(self.free)):
            while placed < most and self.free[n] + 1e-9 >= cpus:
                self.free[n] -= cpus
                placed += 1
        return placed


def pools(spec: JobSpec, nodes: Sequence[Mapping[str, float]], clips: int, clip_bytes: int) -> Pools:
    """The sizes of both pools for so many clips of so many bytes of frames; ClusterError with what is missing where the
    job does not fit.
    """
    room = _Room(nodes)
    read, batch = spec.cluster.read, spec.cluster.caption.batch_videos
    least, most = read.concurrency
    gpus = _gpus_each(spec, sum(node.get("GPU", 0) for node in nodes))
    placed = room.place(read.num_cpus, least)
    if placed < least:
        raise ClusterError(
            f"cluster.read asks for {least} x {read.num_cpus:g} CPU, and {placed} fit: {_describe(nodes)}; "
            "lower cluster.read.num_cpus or concurrency"
        )
    cpus = 0.0 if gpus else CAPTION_CPUS
    captioners = _captioners(spec, room, cpus, gpus, nodes)
    if gpus:
        room.place(CAPTION_CPUS, captioners[1])
    readers = (least, least + room.place(read.num_cpus, most - least))
    look = min(MOST_A_LOOK, max(LEAST_A_LOOK, BYTES_A_LOOK // clip_bytes))
    wanted = batch_of(clips / captioners[1], bool(gpus)) if batch == "auto" else batch
    return Pools(
        read_cpus=read.num_cpus,
        readers=readers,
        caption_cpus=cpus,
        caption_gpus=gpus,
        captioners=captioners,
        batch_videos=min(wanted, _stored(nodes, clip_bytes, readers[1] * look, captioners[1])),
        clips_a_look=look,
    )


def batch_of(clips: float, on_gpu: bool) -> int:
    """For `batch_videos: auto`, by the clips that fall to one captioner."""
    return int(min(MOST_ON_GPU, max(LEAST_ON_GPU, clips / BATCHES_EACH))) if on_gpu else BATCH_ON_CPU


def _stored(nodes: Sequence[Mapping[str, float]], clip_bytes: int, just_made: int, captioners: int) -> int:
    """Clips of a batch, where each captioner has one and another is coming together."""
    store = sum(node.get("object_store_memory", 0) for node in nodes)
    return max(1, int((STORE_SHARE * store / clip_bytes - just_made) / (captioners + 1)))


def _gpus_each(spec: JobSpec, gpus_there: float) -> float:
    """GPUs of one captioner. `concurrency: auto` takes what there is; a number of actors is taken at its word."""
    caption = spec.cluster.caption
    asked = spec.model.device == "cuda" or (caption.concurrency != "auto" and "num_gpus" in caption.model_fields_set)
    if gpus_there > 0 and spec.model.device != "cpu":
        return caption.num_gpus
    if asked and caption.num_gpus > 0 and spec.model.device != "cpu":
        raise ClusterError(
            "the job asks for GPUs for captioning, and the cluster has none; set cluster.caption.num_gpus=0 and "
            "model.device=auto to run on CPUs"
        )
    return 0.0


def _captioners(spec: JobSpec, room: _Room, cpus: float, gpus: float, nodes: Sequence[Mapping[str, float]]) -> Bounds:
    """`auto`: one for every GPU, or on CPUs as many as do not take the cores from each other."""
    wanted = spec.cluster.caption.concurrency
    everything = _on_gpus(nodes, gpus) if gpus else int(sum(n.get("CPU", 0) for n in nodes) * CPU_CAPTIONERS_SHARE)
    least, most = (1, max(1, everything)) if wanted == "auto" else wanted
    placed = min(most, everything) if gpus else room.place(cpus, most)
    if placed < least:
        raise ClusterError(
            f"cluster.caption asks for {least} x ({cpus:g} CPU, {gpus:g} GPU), and {placed} fit beside "
            f"{spec.cluster.read.concurrency[0]} x {spec.cluster.read.num_cpus:g} CPU for reading: {_describe(nodes)}; "
            "lower cluster.caption.concurrency or num_gpus, or cluster.read, or add nodes"
        )
    return (placed, placed) if wanted == "auto" else (least, placed)


def _on_gpus(nodes: Sequence[Mapping[str, float]], gpus: float) -> int:
    """How many captioners fit: card by card, since Ray gives none a piece of one and a piece of another."""
    return sum(int(node.get("GPU", 0)) for node in nodes) * int(1 / gpus + 1e-9)


def _describe(nodes: Sequence[Mapping[str, float]]) -> str:
    each = ", ".join(f"{node.get('CPU', 0):g} CPU + {node.get('GPU', 0):g} GPU" for node in nodes[:4])
    return f"the cluster has {len(nodes)} node(s) of {each}{', ...' if len(nodes) > 4 else ''}"
