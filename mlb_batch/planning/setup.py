"""What a job's spec names, resolved: the checkpoint, the method, and the paired model where the method uses one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mlb_batch import prune
from mlb_batch.cost.schedule import WHOLE, ClipShape
from mlb_batch.cost.shapes import ModelShape, PairedShape, paired_shape
from mlb_batch.errors import ModelError
from mlb_batch.planning.record import Plan
from mlb_batch.prune import Pruning
from mlb_batch.spec import JobSpec
from mlb_batch.vlm.checkpoint import Checkpoint, resolve

_SO400M = (1152, 27)  # width and patches along an edge of the tower whose own pair is published
_SO400M_PAIR = "google/siglip-so400m-patch14-384"


@dataclass(frozen=True)
class Setup:
    checkpoint: Checkpoint
    shape: ModelShape
    pair: Checkpoint | None
    method: Pruning

    @property
    def pair_shape(self) -> PairedShape | None:
        return paired_shape(self.pair.config) if self.pair else None


def setup(spec: JobSpec) -> Setup:
    """Resolves ids to files (a hub's are downloaded once); loads no weights."""
    for name in spec.canary.against:
        prune.named(name, "canary.against")
    checkpoint = resolve(spec.model.id, spec.model.revision)
    shape = checkpoint.shape
    looks = method_of(spec, paired=True).schedule(shape, _ANY, WHOLE).features
    pair = _pair(spec, checkpoint, "main") if looks else None
    return Setup(checkpoint, shape, pair, method_of(spec, paired=pair is not None))


def pinned(spec: JobSpec, revision: str, pair_revision: str | None, method: Pruning) -> Setup:
    """The models at the revisions that were planned with, where a branch of a hub may have moved since; and the method
    as it was made there, since its name may be one that only the job's own process knows.
    """
    checkpoint = resolve(spec.model.id, revision)
    _refuse_another("model.id", spec.model.id, checkpoint, revision)
    pair = _pair(spec, checkpoint, pair_revision) if pair_revision else None
    if pair:
        _refuse_another("prune.feature_model", pair.name, pair, pair_revision)
    return Setup(checkpoint, checkpoint.shape, pair, method)


def planned_with(spec: JobSpec, priced: Plan) -> Setup:
    method = method_of(spec, paired=priced.pair_revision is not None)
    return pinned(spec, priced.revision, priced.pair_revision, method)


def _refuse_another(key: str, name: str, found: Checkpoint, revision: str | None) -> None:
    if found.revision != revision:
        raise ModelError(
            f"{key}: {name} is {found.revision} on this node and {revision} where the job was planned; give every node "
            "the same files"
        )


_ANY = ClipShape(frames=1, rows=1, cols=1, prefix=0, trailer=0, suffixes=(1,))


def method_of(spec: JobSpec, paired: bool) -> Pruning:
    """`paired`: a text/vision model looks, where the method can use one."""
    asked = spec.prune
    made = prune.make(
        asked.method, asked.options, asked.select, asked.compact_cache, paired, spec.generate.max_new_tokens
    )  # fmt: skip
    return replace(made, see_all=spec.budget.allocation == "content")


def _pair(spec: JobSpec, checkpoint: Checkpoint, revision: str) -> Checkpoint | None:
    """The model that prune.feature_model names; `auto` is the pair that belongs to the model's own tower, if any."""
    named = spec.prune.feature_model
    if named != "auto":
        return _resolved_pair(named, revision) if named else None
    if checkpoint.name == "embedded:tiny":
        return _resolved_pair("embedded:tiny-paired", revision)
    vision = checkpoint.shape.vision
    return _resolved_pair(_SO400M_PAIR, revision) if (vision.hidden, vision.side) == _SO400M else None


def _resolved_pair(name: str, revision: str) -> Checkpoint:
    try:
        return resolve(name, revision, key="prune.feature_model")
    except ModelError as error:
        remedy = "name its folder, or null for the language model's own attention"
        raise ModelError(f"{error}; {remedy}") from None
