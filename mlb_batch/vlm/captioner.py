"""Frames in, text out: the engine as one object, used by a stage and by anyone without Ray.

Shapes: F frames, H x W pixels, C colours, N visual tokens, V tower width (of features) or words (of logits).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from mlb_batch.cost.budget import feature_price
from mlb_batch.cost.schedule import ClipShape, Schedule
from mlb_batch.errors import RowError
from mlb_batch.storage_errors import first_line
from mlb_batch.vlm.billing import Shares, shares
from mlb_batch.vlm.checkpoint import Checkpoint
from mlb_batch.vlm.choices import parse_letter
from mlb_batch.vlm.generate import NO_NUMBERS, Generated, Generation, Sampling
from mlb_batch.vlm.load import load, pick_device, pick_dtype
from mlb_batch.vlm.memory import is_out_of_memory, keep_to
from mlb_batch.vlm.meter import Meter
from mlb_batch.vlm.prefill import prefill
from mlb_batch.vlm.prepare import Preparer, Source, redundancy
from mlb_batch.vlm.prompts import Prompter
from mlb_batch.vlm.selection import selection_rows
from mlb_batch.vlm.sequence import Prefilled
from mlb_batch.vlm.small_files import generation_config
from mlb_batch.vlm.values import Answer, Ask, Clip, Settings

__all__ = ["Answer", "Ask", "Captioner", "Clip", "Settings"]


@dataclass(frozen=True)
class _Ready:
    """A clip with those of its asks whose prompts tokenize."""

    source: Source
    asks: tuple[Ask, ...]


@dataclass(frozen=True)
class _Begun:
    """A clip behind its prefill, without the tensors that it came with."""

    asks: tuple[Ask, ...]
    shape: ClipShape
    schedule: Schedule
    keep: int
    meter: Meter
    said: list[Generated]  # one an ask

    @property
    def ended(self) -> bool:
        return all(one.finish_reason for one in self.said)


class Captioner:
    def __init__(self, checkpoint: Checkpoint, settings: Settings, model: Any = None) -> None:
        """`model`: loaded already, where several captioners stand on the same weights."""
        self.settings, self.shape = settings, checkpoint.shape
        self.without_result = 0  # operations so far that no answer's bill carries: what they were for has failed
        self._device = pick_device(settings.device)
        dtype = pick_dtype(settings.dtype, self._device)
        keep_to(self._device, settings.device_share)
        self._prompter = Prompter(checkpoint)  # small files first: what is wrong with them is said in one line
        self._stop = _stop_tokens(checkpoint, self._prompter)
        model = load(checkpoint, self._device, dtype) if model is None else model
        self._preparer = Preparer.of(model, checkpoint, self._prompter.prefix, settings)
        self._decoder = self._preparer.decoder

    def annotate(self, clips: Sequence[Clip]) -> list[list[Answer | RowError]]:
        """One list a clip, one entry an ask. As many clips at once as memory has room for."""
        suffixes = [[self._suffix(ask) for ask in clip.asks] for clip in clips]
        ready = [self._ready(clip, some) for clip, some in zip(clips, suffixes, strict=True)]
        answered = iter(self._fit([one for one in ready if one.asks]))
        out: list[list[Answer | RowError]] = []
        for r, some in zip(ready, suffixes, strict=True):
            answers = iter(next(answered) if r.asks else [])
            out.append([s if isinstance(s, RowError) else next(answers) for s in some])
        return out

    def measure(self, clip: Clip) -> tuple[ClipShape, float] | None:
        """A clip as its price sees it, and how much it repeats itself (0: every frame is new, 1: all are the same).

        None where no prompt of it can be asked.
        """
        ready = self._ready(clip, [self._suffix(ask) for ask in clip.asks])
        if not ready.asks:
            return None
        with torch.inference_mode():
            seen = self._preparer.see([clip.pixels_FHWC])[0]
        return self._preparer.clip_shape(ready.source), redundancy(seen.feature_FV)

    def _suffix(self, ask: Ask) -> tuple[int, ...] | RowError:
        try:
            return self._prompter.asked(self.settings.method, ask.kind, ask.text, ask.choices)
        except RowError as error:
            return error

    def _ready(self, clip: Clip, suffixes: list[tuple[int, ...] | RowError]) -> _Ready:
        good = [(ask, s) for ask, s in zip(clip.asks, suffixes, strict=True) if not isinstance(s, RowError)]
        key = good[0][0].annotation_id if good else ""
        texts, ids = tuple(ask.text for ask, _ in good), tuple(s for _, s in good)
        trace = any(self._sampled(ask) for ask, _ in good)
        return _Ready(Source(key, clip.pixels_FHWC, texts, ids, trace), tuple(ask for ask, _ in good))

    def _sampled(self, ask: Ask) -> bool:
        """Whether this answer's selection is recorded: a share of all, the same ones in every run."""
        share = int.from_bytes(hashlib.sha256(ask.annotation_id.encode()).digest()[:4], "big") / 2**32
        return share < self.settings.selections

    def _fit(self, clips: list[_Ready]) -> list[list[Answer | RowError]]:
        """Of clips that do not fit in memory after all, those without an answer are halved, down to single ones."""
        begun_s, answers, reason = time.monotonic(), dict[int, list[Answer | RowError]](), ""
        meters = [Meter(self.shape) for _ in clips]
        try:
            with torch.inference_mode():
                self._run(clips, answers, meters)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = first_line(error)
        finally:
            self.without_result += sum(meter.bill.total for i, meter in enumerate(meters) if i not in answers)
        # Outside the handler: its traceback would hold the tensors of the batch that failed.
        clip_s = (time.monotonic() - begun_s) / max(len(answers), 1)
        answers = {i: [_timed(one, clip_s / len(some)) for one in some] for i, some in answers.items()}
        left = [i for i in range(len(clips)) if i not in answers]
        if left and len(clips) == 1:
            return [[RowError("out_of_memory", f"this clip alone does not fit: {reason}")] * len(clips[0].asks)]
        if left and self._device.type == "cuda":
            torch.cuda.empty_cache()
        half = (len(left) + 1) // 2
        for part in (left[:half], left[half:]):
            if part:
                answers.update(zip(part, self._fit([clips[i] for i in part]), strict=True))
        return [answers[i] for i in range(len(clips))]

    def _run(self, clips: list[_Ready], answers: dict[int, list[Answer | RowError]], meters: list[Meter]) -> None:
        """Every clip to its last token: as many together as there is room for, others in the place of who has ended."""
        line, together = self._preparer.line([one.source for one in clips]), Generation(self._decoder, self._stop)
        inside: dict[int, _Begun] = {}
        try:
            while len(answers) < len(clips):
                if group := line.next_group():
                    together.make_room()
                    begun = self._begin([clips[i] for i in group], [meters[i] for i in group], together)
                    inside.update(zip(group, begun, strict=True))
                else:
                    together.go_on()
                for i in [i for i, one in inside.items() if one.ended]:
                    answers[i] = self._answers(inside.pop(i))
                    line.leave(i)
        finally:  # what broke off had generated so far; its prefill is in the meters
            self.without_result += sum(said.operations for begun in inside.values() for said in begun.said)

    def _begin(self, group: list[_Ready], meters: list[Meter], together: Generation) -> list[_Begun]:
        outlines, prefilled = self._prefilled(group, meters)
        samplings = [self._sampling(ask) for one in group for ask in one.asks]
        said = iter(together.join(prefilled, samplings))
        return [
            _Begun(one.asks, shape, schedule, keep, meter, [next(said) for _ in one.asks])
            for one, (shape, schedule, keep), meter in zip(group, outlines, meters, strict=True)
        ]

    def _prefilled(self, group: list[_Ready],
                   meters: list[Meter]) -> tuple[list[tuple[ClipShape, Schedule, int]], list[Prefilled]]:  # fmt: skip
        """Of each clip its outline, and of each of its prompts the caches: the tokens that they came from are gone."""
        inputs = self._preparer.inputs([one.source for one in group], meters)
        prefilled = prefill(self._decoder, self.settings.method, inputs, meters, self.settings.max_new_tokens)
        outlines = [(given.shape, given.schedule, given.keep) for given in inputs]
        return outlines, [one for some in prefilled for one in some]

    def _sampling(self, ask: Ask) -> Sampling:
        """Seeded by the annotation, so that a text depends neither on its batch nor on the order of the job."""
        digest = hashlib.sha256(f"{self.settings.seed}:{ask.annotation_id}".encode()).digest()
        seed = int.from_bytes(digest[:7], "big")
        return Sampling(self.settings.max_new_tokens, self.settings.temperature, seed)

    def _answers(self, clip: _Begun) -> list[Answer | RowError]:
        settings, schedule = self.settings, clip.schedule
        expected = settings.expected_new_tokens or settings.max_new_tokens
        features = feature_price(self._preparer.pair_shape, clip.shape, schedule)
        bills = shares(
            self.shape, clip.shape, schedule, clip.meter.bill, clip.meter.paper_macs,
            [one.operations for one in clip.said], expected, features,
        )  # fmt: skip
        each = zip(clip.asks, clip.said, bills, clip.shape.suffixes, strict=True)
        return [self._answer(clip, *one) for one in each]

    def _answer(self, clip: _Begun, ask: Ask, sequence: Generated, bill: Shares, suffix: int) -> Answer | RowError:
        if sequence.finish_reason == NO_NUMBERS:
            self.without_result += bill.executed.total
            message = "the model's output is NaN or infinite; a model.dtype with more range may help"
            return RowError("model_error", message, retryable=False)
        text = str(self._prompter.tokenizer.decode(sequence.said, skip_special_tokens=True)).strip()
        return Answer(
            text=text,
            choice=parse_letter(text, ask.choices) if ask.kind == "choice" else "",
            choice_scores=self._letter_scores(sequence, len(ask.choices)) if ask.kind == "choice" else (),
            finish_reason=sequence.finish_reason,
            num_prompt_tokens=clip.shape.prefix + suffix,
            num_new_tokens=len(sequence.tokens),
            num_visual_tokens=clip.shape.visual,
            num_kept_tokens=len(sequence.prefilled.kept_N),
            num_segments=sequence.prefilled.segments,
            relevance_source=self.settings.method.traits.relevance_source,
            keep=clip.keep,
            bill=bill,
            model_s=0.0,  # known when all that ran beside it have ended
            selections=selection_rows(ask.annotation_id, clip.shape, sequence.prefilled.trace)
            if self._sampled(ask)
            else (),
        )

    def _letter_scores(self, sequence: Generated, choices: int) -> tuple[float, ...]:
        """Probability of each option's letter as the first token, against the other letters."""
        ids = self._prompter.letter_ids(choices)
        letters = torch.stack([torch.logsumexp(sequence.first_logits_V[i], dim=0) for i in ids])
        return tuple(torch.softmax(letters, dim=0).tolist())


def _timed(one: Answer | RowError, model_s: float) -> Answer | RowError:
    return replace(one, model_s=model_s) if isinstance(one, Answer) else one


def _stop_tokens(checkpoint: Checkpoint, prompter: Prompter) -> frozenset[int]:
    """Where generation ends, as in transformers: by generation_config.json, or where there is none by config.json;
    where neither names a token, at the tokenizer's end of sequence.
    """
    ids: int | list[int] | None = generation_config(checkpoint).eos_token_id
    if ids is None:
        ids = prompter.tokenizer.eos_token_id
    return frozenset([ids] if isinstance(ids, int) else ids or [])
