"""The judge: a real server on this machine, that hiccups, babbles, refuses and trickles."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from evaluations import ITEMS, Annotate, answered, cell, compare, shown, small, spec
from loopback import Handler, Server

from mlb_batch.errors import JobError, OutputError, SpecError
from mlb_batch.evaluate.items import Item
from mlb_batch.evaluate.judge import Judge, Question, _grade
from mlb_batch.evaluate.results import results
from mlb_batch.evaluate.spec import JudgeSpec
from mlb_batch.evaluate.summary import Counting, costs, estimates
from mlb_batch.evaluate.tables import markdown
from mlb_batch.storage import open_store


class Endpoint(Server):
    """An OpenAI-compatible endpoint that finds an answer right when it holds the truth."""

    def __init__(self) -> None:
        super().__init__(_Chat)
        self.url = f"http://localhost:{self.port}/v1"
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.fail_first, self.fail_with = 0, 503
        self.closed = threading.Event()

    def reply(self, body: dict[str, Any]) -> tuple[int, Any]:
        if self.fail_first:
            self.fail_first -= 1
            return self.fail_with, {}
        if body["model"] == "none":
            return 404, {"error": "no model none"}
        told = dict(line.split(": ", 1) for line in body["messages"][1]["content"].splitlines() if ": " in line)
        if told["Predicted answer"] == "rude":
            return 400, {"error": "content policy"}
        if told["Predicted answer"] == "unpaid":
            return 402, {"error": "no credit left"}
        if told["Predicted answer"] == "deep":
            return 200, b"[" * 100_000
        if told["Predicted answer"] == "stop":
            os.kill(os.getpid(), signal.SIGTERM)
        if told["Predicted answer"] == "babble" or body["model"] == "mute":
            return 200, {"choices": [{"message": {"content": "I can't say."}}]}
        is_right = told["Correct answer"] in told["Predicted answer"]
        said = f"{{'pred': '{'yes' if is_right else 'no'}', 'score': {4 if is_right else 1}}}"
        model = "\ud800" if told["Predicted answer"] == "x by half a sign" else "judge-2026-01"
        return 200, {"model": model, "choices": [{"message": {"content": said}}]}

    def blanks_before(self, body: dict[str, Any]) -> int:
        return 20 if "Predicted answer: x by and by" in body["messages"][1]["content"] else 0

    def __exit__(self, *raised: object) -> None:
        self.closed.set()
        super().__exit__(*raised)


class _Chat(Handler):
    server: Endpoint

    def do_POST(self) -> None:
        endpoint, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        endpoint.asked.append(body)
        endpoint.keys.append(self.headers.get("Authorization", ""))
        status, answer = endpoint.reply(body)
        self.send_response(status)
        self.end_headers()
        with suppress(ConnectionError):  # who asked may have left
            for _ in range(endpoint.blanks_before(body)):
                self.wfile.write(b" ")
                endpoint.closed.wait(0.1)
            self.wfile.write(answer if isinstance(answer, bytes) else json.dumps(answer).encode())


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint() as one:
        yield one


def judge(endpoint: Endpoint, tmp_path: Path, **more: Any) -> Judge:
    return Judge(JudgeSpec(url=endpoint.url, model="judge", **more), open_store(str(tmp_path)))


def test_a_verdict_is_asked_for_once_and_says_who_gave_it(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret\n")  # read from a file, it ends with its line
    good, bad = Question("who?", "a man", "it is a man", "match"), Question("who?", "a man", "a dog", "match")
    given = judge(endpoint, tmp_path, key_env="JUDGE_KEY").verdicts([good, bad, good])
    assert (given[good.key].right, given[good.key].score, given[bad.key].right) == (True, 4.0, False)
    assert len(endpoint.asked) == 2 and set(endpoint.keys) == {"Bearer secret"}
    assert endpoint.asked[0]["model"] == "judge" and endpoint.asked[0]["temperature"] == 0
    again = judge(endpoint, tmp_path)
    assert again.verdicts([good, bad]) == given and len(endpoint.asked) == 2
    assert again.names() == (f"judge (judge-2026-01) at {endpoint.url}",)
    assert b"secret" not in (tmp_path / "verdicts.parquet").read_bytes()
    (tmp_path / "verdicts.parquet").write_bytes(b"PAR1")
    with pytest.raises(OutputError, match=r"verdicts\.parquet is damaged .*: delete it"):
        judge(endpoint, tmp_path)


@pytest.mark.parametrize("status", [408, 409, 425, 429, 503])
def test_an_endpoint_that_hiccups_is_asked_again_and_one_that_babbles_gives_no_verdict(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr("mlb_batch.evaluate.judge.PAUSE_S", 0.01)
    endpoint.fail_first, endpoint.fail_with = 1, status
    good, babble = Question("?", "x", "x", "match"), Question("?", "x", "babble", "match")
    given = judge(endpoint, tmp_path).verdicts([good, babble])
    assert given[good.key].right and babble.key not in given and len(endpoint.asked) == 3


def test_an_answer_is_waited_for_as_long_as_is_said_whatever_it_sends_meanwhile(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy keeps a connection open with a blank now and then: the silence between two is never long."""
    monkeypatch.setattr("mlb_batch.evaluate.judge.PAUSE_S", 0.0)
    good, slow = Question("?", "x", "x", "match"), Question("?", "x", "x by and by", "match")
    assert judge(endpoint, tmp_path).verdicts([good])[good.key].right  # with all the time that it may want
    given = judge(endpoint, tmp_path, timeout_s=0.5).verdicts([good, slow])
    assert good.key in given and slow.key not in given and len(endpoint.asked) == 1 + 3
    with pytest.raises(JobError, match=r"\(no whole answer within judge\.timeout_s, 0\.5 s\)"):
        judge(endpoint, tmp_path / "new", timeout_s=0.5).verdicts([slow])


