"""The whole way of a job: videos in, annotations in Parquet. Every step is a file of its own.

JobSpec -> Plan -> Video + its prompts -> Frames -> Annotation rows -> Parquet
"""

from __future__ import annotations

from contextlib import closing
from functools import partial
from typing import Any

from ray.data import DataContext, Dataset

from mlb_batch.books import Books, Uncommitted, closed
from mlb_batch.chain.arrivals import everything
from mlb_batch.chain.cluster import connected, data_context, say_if_crowded
from mlb_batch.chain.metrics import Metrics
from mlb_batch.chain.parts import Part, parts
from mlb_batch.chain.pools import Pools, pools, refuse_hours_of
from mlb_batch.chain.purse import Grants
from mlb_batch.chain.reading import captioners, clips_with_frames
from mlb_batch.chain.settling import grants, settled
from mlb_batch.chain.strikes import Strikes, lasting_strikes
from mlb_batch.engine import Engine
from mlb_batch.environment import environment
from mlb_batch.ledger import Lease, Ledger, RunFolder, new_run_id, tidy, written_columns
from mlb_batch.notify import announced
from mlb_batch.planning import Plan, freeze, plan
from mlb_batch.progress import Progress
from mlb_batch.quality import canary
from mlb_batch.rows import Constants
from mlb_batch.source import Inspection, anchored, inspect
from mlb_batch.spec import JobSpec
from mlb_batch.stages import Caption
from mlb_batch.stop import Stop
from mlb_batch.storage import open_store
from mlb_batch.work import History


@announced
def run(spec: JobSpec, limit: int | None = None, replan: bool = False) -> dict[str, Any]:
    """Annotate what is not annotated yet; the summary. Raises UserError, or JobError where it can be resumed."""
    one_pass = partial(annotate, stop=Stop(spec.limits.deadline_h), limit=limit)
    if not spec.canary.share:
        return one_pass(spec, replan=replan)
    with Lease(spec.output.uri, new_run_id()) as lease, connected():  # also while the rivals are at work elsewhere
        seen, stopped = canary(spec, partial(one_pass, spec, replan=replan, held=lease), one_pass, replan)
        return stopped or one_pass(spec, seen=seen, held=lease)


def annotate(spec: JobSpec, stop: Stop, limit: int | None = None, replan: bool = False, share: float = 1.0,
             seen: dict[str, Any] | None = None, held: Lease | None = None) -> dict[str, Any]:  # fmt: skip
    """One pass over the input, or a share of its videos. `seen`: by its canary; `held`: the lease that the job has."""
    spec = spec.model_copy(update={"input": anchored(spec.input)})
    found = inspect(spec)
    priced, run_id, output = plan(spec, replan, found), new_run_id(), spec.output.uri
    with held or Lease(output, run_id) as lease, connected() as nodes, stop:
        tidy(output)
        sizes, folder = pools(spec, nodes, priced.clips, Engine.of(spec, priced).clip_bytes), RunFolder(output, run_id)
        say_if_crowded(sizes.least)
        refuse_hours_of(priced.budget.kind, priced.device, sizes)
        books = Books(priced, spec.retry, sizes.gpus, spec.limits.price_per_gpu_hour, found.bounded(limit), share)
        with Progress(books, folder, Metrics(spec.name, run_id).show) as progress:
            priced = settled(spec, books, sizes, found, stop, progress)
            found = found.like(written_columns(open_store(output), priced.fingerprint)) if found.holding else found
            ledger = Ledger(output, priced.fingerprint, run_id, found.passthrough, lease=lease,
                            target_file_mb=spec.output.target_file_mb)  # fmt: skip
            progress.warn(ledger.gone)
            folder.begin(spec.as_written(), priced.to_json(), environment(nodes))
            freeze(spec, priced)
            history = History(priced.fingerprint, spec.retry, ledger.done(), ledger.attempts())
            with (
                DataContext.current(data_context(sizes.clips_a_look)),
                grants(spec, priced, found, ledger, stop, progress) as purse,
                lasting_strikes(output, priced.fingerprint, run_id, spec.retry.errors, spec.limits.model_s) as strikes,
                closing(everything(partial(chain, spec, priced, sizes, found, history, strikes, purse),
                        parts(found.first(limit), priced.clips_each, share, sizes.under_way), spec.limits)) as arrivals,
                Uncommitted(ledger, spec.output.commit_rows, books.wrote) as rows,  # first out: Ray may be going too
            ):  # fmt: skip
                while not (stopped := stop.reason) and (outcomes := next(arrivals, None)) is not None:
                    books.add(outcomes)
                    rows.add(outcomes)
                    progress.show()
            summary = closed(spec, books, stopped, run_id=run_id, rows_written=rows.written, canary=seen,
                             fingerprint=priced.fingerprint, output=output)  # fmt: skip
            if summary["complete"]:
                ledger.publish()
            folder.write_json("summary", summary)  # last: what it says of the run is so
        return summary


def chain(spec: JobSpec, priced: Plan, sizes: Pools, found: Inspection, history: History, strikes: Strikes,
          purse: Grants | None, part: Part) -> Dataset:  # fmt: skip
    """manifest -> videos with something to do -> clips with frames -> finished rows. No two steps ask for the same."""
    engine, same = Engine.of(spec, priced), Constants(priced.model, spec.prune.method, spec.prune.select)
    captioning = (partial(engine.load, sizes.caption_gpus, purse), same, strikes, sizes.captioners[1])
    return clips_with_frames(spec, engine, sizes, found, history, strikes, part).map_batches(
        Caption, fn_constructor_args=captioning, batch_format="pyarrow", batch_size=sizes.batch_videos,
        **captioners(sizes))  # fmt: skip
