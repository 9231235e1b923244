"""The optional judge: an OpenAI-compatible endpoint that compares an answer with the truth.

Its address is checked as every address is that a job opens, it is asked by the client that follows no redirect, and
every verdict is kept with the model that gave it, so that a second evaluation asks nothing again. What it says is data:
only yes, no and a number are read from it.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mlb_batch.errors import JobError, OutputError, RowError, SpecError
from mlb_batch.evaluate.spec import JudgeSpec
from mlb_batch.outside import printable
from mlb_batch.source.table import as_text
from mlb_batch.source.uris import UriPolicy
from mlb_batch.storage import Store
from mlb_batch.storage_errors import first_line, foreign_errors
from mlb_batch.web import guarded_client

NAME = "verdicts.parquet"
TRIES, PAUSE_S = 3, 1.0
SAVE_EVERY = 200
PASSING = (408, 409, 425, 429)  # beside 500 and above: it was slow, in conflict, too early or too much at once
OF_ONE_QUESTION = (400, 413, 422)  # too long for the model, or against the rules of who runs it
_ASPECTS = {
    "match": "whether the predicted answer means the same as the correct one; synonyms and paraphrases count as right",
    "correctness": "factual correctness: nothing in the predicted answer may contradict the correct one",
    "detail": "detail: how complete and how specific the predicted answer is, held against the correct one",
    "context": "context: whether the predicted answer fits what the video as a whole is about",
    "temporal": "order in time: whether the predicted answer has the sequence of events right",
    "consistency": "consistency: two answers to two forms of one question must agree with each other and the truth",
}
_SYSTEM = (
    "You grade answers about videos. Compare the predicted answer with the correct answer and grade {aspect}. "
    'Reply with one JSON object only, like {{"pred": "yes", "score": 4}}: pred is yes or no (is it right), score is a '
    "whole number from 0 (wrong) to 5 (fully right)."
)
# Each part takes what it can and gives nothing back (`*+`): thousands of blanks are read once.
_IS = r"""["'*\s]*+(?:\([^)]{0,200}+\)["'*\s]*+)?(?:[:=]|is\b|of\b)?["'*\s]*+"""
_PRED = re.compile(rf"pred{_IS}(yes|no)\b", re.I)
_SCORE = re.compile(rf"score{_IS}(\d+(?:\.\d+)?)", re.I)


@dataclass(frozen=True)
class Question:
    """One thing to be judged."""

    asked: str
    truth: str
    said: str
    aspect: str

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:32]


_GREETING = Question("What colour is a ripe tomato?", "red", "It is red.", "match")


@dataclass(frozen=True)
class Verdict:
    key: str
    right: bool
    score: float  # 0 to 5
    judge: str  # the model as it was asked for
    version: str  # the model as the endpoint called itself
    url: str


class Judge:
    def __init__(self, spec: JudgeSpec, store: Store) -> None:
        self._spec, self._store = spec, store
        self._url = _checked(spec.url)
        self._key = _key(spec)
        kept = _kept(store)
        self._known = {v.key: v for v in kept if (v.judge, v.url) == (spec.model, self._url)}
        self._refusal = ""  # what was said instead of the last verdict that an answer did not give
        self._trouble = ""  # why the last answer did not come
        self._silent = 0  # in a row
        self._others = [v for v in kept if (v.judge, v.url) != (spec.model, self._url)]

    def greet(self) -> None:
        """One question to an endpoint that never graded here, before hours are spent on what it is to grade."""
        if not self._known:
            self.verdicts([_GREETING])

    def verdicts(self, questions: Iterable[Question]) -> dict[str, Verdict]:
        """What is known of these now, by their keys; a few that the endpoint did not answer well may be missing."""
        new = list({question.key: question for question in questions if question.key not in self._known}.values())
        for start in range(0, len(new), SAVE_EVERY):
            before = len(self._known)
            try:
                asyncio.run(self._ask_all(new[start : start + SAVE_EVERY]))
            finally:  # also where a later one is refused, or a signal ends it: a verdict that was given is paid for
                if len(self._known) > before:
                    self._save()
            if self._gone or (self._trouble and not self._known):
                graded = f"judge.url: {self._url} gives no verdict any more ({self._trouble})"
                raise JobError(f"{graded}; what is answered and graded stands: run the same command again")
            if self._refusal and not self._known:
                raise SpecError(f"judge.url: {self._url} grades nothing: {self._refusal}")
        return self._known

    @property
    def _gone(self) -> bool:
        """It did not answer twice as many in a row as it is asked at once: the rest is not waited for."""
        return self._silent >= 2 * self._spec.at_once

    def names(self) -> tuple[str, ...]:
        """Which models graded: as asked for, and as they called themselves."""
        return tuple(sorted({f"{one.judge} ({one.version}) at {one.url}" for one in self._known.values()}))

    async def _ask_all(self, questions: Sequence[Question]) -> None:
        gate = asyncio.Semaphore(self._spec.at_once)
        async with await guarded_client(answer_s=self._spec.timeout_s) as client:
            await asyncio.gather(*(self._ask(client, gate, question) for question in questions))

    async def _ask(self, client: Any, gate: asyncio.Semaphore, question: Question) -> None:
        """Enters the verdict as soon as it is given."""
        passing: tuple[type[BaseException], ...] = (*foreign_errors(), ValueError, RecursionError)
        async with gate:
            for attempt in range(0 if self._gone else TRIES):
                if attempt:
                    await asyncio.sleep(PAUSE_S * 2**attempt)
                try:
                    found = await self._answer(client, question)
                except PermissionError as error:
                    raise SpecError(f"judge.url: {error}") from None
                except TimeoutError:
                    self._trouble = f"no whole answer within judge.timeout_s, {self._spec.timeout_s:g} s"
                except passing as error:
                    self._trouble = first_line(error) or type(error).__name__
                else:
                    self._silent = 0
                    if found:
                        self._known[found.key] = found
                    return
            self._silent += 1

    async def _answer(self, client: Any, question: Question) -> Verdict | None:
        """Raises ValueError, or what its client or a reply that is nested too deep raises, where it may pass."""
        url, body = f"{self._url}/chat/completions", self._body(question)
        async with (
            asyncio.timeout(self._spec.timeout_s),  # the client's own is of silence, which a blank now and then breaks
            client.post(url, json=body, headers=self._headers()) as response,
        ):
            if response.status == 200:
                return self._read(question, await response.json(content_type=None))
            said = f"HTTP {response.status}: {printable(await response.text())}"
        if response.status in OF_ONE_QUESTION:
            self._refusal = said
            return None
        if response.status < 500 and response.status not in PASSING:
            raise SpecError(f"judge.url: {self._url} refuses ({said}); check judge.model and its key")
        raise ValueError(said)

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key}"} if self._key else {}

    def _body(self, question: Question) -> dict[str, Any]:
        told = f"Question: {question.asked}\nCorrect answer: {question.truth}\nPredicted answer: {question.said}"
        system = _SYSTEM.format(aspect=_ASPECTS[question.aspect])
        messages = [{"role": "system", "content": system}, {"role": "user", "content": told}]
        return {"model": self._spec.model, "temperature": 0, "messages": messages}

    def _read(self, question: Question, answer: Any) -> Verdict | None:
        try:
            said, named = str(answer["choices"][0]["message"]["content"]), answer.get("model")
        except (KeyError, IndexError, TypeError):
            said, named = str(answer), None
        grade = _grade(said)
        if grade is None:
            self._refusal = f"it said {printable(said)}"
            return None
        return Verdict(question.key, *grade, self._spec.model, as_text(named or self._spec.model), self._url)

    def _save(self) -> None:
        file = io.BytesIO()
        rows = [asdict(verdict) for verdict in [*self._others, *self._known.values()]]
        pq.write_table(pa.Table.from_pylist(rows), file)
        self._store.replace(NAME, file.getvalue())


def _grade(said: str) -> tuple[bool, float] | None:
    """Right or not, and the score, as they are said last: a model may use single quotes, or think aloud before it."""
    said = said.rpartition("</think>")[2]
    preds, scores = _PRED.findall(said), _SCORE.findall(said)
    if "<think>" in said or not scores or float(scores[-1]) > 5:
        return None
    score = float(scores[-1])
    return preds[-1].lower() == "yes" if preds else score >= 3, score


def _kept(store: Store) -> list[Verdict]:
    try:
        data = store.read(NAME)
    except FileNotFoundError:
        return []
    try:
        return [Verdict(**row) for row in pq.read_table(io.BytesIO(data)).to_pylist()]
    except (pa.ArrowException, OSError, TypeError) as error:
        remedy = "delete it, and the judge is asked once more"
        raise OutputError(f"{store.uri}/{NAME} is damaged ({first_line(error)}): {remedy}") from None


def _checked(url: str) -> str:
    if not url.lower().startswith(("http://", "https://")):
        raise SpecError(f"judge.url: {url!r} is no web address; give the base of an API, like https://host/v1")
    try:
        return UriPolicy("", (url,)).resolve(f"{url.rstrip('/')}/chat/completions").removesuffix("/chat/completions")
    except RowError as error:
        raise SpecError(f"judge.url: {error.message}") from None


def _key(spec: JudgeSpec) -> str:
    if spec.key_env is None:
        return ""
    if spec.key_env not in os.environ:
        raise SpecError(f"judge.key_env: the environment variable {spec.key_env} is not set")
    return os.environ[spec.key_env].strip()  # one that was read from a file ends with its line