@pytest.mark.parametrize(("last", "ends"), [("unpaid", SpecError), ("stop", SystemExit)])
def test_verdicts_that_were_given_are_kept_however_the_rest_ends(
    endpoint: Endpoint, tmp_path: Path, last: str, ends: type[BaseException]
) -> None:
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as in the command
    given = [Question("?", "x", f"x {number}", "match") for number in range(9)]
    try:
        with pytest.raises(ends):
            judge(endpoint, tmp_path, at_once=1).verdicts([*given, Question("?", "x", last, "match")])
    finally:
        signal.signal(signal.SIGTERM, before)
    endpoint.asked.clear()
    assert len(judge(endpoint, tmp_path).verdicts(given)) == 9 and endpoint.asked == []


def test_a_reply_that_is_nested_too_deep_or_half_a_sign_costs_no_other_verdict(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlb_batch.evaluate.judge.PAUSE_S", 0.0)
    good, deep, half = (Question("?", "x", said, "match") for said in ("x", "deep", "x by half a sign"))
    given = judge(endpoint, tmp_path).verdicts([deep, good, half])
    assert given[good.key].right and deep.key not in given and given[half.key].version == "?"
    assert judge(endpoint, tmp_path).verdicts([good, half]) == given


def test_a_question_that_the_endpoint_refuses_stays_ungraded_and_only_where_it_refuses_all_is_it_a_mistake(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    good, rude = Question("?", "x", "x", "match"), Question("?", "x", "rude", "match")
    with pytest.raises(SpecError, match=r"grades nothing: HTTP 400: .*content policy"):
        judge(endpoint, tmp_path).verdicts([rude])
    given = judge(endpoint, tmp_path).verdicts([rude, good])
    assert given[good.key].right and rude.key not in given


@pytest.mark.parametrize(
    ("said", "grade"),
    [
        ('{"pred": "yes", "score": 4}', (True, 4.0)), ("{'pred': 'no', 'score': 0}", (False, 0.0)),
        ('```json\n{"pred": "no",\n "score": 1.5}\n```', (False, 1.5)), ("**Pred:** yes. **Score:** 5/5", (True, 5.0)),
        ("pred is no, score is 2", (False, 2.0)), ("Pred yes, score 3", (True, 3.0)), ("a score of 2", (False, 2.0)),
        ("Score (0-5): 4", (True, 4.0)), ('{"score": 2}', (False, 2.0)),
        ('<think>I am to reply like {"pred": "yes", "score": 4}.</think>\n{"pred": "no", "score": 0}', (False, 0.0)),
        ('I am to reply like {"pred": "yes", "score": 4}; so: {"pred": "no", "score": 1}', (False, 1.0)),
        ('<think>I am to reply like {"pred": "yes", "score": 4}', None), ('{"pred": "yes", "score": -1}', None),
        ('{"pred": "yes", "score": 45}', None), ('{"pred": "yes"}', None), ("", None), ("It scored highly.", None),
    ],
)  # fmt: skip
def test_a_grade_is_read_as_it_is_said_last(said: str, grade: tuple[bool, float] | None) -> None:
    assert _grade(said) == grade


def test_a_grade_is_found_however_much_is_said_around_it() -> None:
    """In one pass: behind "score" a reply may go on without end, and a verdict may be explained at length."""
    for endless in ("score" + " " * 20_000, "score" + "(" * 20_000, "score(" * 20_000, "pred is" + "\n" * 20_000):
        begun_s = time.process_time()
        assert _grade(endless) is None and _grade(f'{{"pred": "yes", "score": 4}} {endless}') == (True, 4.0)
        assert time.process_time() - begun_s < 1


def test_an_endpoint_that_is_gone_ends_the_evaluation_and_is_not_waited_for_answer_by_answer(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlb_batch.evaluate.judge.PAUSE_S", 0.0)
    one = judge(endpoint, tmp_path, at_once=2)
    one.greet()
    known = len(endpoint.asked)
    endpoint.fail_first = 10**6
    many = [Question("?", "x", f"x {number}", "match") for number in range(60)]
    with pytest.raises(JobError, match=r"gives no verdict any more \(HTTP 503.*run the same command again"):
        one.verdicts(many)
    assert len(endpoint.asked) - known <= 3 * 6, "of those that were on their way when it was given up"
    endpoint.fail_first = 0
    again = judge(endpoint, tmp_path, at_once=2)
    again.greet()
    assert endpoint.asked[-1]["messages"][1] != endpoint.asked[0]["messages"][1], "it is greeted once"
    assert all(question.key in again.verdicts(many) for question in many)


def test_a_judge_that_cannot_grade_is_found_before_anything_is_answered(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlb_batch.evaluate.judge.PAUSE_S", 0.0)
    annotate, given = Annotate(), {"url": endpoint.url, "model": "none"}
    with pytest.raises(SpecError, match=r"HTTP 404: .*no model none.*; check judge\.model and its key"):
        compare(small(tmp_path, judge=given), annotate)
    with pytest.raises(SpecError, match="grades nothing: it said I can't say"):
        compare(small(tmp_path, judge={**given, "model": "mute"}), annotate)
    gone = Endpoint()
    gone.server_close()
    with pytest.raises(JobError, match=r"gives no verdict any more \(.*onnect"):
        compare(small(tmp_path, judge={**given, "url": gone.url}), annotate)
    assert annotate.jobs == [] and not list((tmp_path / "out").glob("manifest*"))


@pytest.mark.parametrize("url", ["ftp://host/v1", "http://user:pw@host/v1", "https://host/../v1", "file:///etc"])
def test_a_judge_lives_at_a_plain_web_address(tmp_path: Path, url: str) -> None:
    with pytest.raises(SpecError, match=r"judge\.url"):
        given = spec(tmp_path, judge={"url": url, "model": "m"}).judge
        assert given
        Judge(given, open_store(str(tmp_path)))


def test_judged_answers_have_a_row_an_aspect_and_twins_are_graded_once(endpoint: Endpoint, tmp_path: Path) -> None:
    tags = {"aspects": "consistency"}
    items = [
        Item("g", "v", "judged", "what?", "a dog", tags={"aspects": "correctness,detail"}),
        Item("t.1", "v", "judged", "is it?", "a dog", tags={**tags, "twin": "t.2"}),
        Item("t.2", "v", "judged", "which?", "a dog", tags={**tags, "twin": "t.1"}),
        Item("o", "v", "open", "who?", "man"), Item("n", "v", "open", "who?", "babble"),
    ]  # fmt: skip
    said = answered({"g": "a dog runs", "t.1": "a dog", "t.2": "a cat", "o": "it is a man", "n": "babble"})
    rows = results("made", cell("c", "none"), items, said, judge(endpoint, tmp_path))
    marks = [(row["item"], row["task"], row["points"], row["score"]) for row in rows]
    assert marks == [("g", "correctness", 1, 4), ("g", "detail", 1, 4), ("t.1", "consistency", 1, 4),
                     ("t.2", "consistency", -1, -1), ("o", "open", 1, 4), ("n", "open", -1, -1)]  # fmt: skip
    assert sum(row["first"] for row in rows) == 5
    assert costs(rows, None)["ungraded"] == 1, "the babbled one: what was graded with its twin is graded"
    twin = next(body for body in endpoint.asked if "consistency" in body["messages"][0]["content"])
    assert "a dog" in twin["messages"][1]["content"] and "a cat" in twin["messages"][1]["content"]
    missing = results("made", cell("c", "none"), [*items, Item("lost", "w", "judged", "?", "x", tags={
        "aspects": "detail"})], said, judge(endpoint, tmp_path))  # fmt: skip
    for unanswered, mean in (("apart", 4.0), ("wrong", 3.2)):
        (score,) = [row for row in estimates({"c": missing}, [cell("c", "none")], Counting(unanswered))
                    if (row["metric"], row["by"]) == ("score", "all")]  # fmt: skip
        assert score["value"] == pytest.approx(mean)
    plain = results("made", cell("c", "none"), items, said, None)
    assert [row["points"] for row in plain] == [-1, -1, -1, -1, 0, 1], "without a judge, by match"


def test_tables_keep_right_answers_and_a_judges_scores_apart(endpoint: Endpoint, tmp_path: Path) -> None:
    """A judge gives both, a choice has no score, and both are called by their names."""
    one = cell("c", "none", 1.0)
    told = answered({"a": "red", "b": "B", "c": "x"})
    marked = {"c": results("made", one, ITEMS[:3], told, judge(endpoint, tmp_path))}
    for over in ("question", "kind"):
        found = estimates(marked, [one], Counting(average=over))
        spent = {"c": {**costs(marked["c"], marked["c"]), "peak_memory_mb": 0}}
        given = spec(tmp_path, methods=["none"])
        text = markdown(shown(given, cells=[one], estimates=found, costs=spent, average=over))
        by_kind = {part.splitlines()[0]: part for part in text.split("## ") if part.startswith("By kind")}
        shares, scores = by_kind["By kind of question: m, budget 100 %"], by_kind[
            "By kind of question: m, budget 100 %, judge's score (0 to 5)"]  # fmt: skip
        assert "| colour | 2 | 50.0 [" in shares and "| count | 1 | 100.0 [" in shares
        assert "| colour | 2 | 2.50 [" in scores and "count" not in scores
        assert ("## Accuracy, the mean over kinds" in text) == (over == "kind")
        assert ("## Judge's score (0 to 5), the mean over kinds" in text) == (over == "kind")
