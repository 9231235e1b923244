"""What earlier runs have spent on this input: that is no longer in its purse.

A fingerprint's rows are those of all nights, and every night's plan and limit are of its own input. What was spent on a
video that is gone from it, or on a version that was replaced, came out of the purses of then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mlb_batch.chain.feed import looked_up
from mlb_batch.chain.parts import Part
from mlb_batch.ledger import DoneIds, Ledger, annotation_id
from mlb_batch.progress import Progress
from mlb_batch.source import Inspection, Prompt
from mlb_batch.spec import JobSpec
from mlb_batch.stop import Stop
from mlb_batch.work import History, Work

ROWS = "rows"
_ASKED = ("video_id", "video_version", "prompt_id", "kind", "prompt")


def spent_on(spec: JobSpec, found: Inspection, ledger: Ledger, columns: Sequence[str], stop: Stop,
             progress: Progress) -> Counter[str]:  # fmt: skip
    """How many annotations of this input are committed (ROWS), and the sums of whole-number columns over them."""
    sums: Counter[str] = Counter()
    if not ledger.done():
        return sums
    here = _names(spec, found, ledger.fingerprint, stop, progress)
    for row in ledger.rows([*(_ASKED if spec.clips else ("annotation_id",)), *columns]):
        if (_asked(*(row[name] for name in _ASKED)) if spec.clips else row["annotation_id"]) in here:
            sums.update({ROWS: 1, **{name: row[name] for name in columns}})
        progress.before(f"looking up what earlier runs have spent: {sums[ROWS]:,} rows")
    return sums


def _names(spec: JobSpec, found: Inspection, fingerprint: str, stop: Stop, progress: Progress) -> DoneIds:
    """What names this input's annotations in their rows; some of it only, where the run is to stop."""
    names, nothing = DoneIds(), History(fingerprint, spec.retry)
    for n, work in enumerate(looked_up(spec, found, nothing, Part()), 1):
        if stop.reason:
            break
        progress.before(f"looking up what earlier runs have spent: {n:,} videos")
        names.update(_of_clips(work) if spec.clips else [ask.annotation_id for ask in work.asks])
    return names


def _of_clips(work: Work) -> list[str]:
    """Which clips a video has shows when it is opened: all that stand of the same question to it are this input's."""
    prompts = [ask.prompt for ask in work.asks]
    return [_asked(work.video.video_id, work.version, one.id, one.kind, one.text) for one in prompts]


def _asked(video_id: str, version: str, prompt_id: str, kind: str, text: str) -> str:
    return annotation_id(video_id, version, None, None, Prompt(prompt_id, kind, text), "")
