"""The table of benchmarks: their files' columns, their prompts' shape, and how their score is counted.

`seen` says what a format was built from: `files` of the benchmark itself, `copies` of them as others hand them on (the
original's layout by its documentation), or its `documentation` only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from mlb_batch.evaluate.formats import File, Row
from mlb_batch.evaluate.items import Item
from mlb_batch.evaluate.loaders import Columns, Shape, columns, flattened, joined, load
from mlb_batch.source.table import as_text
from mlb_batch.vlm.choices import LETTERS

IMAGE = "evaluate-image.yaml"
WORLDS = ("world", "world-image")  # made here, see world.py


@dataclass(frozen=True)
class Benchmark:
    title: str
    files: tuple[str, ...]  # what its annotation files are called
    items: Callable[[Sequence[File]], Iterator[Item]]
    seen: Literal["files", "copies", "documentation"]
    # What a question counts whose video was not there: nothing, or it is left out (counted apart either way).
    unanswered: Literal["wrong", "apart"] = "wrong"
    average: Literal["question", "kind"] = "question"  # the headline: over questions, or over the kinds' own averages
    note: str = ""
    job: str = "evaluate-video.yaml"  # in jobs/: the models and methods that its published figures are about
    form: str = "choice"
    reported: str = ""  # what others report, LLaVA-OneVision-7B with 32 frames (by the FastVID authors)


_ACTIVITYNET_KINDS = ("motion", "spatial", "temporal", "yes/no", "colour", "object", "location", "number", "other")
_PLAIN = Shape()
_VIDEOMME = Shape(
    before="Select the best answer to the following multiple-choice question based on the video. "
    "Respond with only the letter (A, B, C, or D) of the correct option.",
    last="The best answer is:",
)
_MLVU = Shape(
    question="Question: {question}", options="Options:", option="({letter}) {option}",
    last="Only give the best option.\nBest option: (",
)  # fmt: skip
_LONGVIDEOBENCH = Shape(question="Question: {question}")


def _options(told: Any) -> list[str]:
    """A text would be taken for a list of its signs."""
    if not isinstance(told, list):
        raise ValueError(f"its options are {str(told)[:60]!r}, not a list")
    if None in told:
        raise ValueError("one of its options is null")
    return [str(one) for one in told]


def _without_letters(options: Sequence[str]) -> list[str]:
    """Options without the letters that their file writes before each; "U.S. Army" has none."""
    lettered = [re.match(rf"\(?{letter}[.):]\s*(.*)", one, re.S) for letter, one in zip(LETTERS, options, strict=False)]
    return [found[1] for found in lettered if found] if all(lettered) else list(options)


def _number(told: Any) -> int:
    """Of an option, as copies of a file may write it: 1, 1.0 or "1"."""
    number = float(told)
    if not number.is_integer():
        raise ValueError(f"its answer is {told!r}, not an option's number")
    return int(number)


def _number_of_letter(row: Row) -> int:
    letter = str(row["answer"]).strip()[:1]
    if not letter or letter not in LETTERS:
        raise ValueError(f"its answer is {row['answer']!r}, not an option's letter")
    return LETTERS.index(letter)


def _numbered(prefix: str, first: int) -> Callable[[Row], list[str]]:
    """Options in columns like a0 ... a4; none where a row has no such columns. A row that broke off has them, empty."""
    return lambda row: [str(columns(name)(row)) for n in range(first, first + 5) if (name := f"{prefix}{n}") in row]


def _named(row: Row, numbers: Sequence[str], column: str) -> str:
    value = str(row.get(column, ""))
    return numbers[int(value)] if value.isdecimal() and int(value) < len(numbers) else value or "any"


def _first_word(row: Row) -> str:
    words = str(row["question"]).split()
    if not words:
        raise ValueError("its question is empty")
    return words[0].lower()


def _number_or_text(row: Row) -> int | str:
    """Of one file that has options' numbers as its answers, or short texts where there are no options."""
    answer = columns("answer")(row)
    return _number(answer) if {"a0", "a1"} & row.keys() else str(answer)


def _mapping(files: Sequence[File], of: str) -> dict[str, Any]:
    return next((file.mapping for file in files if of in file.name and file.mapping), {})


