"""An answer becomes a row of annotations/, a failure one of errors/: see columns.py for the columns, and the ledger for
those it stamps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlb_batch.cost.schedule import WHOLE
from mlb_batch.errors import RowError
from mlb_batch.video import Frames
from mlb_batch.work import Ask, Row, Work

if TYPE_CHECKING:
    from mlb_batch.vlm.captioner import Answer


@dataclass(frozen=True)
class Constants:
    """What is the same in every row of a run."""

    model: str
    method: str
    select: str


def annotation_row(work: Work, ask: Ask, frames: Frames, answer: Answer, read_s: float, same: Constants) -> Row:
    start_s = work.start_s or 0.0
    return {
        "annotation_id": ask.annotation_id,
        "video_id": work.video.video_id,
        "uri": work.video.uri,
        "video_version": work.version,
        "clip_start_s": start_s,
        "clip_end_s": work.end_s if work.end_s is not None else start_s + frames.duration_s,
        "prompt_id": ask.prompt.id,
        "kind": ask.prompt.kind,
        "prompt": ask.prompt.text,
        "attempt": ask.attempt,
        "read_s": read_s,
        "model": same.model,
        "method": same.method,
        "select": same.select,
        **_frame_columns(frames),
        **_answer_columns(answer, frames.partial),
        **_cost_columns(answer),
        **work.video.columns,
    }


def error_row(work: Work, ask: Ask, error: RowError) -> Row:
    return {
        "annotation_id": ask.annotation_id,
        "video_id": work.video.video_id,
        "uri": work.video.uri,
        "video_version": work.version,
        "clip_start_s": work.start_s or 0.0,
        "clip_end_s": work.end_s or 0.0,
        "provisional": work.video.problem is not None,
        "prompt_id": ask.prompt.id,
        "prompt": ask.prompt.text,
        "error_class": error.error_class,
        "message": error.message,
        "retryable": error.retryable,
        "attempt": ask.attempt,
    }


def _frame_columns(frames: Frames) -> Row:
    return {
        "duration_s": frames.duration_s,
        "frames_wanted": frames.wanted,
        "frames_read": len(frames.times_s),
        "frame_times_s": list(frames.times_s),
    }


def _answer_columns(answer: Answer, partial: bool) -> Row:
    cut_short = answer.finish_reason == "length"
    return {
        "text": answer.text,
        "choice": answer.choice,
        "choice_scores": list(answer.choice_scores),
        # Frames that are missing outweigh a text that was cut: finish_reason tells the latter anyway.
        "status": "partial" if partial else "truncated" if cut_short else "ok",
        "finish_reason": answer.finish_reason,
        "num_prompt_tokens": answer.num_prompt_tokens,
        "num_new_tokens": answer.num_new_tokens,
        "num_visual_tokens": answer.num_visual_tokens,
        "num_kept_tokens": answer.num_kept_tokens,
        "keep_ratio": answer.keep / WHOLE,
        "num_segments": answer.num_segments,
        "relevance_source": answer.relevance_source,
        "model_s": answer.model_s,
    }


def _cost_columns(answer: Answer) -> Row:
    bill = answer.bill
    return {
        "flops_planned": bill.planned.total,
        "flops_executed": bill.executed.total,
        "flops_vanilla": bill.vanilla.total,
        "flops_vision": bill.executed.vision,
        "flops_prefill": bill.executed.prefill,
        "flops_scoring": bill.executed.scoring,
        "flops_generate": bill.executed.generate,
        "macs_paper_planned": bill.paper_planned,
        "macs_paper_executed": bill.paper_executed,
        "macs_paper_vanilla": bill.paper_vanilla,
    }
