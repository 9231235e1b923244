"""Allocation `content`: a pass over the frames before the job proper, which tells how much clips repeat themselves.

Small jobs look at every clip and solve exactly; large ones look at all clips of a random sample of their videos, and
solve for its 99 % upper bound. Either way the captioners then spend from one purse, so that the job never exceeds its
limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from fractions import Fraction
from functools import partial
from itertools import groupby

from ray.data import DataContext

from mlb_batch.books import Books
from mlb_batch.chain.arrivals import arriving
from mlb_batch.chain.cluster import data_context
from mlb_batch.chain.parts import Part
from mlb_batch.chain.pools import Pools
from mlb_batch.chain.purse import Grants
from mlb_batch.chain.reading import captioners, clips_with_frames
from mlb_batch.chain.spent import ROWS, spent_on
from mlb_batch.chain.strikes import Strikes
from mlb_batch.cost.allocate import Redundant
from mlb_batch.engine import Engine
from mlb_batch.ledger import Ledger
from mlb_batch.planning import Plan, planned_with, pricer_of, settle
from mlb_batch.progress import Progress
from mlb_batch.source import Inspection
from mlb_batch.spec import JobSpec
from mlb_batch.stages import Measure, Measured
from mlb_batch.stop import Stop
from mlb_batch.work import History

FULL_PASS = 2_000  # up to so many clips, all are looked at
SAMPLE = 500  # of more, about so many,
VIDEOS = 60  # and of about so many videos, or all of fewer: clips of one video are alike


def settled(spec: JobSpec, books: Books, sizes: Pools, found: Inspection, stop: Stop, progress: Progress) -> Plan:
    """The books' plan with each clip's own keep solved; as it is where there is nothing to solve, it was solved before,
    no clip can be measured, or the run is to stop.
    """
    priced = books.plan
    if priced.settled:
        return priced
    few = priced.clips <= FULL_PASS
    share = 1.0 if few else min(1.0, max(SAMPLE / priced.clips, VIDEOS / priced.videos))
    with DataContext.current(data_context(sizes.clips_a_look)):
        measured = _measured(spec, priced, sizes, found, share, stop, progress)
    books.measured()
    if stop.reason:
        return priced
    if not measured:  # at the keep that `equal` gives, whatever can be read after all is within the limit
        progress.warn("allocation content: no clip could be measured; the next run solves it")
    books.plan = settle(spec, priced, measured)
    return books.plan


def _measured(spec: JobSpec, priced: Plan, sizes: Pools, found: Inspection, share: float, stop: Stop,
              progress: Progress) -> list[list[Redundant]]:  # fmt: skip
    """Every clip that can be read, or those of a share of the videos, by their videos."""
    about = round(share * priced.clips)
    nothing = History("", spec.retry)
    engine = Engine.of(spec, priced)
    out: list[Measured] = []
    with closing(Strikes(hang_s=spec.limits.model_s)) as strikes:
        frames = clips_with_frames(spec, engine, sizes, found, nothing, strikes, Part(share))
        measured = frames.map_batches(
            Measure, fn_constructor_args=(partial(engine.load, sizes.caption_gpus), strikes), batch_format="pyarrow",
            batch_size=1, **captioners(sizes))  # fmt: skip
        with arriving(measured) as arrivals:
            while not stop.reason and (some := arrivals.take()) is not None:
                out += some
                progress.before(f"measuring clips before the job: {len(out):,} of about {about:,}")
    ordered = sorted(out, key=repr)  # whatever the order they came in, the same rule comes out
    return [[one.found for one in video] for _, video in groupby(ordered, key=lambda one: one.row)]


@contextmanager
def grants(spec: JobSpec, priced: Plan, found: Inspection, ledger: Ledger, stop: Stop,
           progress: Progress) -> Iterator[Grants | None]:  # fmt: skip
    """The purse of a job whose clips have keeps of their own, less what earlier runs have spent on the same input."""
    if priced.content is None:
        yield None
        return
    budget = priced.budget
    sums = spent_on(spec, found, ledger, budget.columns, stop, progress)
    left = Fraction(max(0, priced.prompts - sums[ROWS]), max(1, priced.prompts))
    spent = budget.spent(sums)
    # Time is not in the rows: there the share of the annotations that are left stands in for it.
    limit = int(budget.limit * left) if spent is None else budget.limit - spent
    floors, pricer = int(budget.content_floor * left), pricer_of(spec, planned_with(spec, priced))
    with closing(Grants(limit, floors, priced.content, pricer)) as purse:
        yield purse