def _videomme(files: Sequence[File]) -> Iterator[Item]:
    where = Columns(
        video=columns("videoID", "video_id"), answer=_number_of_letter,
        options=lambda row: _without_letters(_options(row["options"])),
        tags={"kind": columns("task_type"), "duration": columns("duration", "duration_category")},
    )  # fmt: skip
    return load(flattened(files, "questions"), where, _VIDEOMME)


def _mlvu(files: Sequence[File]) -> Iterator[Item]:
    """Each task is a file, and its videos are in a folder of that name; the last two are answered in sentences."""
    where = Columns(
        video=lambda row: f"{row['task']}/{row['video']}", answer=lambda row: str(columns("answer")(row)),
        options=lambda row: _options(row.get("candidates") or []),
        tags={"kind": columns("question_type", "task")},
    )  # fmt: skip
    for file in files:
        rows = [{**row, "task": file.stem, "question_id": f"{file.stem}-{n}"} for n, row in enumerate(file.rows)]
        for item in load([replace(file, rows=tuple(rows))], where, _MLVU, open_kind="judged"):
            yield item if item.kind == "choice" else replace(item, tags={**item.tags, "aspects": "correctness"})


def _longvideobench(files: Sequence[File]) -> Iterator[Item]:
    where = Columns(
        video=columns("video_path"), answer=lambda row: _number(row["correct_choice"]), id=columns("id"),
        options=lambda row: _options(row["candidates"]),
        tags={"kind": columns("question_category"), "duration": columns("duration_group")},
    )  # fmt: skip
    return load(files, where, _LONGVIDEOBENCH)


def _egoschema(files: Sequence[File]) -> Iterator[Item]:
    answers = _mapping(files, "answer")
    known = [
        replace(file, rows=tuple(row for row in file.rows if as_text(row.get("q_uid")) in answers)) for file in files
    ]
    where = Columns(
        video=columns("q_uid"), answer=lambda row: _number(answers[as_text(row["q_uid"])]), id=columns("q_uid"),
        options=_numbered("option ", 0),
    )  # fmt: skip
    return load(known, where, _PLAIN)


def _nextqa(files: Sequence[File]) -> Iterator[Item]:
    """Of the open questions, the second answer stands in a file of its own, or in a column of the Parquet form."""
    places, more = _mapping(files, "map_vid"), _mapping(files, "reference")

    def also(row: Row) -> list[str]:
        told = more.get(str(row["video"]), {}).get(str(row["qid"])) or row.get("additional_ref_answer")
        return [told] if told else []

    where = Columns(
        video=lambda row: places.get(str(row["video"]), row["video"]), answer=_number_or_text,
        id=lambda row: f"{row['video']}-{row['qid']}", options=_numbered("a", 0), accepted=also,
        tags={"kind": columns("type")},
    )  # fmt: skip
    return load(files, where, _PLAIN)


def _intentqa(files: Sequence[File]) -> Iterator[Item]:
    places = _mapping(files, "map_vid")
    where = Columns(
        video=lambda row: places.get(str(row["video_id"]), row["video_id"]), answer=_number_or_text,
        id=lambda row: f"{row['video_id']}-{row['qid']}", options=_numbered("a", 0), tags={"kind": columns("type")},
    )  # fmt: skip
    return load(files, where, _PLAIN)


def _activitynet(files: Sequence[File]) -> Iterator[Item]:
    where = Columns(
        video=lambda row: f"v_{str(row['video_name']).removeprefix('v_')}", answer=columns("answer"),
        tags={"kind": lambda row: _named(row, _ACTIVITYNET_KINDS, "type" if "type" in row else "question_type")},
    )  # fmt: skip
    return load(joined(files, "question_id"), where, _PLAIN)


def _short_answers(stem: str) -> Callable[[Sequence[File]], Iterator[Item]]:
    """MSVD-QA and MSRVTT-QA: one word each, about videos that are named, or numbered behind a word."""

    def items(files: Sequence[File]) -> Iterator[Item]:
        where = Columns(
            video=lambda row: row.get("video_name") or f"{stem}{row['video_id']}", answer=columns("answer"),
            id=columns("question_id", "qid", "id"), tags={"kind": _first_word},
        )  # fmt: skip
        return load(files, where, _PLAIN)

    return items


def _tgif(files: Sequence[File]) -> Iterator[Item]:
    where = Columns(
        video=columns("gif_name"), answer=_number_or_text, id=columns("vid_id"), options=_numbered("a", 1),
        tags={"kind": lambda row: re.match("[A-Za-z]*", str(row["vid_id"]))[0].lower()},  # type: ignore[index]
    )  # fmt: skip
    return load(files, where, _PLAIN)


def _vcgbench(files: Sequence[File]) -> Iterator[Item]:
    """Answers in sentences. Two questions that ask for the same must be answered alike: they are judged together."""
    for file in files:
        rows = [{**row, "question_id": f"{file.stem}-{row.get('question_id', n)}"} for n, row in enumerate(file.rows)]
        file, kind = replace(file, rows=tuple(rows)), file.name.lower()
        if "consistency" in kind:
            yield from _consistency(file)
        else:
            aspects = "temporal" if "temporal" in kind else "correctness,detail,context"
            yield from _vcg(file, columns("question", "Q"), aspects)


def _vcg(file: File, question: Callable[[Row], Any], aspects: str) -> Iterator[Item]:
    where = Columns(video=columns("video_name"), answer=columns("answer", "A"), question=question)
    for item in load([file], where, _PLAIN, open_kind="judged"):
        yield replace(item, tags={"aspects": aspects})


def _consistency(file: File) -> Iterator[Item]:
    forms = (_vcg(file, columns(f"Q{number}"), "consistency") for number in "12")
    for one, other in zip(*forms, strict=True):
        for item, number, twin in ((one, "1", "2"), (other, "2", "1")):
            yield replace(item, id=f"{item.id}.{number}", tags={**item.tags, "twin": f"{item.id}.{twin}"})


BENCHMARKS: Mapping[str, Benchmark] = {
    "videomme": Benchmark("VideoMME", ("test-00000-of-00001.parquet",), _videomme, "documentation",
                          note="without subtitles",
                          reported="unpruned 58.6; fastv at 25 % 56.2"),
    "mlvu": Benchmark("MLVU", ("1_plotQA.json", "2_needle.json", "3_ego.json", "4_count.json", "5_order.json",
                               "6_anomaly_reco.json", "7_topic_reasoning.json"), _mlvu, "files", average="kind",
                      note="M-Avg: the mean of the tasks' accuracies", reported="unpruned 65.2; fastv at 25 % 61.5"),
    "longvideobench": Benchmark("LongVideoBench", ("lvb_val.json",), _longvideobench, "documentation",
                                note="without subtitles between the frames",
                                reported="unpruned 56.4; fastv at 25 % 55.5"),
    "egoschema": Benchmark("EgoSchema", ("questions.json", "subset_answers.json"), _egoschema, "documentation",
                           note="the 500 questions whose answers are public", job=IMAGE),
    "nextqa": Benchmark("NExT-QA", ("test.csv", "map_vid_vidorID.json"), _nextqa, "files",
                        note="the multiple-choice file, or the open-ended one by match", job=IMAGE),
    "intentqa": Benchmark("IntentQA", ("test.csv", "map_vid_vidorID.json"), _intentqa, "files", job=IMAGE),
    "activitynetqa": Benchmark("ActivityNet-QA", ("test_q.json", "test_a.json"), _activitynet, "files", "apart",
                               job=IMAGE, form="open, by match or by a judge"),
    "msvdqa": Benchmark("MSVD-QA", ("test_qa.json",), _short_answers("vid"), "copies", "apart", job=IMAGE,
                               form="open, by match or by a judge"),
    "msrvttqa": Benchmark("MSRVTT-QA", ("test_qa.json",), _short_answers("video"), "copies", "apart", job=IMAGE,
                               form="open, by match or by a judge"),
    "tgifqa": Benchmark("TGIF-QA", ("Test_frameqa_question.csv", "Test_action_question.csv",
                                    "Test_transition_question.csv"), _tgif, "files", "apart", average="kind",
                        note="the count task is scored by match, not by squared error", job=IMAGE,
                        form="choice; open"),
    "vcgbench": Benchmark("VCGBench", ("generic_qa.json", "temporal_qa.json", "consistency_qa.json"), _vcgbench,
                          "copies", "apart", average="kind", note="needs a judge", job=IMAGE, form="judged"),
}  # fmt: skip
