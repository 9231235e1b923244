"""The input: manifests of three kinds, globs and prefixes, questions of rows, and every mistake told up front."""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from s3server import S3Server

from mlb_batch.errors import InputError, JobError, RowError, SpecError
from mlb_batch.source import Inspection, Prompt, Video, anchored, clip_spans, inspect, videos
from mlb_batch.spec import JobSpec
from mlb_batch.spec_parts import ClipsSpec

CAPTION = {"id": "caption", "kind": "caption", "text": "Describe the video."}
KINDS = ("parquet", "jsonl", "csv")


def write_manifest(folder: Path, kind: str, rows: list[dict[str, Any]]) -> str:
    path = folder / f"videos.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            for row in rows:
                cells = {
                    key: json.dumps(value) if isinstance(value, list | dict) else value for key, value in row.items()
                }
                writer.writerow(cells)
    return str(path)


def job(manifest: str, prompts: list[dict[str, Any]] | None = None, **given: Any) -> JobSpec:
    return JobSpec.from_dict(
        {"input": {"manifest": manifest, **given}, "prompts": prompts or [CAPTION], "output": "out"}
    )


def glob_job(place: str, **given: Any) -> JobSpec:
    return JobSpec.from_dict({"input": {"videos": place, **given}, "prompts": [CAPTION], "output": "out"})


# --- manifests


@pytest.mark.parametrize("kind", KINDS)
def test_the_three_kinds_of_manifest_say_the_same(tmp_path: Path, kind: str) -> None:
    rows = [
        {"uri": f"clips/{n}.mp4", "video_id": f"v{n}", "start_s": 1.5, "end_s": 3.0 + n, "title": f'Tä"g,\n{n}'}
        for n in range(3)
    ]
    spec = job(
        write_manifest(tmp_path, kind, rows),
        [{"id": "c", "kind": "caption", "text": "Title: {title}. {{sic}}"}],
        id_column="video_id",
        start_column="start_s",
        end_column="end_s",
        columns=["title"],
    )
    prompt = Prompt("c", "caption", 'Title: Tä"g,\n1. {sic}')
    expected = Video("v1", f"{tmp_path}/clips/1.mp4", 1.5, 4.0, (prompt,), {"title": 'Tä"g,\n1'}, None)
    assert list(videos(spec))[1] == expected
    assert inspect(spec).num_rows == 3
    assert inspect(spec).passthrough == pa.schema([("title", pa.string())])


def test_the_id_is_the_uri_where_no_column_is_named(tmp_path: Path) -> None:
    spec = job(write_manifest(tmp_path, "csv", [{"uri": "a.mp4"}, {"uri": f"{tmp_path}/b.mp4"}]))
    assert [video.video_id for video in videos(spec)] == [f"{tmp_path}/a.mp4", f"{tmp_path}/b.mp4"]


def test_a_column_of_an_extension_type_is_refused_by_name(tmp_path: Path) -> None:
    values = pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1], pa.int8()))
    pq.write_table(pa.table({"uri": ["a.mp4"], "seen": values}), tmp_path / "v.parquet")
    assert (
        "'seen' is of the type extension<arrow.bool8>; cast it"
        in mistakes(job(str(tmp_path / "v.parquet"), columns=["seen"]))[0]
    )
    listed = pa.ListArray.from_arrays([0, 1], values)
    nested = {"listed": listed, "inside": pa.StructArray.from_arrays([listed], ["it"])}
    pq.write_table(pa.table({"uri": ["a.mp4"], **nested}), tmp_path / "n.parquet")
    for name in nested:
        assert f"'{name}' is of the type" in mistakes(job(str(tmp_path / "n.parquet"), columns=[name]))[0]


def test_json_columns_keep_the_types_of_another_night_where_those_hold_them(tmp_path: Path) -> None:
    now = {"whole": 3, "word": 4, "wide": 2**60, "none": None, "half": 0.5, "new": True}
    path = write_manifest(tmp_path, "jsonl", [{"uri": "a.mp4", **now}])
    then = pa.schema([("whole", pa.float64()), ("word", pa.string()), ("wide", pa.float64()), ("none", pa.int64()),
                      ("half", pa.int64())])  # fmt: skip
    kinds = [pa.float64(), pa.string(), pa.int64(), pa.int64(), pa.float64(), pa.bool_()]
    spec = job(path, columns=list(now))
    found = inspect(spec).like(then)
    assert found.passthrough.types == kinds, "a wide number would be rounded, and a half can't be whole"
    (video,) = videos(spec, found)
    row = pa.Table.from_pylist([video.columns], schema=found.passthrough).to_pylist()
    assert row == [{**now, "whole": 3.0, "word": "4"}]


@pytest.mark.parametrize(
    ("then", "now", "values", "kept"),
    [
        (pa.null(), pa.string(), ["x"], pa.string()),
        (pa.string(), pa.null(), [None], pa.string()),
        (pa.int64(), pa.null(), [None], pa.int64()),
        (pa.string(), pa.large_string(), ["x"], pa.string()),
        (pa.int64(), pa.float64(), [1.0, None], pa.int64()),
        (pa.float64(), pa.int64(), [1], pa.float64()),
        (pa.null(), pa.timestamp("us", "UTC"), [datetime(2026, 1, 2, tzinfo=UTC)], pa.string()),
        (pa.int64(), pa.float64(), [1.5], pa.float64()),  # it can't be kept: refused where it is written
    ],
)
def test_parquet_columns_keep_the_types_of_another_night_where_those_hold_them(
    then: pa.DataType, now: pa.DataType, values: list[Any], kept: pa.DataType, tmp_path: Path
) -> None:
    """As pandas and polars write one column from night to night."""
    path = tmp_path / "m.parquet"

    def found(values: list[Any], kind: pa.DataType) -> tuple[JobSpec, Inspection]:
        uris = [f"{n}.mp4" for n in range(len(values))]
        pq.write_table(pa.table({"uri": uris, "title": pa.array(values, kind)}), path)
        spec = job(str(path), columns=["title"])
        return spec, inspect(spec)

    _, first = found([None], then)
    spec, second = found(values, now)
    second = second.like(first.passthrough)
    assert second.passthrough.types == [kept]
    rows = [video.columns for video in videos(spec, second)]
    written = pa.Table.from_pylist(rows, schema=second.passthrough)["title"].to_pylist()
    assert written == [str(one) if isinstance(one, datetime) else one for one in values]


def test_passthrough_columns_keep_their_types(tmp_path: Path) -> None:
    rows = [
        {"uri": "a.mp4", "n": 1, "tags": ["x", "y"], "ok": True},
        {"uri": "b.mp4", "n": None, "tags": [], "ok": None},
    ]
    spec = job(write_manifest(tmp_path, "parquet", rows), columns=["n", "tags", "ok"])
    assert inspect(spec).passthrough.types == [pa.int64(), pa.list_(pa.string()), pa.bool_()]
    assert [video.columns for video in videos(spec)] == [{key: row[key] for key in ("n", "tags", "ok")} for row in rows]


def test_json_columns_take_the_narrowest_type_that_holds_all(tmp_path: Path) -> None:
    rows = [
        {"uri": "a", "int": 1, "real": 1, "mixed": 1, "nested": {"a": 1}, "huge": 2**70, "flag": True},
        {"uri": "b", "int": None, "real": 1.5, "mixed": "one", "nested": ["\ud800"], "huge": 1},
    ]
    names = ["int", "real", "mixed", "nested", "huge", "flag"]
    spec = job(write_manifest(tmp_path, "jsonl", rows), columns=names)
    text = pa.string()
    passthrough = inspect(spec).passthrough
    assert passthrough.types == [pa.int64(), pa.float64(), text, text, text, pa.bool_()]
    table = pa.Table.from_pylist([video.columns for video in videos(spec)], schema=passthrough)
    assert table["mixed"].to_pylist() == ["1", "one"] and table["huge"].to_pylist() == [str(2**70), "1"]
    assert table["nested"].to_pylist() == ['{"a": 1}', '["?"]'] and table["flag"].to_pylist() == [True, None]


# --- questions


QUESTIONS: list[tuple[Any, list[tuple[str, str, str, tuple[str, ...]]]]] = [
    ("What is it?", [("q", "qa", "What is it?", ())]),
    (["Why?", "How?", "Why?"], [("q.", "qa", "Why?", ()), ("q.", "qa", "How?", ())]),
    (
        [{"id": "a", "question": "Why?"}, {"id": "b", "question": "Which?", "choices": ["x", "y"]}],
        [("a", "qa", "Why?", ()), ("b", "choice", "Which?", ("x", "y"))],
    ),
    ({"id": "a", "question": "Why?", "choices": None}, [("a", "qa", "Why?", ())]),
    ("[sic] What is it?", [("q", "qa", "[sic] What is it?", ())]),
    ("{uri} is not replaced", [("q", "qa", "{uri} is not replaced", ())]),
    (None, []),
    ([], []),
    ("", []),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("cell", "expected"), QUESTIONS, ids=[str(cell)[:30] for cell, _ in QUESTIONS])
def test_the_questions_of_a_row(tmp_path: Path, kind: str, cell: Any, expected: list[Any]) -> None:
    rows = [{"uri": "a.mp4", "questions": cell}, {"uri": "b.mp4", "questions": "x" if isinstance(cell, str) else cell}]
    if kind == "parquet" and cell in (None, []):
        rows = pa.table({"uri": ["a.mp4"], "questions": pa.array([cell], pa.list_(pa.string()))}).to_pylist()
    if kind == "jsonl" and cell is None:
        rows.append({"uri": "c.mp4", "questions": "so that the key occurs"})
    spec = job(write_manifest(tmp_path, kind, rows), [{"id": "q", "kind": "qa", "column": "questions"}])
    found = [video for video in videos(spec) if video.uri.endswith("a.mp4")]
    asked = [
        (p.id[: len(e[0])], p.kind, p.text, p.choices) for v in found for p, e in zip(v.prompts, expected, strict=True)
    ]
    assert asked == expected
    assert all(video.problem is None for video in found)


@pytest.mark.parametrize("own", [None, []])
def test_a_question_without_choices_of_its_own_has_the_jobs(own: list[str] | None, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, "jsonl", [{"uri": "a.mp4", "q": {"question": "Which?", "choices": own}}])
    (video,) = videos(job(manifest, [{"id": "q", "kind": "choice", "column": "q", "choices": ["x", "y"]}]))
    assert (video.problem, video.prompts) == (None, (Prompt("q", "choice", "Which?", ("x", "y")),))
    (video,) = videos(job(manifest, [{"id": "q", "kind": "choice", "column": "q"}]))
    assert "neither the question nor the job names choices" in str(video.problem)


def test_the_ids_of_listed_questions_survive_reordering(tmp_path: Path) -> None:
    def ids(questions: list[str]) -> dict[str, str]:
        manifest = write_manifest(tmp_path, "jsonl", [{"uri": "a.mp4", "q": questions}])
        (video,) = videos(job(manifest, [{"id": "q", "kind": "qa", "column": "q"}]))
        return {prompt.text: prompt.id for prompt in video.prompts}

    assert ids(["Why?", "How?"]).items() <= ids(["New?", "How?", "Why?"]).items()


BAD: list[tuple[Any, str]] = [
    ([{"id": "a", "question": "Why?", "choises": ["x", "y"]}], "unknown key 'choises'"),
    ([{"id": "a"}], "an entry is a text"),
    ([{"id": "a", "question": "Which?", "choices": ["x"]}], "choices are 2 to 26"),
    ([{"id": "a", "question": "Which?", "choices": "xy"}], "choices is a list of texts"),
    ([{"id": "x" * 201, "question": "Why?"}], "an id has 1 to 200 characters"),
    ([7], "an entry is a text"),
    ("y" * 20_000, "a prompt of 20,000 characters"),
    ([{"id": "caption", "question": "Why?"}], "the prompt id 'caption' is used for two questions"),
    ("\ud800", "surrogate"),
    ([{"id": "\ud800", "question": "Why?"}], "surrogate"),
    ([{"id": "a", "question": "Which?", "choices": ["x", "\udfff"]}], "surrogate"),
    ([None, None], "an entry is a text"),
    (str(["Is it day?", "Who's there?"]), "no JSON: write double quotes"),
    (str(["Who's there?", 'Who said "day"?']), "no JSON: write double quotes"),
    (str([{"id": 1, "question": "Why?"}]), "no JSON: write double quotes"),
    (str({"id": 1, "question": "Why?"}), "no JSON: write double quotes"),
    ([{"id": "a", "question": "Why?", "choices": choices} for choices in ("xy", ["x"])], "choices is a list of texts"),
]


@pytest.mark.parametrize(("cell", "said"), BAD, ids=[said for _, said in BAD])
def test_a_bad_prompt_is_one_row_and_its_neighbours_are_asked(tmp_path: Path, cell: Any, said: str) -> None:
    manifest = write_manifest(tmp_path, "jsonl", [{"uri": "a.mp4", "q": cell}, {"uri": "b.mp4", "q": "Why?"}])
    good, bad, other = videos(job(manifest, [CAPTION, {"id": "q", "kind": "qa", "column": "q"}]))
    assert [prompt.id for prompt in good.prompts] == ["caption"] and good.problem is None
    assert bad.problem is not None and bad.problem.error_class == "bad_prompt" and said in bad.problem.message
    assert len(bad.prompts) == 1 and bad.video_id == good.video_id
    assert len(bad.prompts[0].id) <= 200, "also where its length is the mistake"
    bad.prompts[0].text.encode(), bad.prompts[0].id.encode()
    assert not any("\ud800" <= sign <= "\udfff" for choice in bad.prompts[0].choices for sign in choice)
    assert [prompt.id for prompt in other.prompts] == ["caption", "q"]


def test_a_null_in_a_template_is_a_bad_prompt_and_values_are_no_templates(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, "jsonl", [{"uri": "a", "title": None}, {"uri": "b", "title": "{uri} {{x}}"}])
    null, told = videos(job(manifest, [{**CAPTION, "text": "T {title}"}], columns=["title"]))
    assert str(null.problem) == "bad_prompt: {title} is null in this row"
    assert told.prompts[0].text == "T {uri} {{x}}"


def test_bytes_in_a_template_are_a_bad_prompt(tmp_path: Path) -> None:
    for value in (b"a\xff", [b"a"]):
        manifest = write_manifest(tmp_path, "parquet", [{"uri": "a.mp4", "title": value}])
        (video,) = videos(job(manifest, [{**CAPTION, "text": "T {title}"}], columns=["title"]))
        assert str(video.problem) == "bad_prompt: {title} holds bytes, not text; cast the column to text"
        assert video.columns == {"title": value}, "they may still pass through"


def test_a_null_in_another_row_changes_no_prompt_and_no_id(tmp_path: Path) -> None:
    """For its sake pandas writes the whole column as fractions: what stands would be annotated, and paid, again."""
    whole = [{"uri": "a.mp4", "year": 2019, "tags": [1, 2.5], "q": {"id": 7, "question": "Why?"}, "then": 4}]
    parts = [{"uri": "a.mp4", "year": 2019.0, "tags": [1.0, 2.5], "q": {"id": 7.0, "question": "Why?"}, "then": 4.0}]
    text = "Of {year}, {tags}."
    columns = ["year", "tags", "then"]
    then = pa.schema([("then", pa.string())])

    def asked(kind: str, rows: list[dict[str, Any]]) -> tuple[tuple[Prompt, ...], object]:
        prompts = [{**CAPTION, "text": text}, {"id": "q", "kind": "qa", "column": "q"}]
        spec = job(write_manifest(tmp_path, kind, rows), prompts, columns=columns)
        (video,) = videos(spec, inspect(spec).like(then))
        return video.prompts, video.columns["then"]

    first = asked("jsonl", whole)
    assert first == ((Prompt("caption", "caption", "Of 2019, [1, 2.5]."), Prompt("7", "qa", "Why?")), "4")
    assert [asked(kind, parts) for kind in ("jsonl", "parquet")] == [first, first]
    for fraction in (0.5, 1e22, -1.5):
        (caption, _), _ = asked("jsonl", [{**parts[0], "year": fraction}])
        assert caption.text == f"Of {fraction}, [1, 2.5]."


# --- mistakes in a manifest


def mistakes(spec: JobSpec) -> list[str]:
    with pytest.raises((InputError, SpecError)) as caught:
        list(videos(spec))
    return str(caught.value).splitlines()


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_all_wrong_columns_are_named_at_once(tmp_path: Path, kind: str) -> None:
    manifest = write_manifest(tmp_path, kind, [{"url": "a", "titel": "b", "text": "c"}])
    prompts = [{"id": "q", "kind": "qa", "column": "qs"}]
    lines = mistakes(job(manifest, prompts, id_column="id", columns=["title", "text"]))
    starts = [line.partition(" the manifest has no column")[0] for line in lines]
    assert lines[0] == "input.columns: 'text' is the name of an output column; rename it in the manifest"
    assert starts[1:] == ["input.uri_column:", "input.id_column:", "prompts[0].column:", "input.columns:"]
    assert "(did you mean 'titel'?)" in lines[4]


def test_a_json_key_that_is_always_null_is_there(tmp_path: Path) -> None:
    rows = [{"uri": f"{n}.mp4", "title": None, "from": None, "to": None} for n in range(2)]
    spec = job(write_manifest(tmp_path, "jsonl", rows), columns=["title"], start_column="from", end_column="to")
    assert [video.columns for video in videos(spec)] == [{"title": None}] * 2


def test_a_uri_that_is_no_text_is_named(tmp_path: Path) -> None:
    for uri in (b"a.mp4", {"path": "a.mp4"}, 5):
        path = write_manifest(tmp_path, "parquet", [{"id": 1, "uri": uri}])
        with pytest.raises(InputError, match=r"row 1: uri is a .*, not a text"):
            inspect(job(path, id_column="id"))


def test_the_first_line_of_a_csv_file_may_be_empty_but_not_endless(tmp_path: Path) -> None:
    path = tmp_path / "videos.csv"
    path.write_text("\n\nuri,id\na.mp4,1\n")
    assert [video.video_id for video in videos(job(str(path), id_column="id"))] == ["1"]
    path.write_text("uri," + "x" * 200_000 + "\na.mp4,1\n")
    with pytest.raises(InputError, match="its first line"):
        inspect(job(str(path)))


def test_a_limit_is_of_rows_whatever_their_prompts(tmp_path: Path) -> None:
    rows = [{"uri": f"{n}.mp4", "q": ["Good?", "" if n == 0 else "Fine?"]} for n in range(3)]
    spec = job(write_manifest(tmp_path, "jsonl", rows), [CAPTION, {"id": "q", "kind": "qa", "column": "q"}])
    assert {Path(video.uri).name for video in videos(spec, end=2)} == {"0.mp4", "1.mp4"}


def test_a_json_key_that_never_occurs_is_named(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, "jsonl", [{"uri": "a"}])
    assert "no row has a key 'title' (input.columns)" in mistakes(job(manifest, columns=["title"]))[0]
    first, second = mistakes(job(manifest, id_column="vid"))
    assert "no row has a key 'vid' (input.id_column)" in first and "row 1: vid is null" in second
    manifest = write_manifest(tmp_path, "jsonl", [{"uri": "a"}] * 100 + [{"uri": "a", "vid": "b"}])
    assert "none of the first 21 rows has a key 'vid'" in mistakes(job(manifest, id_column="vid"))[0]


@pytest.mark.parametrize("kind", KINDS)
def test_null_ids_and_bad_spans_are_named_with_their_rows(tmp_path: Path, kind: str) -> None:
    rows = [
        {"uri": "a.mp4", "id": None, "from": "0", "to": "5"},
        {"uri": "b.mp4", "id": "b", "from": "later", "to": "5"},
        {"uri": "c.mp4", "id": "c", "from": "5", "to": "5"},
        {"uri": "d.mp4", "id": "d", "from": "-1", "to": "nan"},
    ]
    spec = job(write_manifest(tmp_path, kind, rows), id_column="id", start_column="from", end_column="to")
    first, second, third, fourth = mistakes(spec)
    assert "id is null" in first and "row " in first
    assert "from is 'later', not a number of seconds" in second
    assert "ends at 5 s, not after its start" in third
    assert "from is -1.0, not a number of seconds from 0" in fourth


@pytest.mark.parametrize("kind", KINDS)
def test_duplicate_ids_are_refused_and_the_first_few_named(tmp_path: Path, kind: str) -> None:
    rows = [{"uri": f"{n}.mp4", "id": f"v{n % 10}"} for n in range(20)]
    (line,) = mistakes(job(write_manifest(tmp_path, kind, rows), id_column="id"))
    assert "ids that stand more than once: 'v0' (rows " in line and "and 5 more" in line


SAME: list[tuple[list[dict[str, Any]], dict[str, str]]] = [
    ([{"uri": "a.mp4", "id": 1}, {"uri": "b.mp4", "id": "1"}], {"id_column": "id"}),
    ([{"uri": "a.mp4", "from": "5"}, {"uri": "a.mp4", "from": "5.0"}], {"start_column": "from"}),
    ([{"uri": "a.mp4", "from": 5}, {"uri": "a.mp4", "from": 5.0001}], {"start_column": "from"}),
]


@pytest.mark.parametrize(("rows", "columns"), SAME)
def test_two_ways_to_write_one_id_are_a_duplicate(
    tmp_path: Path, rows: list[dict[str, Any]], columns: dict[str, str]
) -> None:
    """One annotation can't stand for two rows."""
    assert "stand more than once" in mistakes(job(write_manifest(tmp_path, "jsonl", rows), **columns))[0]


def test_a_uri_and_its_absolute_form_are_a_duplicate(tmp_path: Path) -> None:
    rows = [{"uri": "a.mp4"}, {"uri": f"{tmp_path}/a.mp4"}]
    assert "stand more than once" in mistakes(job(write_manifest(tmp_path, "csv", rows)))[0]


def test_numbers_that_no_column_or_video_holds_are_told_or_kept(tmp_path: Path) -> None:
    for start in (1e306, 10**400):
        rows = [{"uri": "a.mp4", "from": start}]
        (line,) = mistakes(job(write_manifest(tmp_path, "jsonl", rows), start_column="from"))
        assert "row 1: from is " in line and "number of seconds" in line
    wide = [{"uri": "a.mp4", "n": 1.5}, {"uri": "b.mp4", "n": 2**53 + 1}]
    spec = job(write_manifest(tmp_path, "jsonl", wide), columns=["n"])
    found = inspect(spec)
    values = [video.columns["n"] for video in videos(spec, found)]
    assert pa.array(values, found.passthrough.field("n").type).to_pylist() == ["1.5", str(2**53 + 1)]


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (2**53, pa.float64()), (-(2**53), pa.float64()), (2**53 + 1, pa.string()), (-(2**53) - 1, pa.string()),
    ],
)  # fmt: skip
def test_fractions_share_their_column_with_whole_numbers_that_they_hold(
    number: int, kind: pa.DataType, tmp_path: Path
) -> None:
    manifest = write_manifest(tmp_path, "jsonl", [{"uri": "a.mp4", "n": 1.5}, {"uri": "b.mp4", "n": number}])
    assert inspect(job(manifest, columns=["n"])).passthrough.types == [kind]


def test_a_parquet_manifest_with_what_python_can_not_hold_or_name_is_one_line(tmp_path: Path) -> None:
    for late in (pa.array([10**18], pa.timestamp("ms")), pa.array([0], pa.timestamp("ms", tz="Mars/Phobos"))):
        pq.write_table(pa.table({"uri": ["a.mp4"], "at": late}), tmp_path / "late.parquet")
        (said,) = mistakes(job(str(tmp_path / "late.parquet"), columns=["at"]))
        assert "between rows 1 and 1 a value that Python can't hold" in said
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 3, ["uri", "t", "t"]), tmp_path / "two.parquet")
    assert "the column 't' stands there twice" in mistakes(job(str(tmp_path / "two.parquet"), columns=["t"]))[0]


@pytest.mark.parametrize(
    ("parts", "overlap"),
    [
        ([(0, 1), (1, 2), (2, None)], False),
        ([(2, None), (0, 1)], False),
        ([(0, 1), (0.5, 2)], True),
        ([(0, 1), (None, None)], True),
        ([(0, None), (None, None)], True),
    ],
)
def test_parts_that_overlap_are_refused_where_clips_would_cut_the_same_pieces(
    parts: list[tuple[float | None, float | None]], overlap: bool, tmp_path: Path
) -> None:
    rows = [{"id": "b", "uri": "b.mp4", "from": 0, "to": 9}]
    rows += [{"id": "a", "uri": "a.mp4", "from": start, "to": end} for start, end in parts]
    path = write_manifest(tmp_path, "jsonl", rows)
    columns = {"id_column": "id", "start_column": "from", "end_column": "to"}
    whole = job(path, **columns)
    cut = whole.changed(clips={"every_s": 0.5})
    if overlap:
        with pytest.raises(InputError, match=r"parts of one video that overlap.*'a' \(rows 2, 3\)$"):
            inspect(cut)
    else:
        assert inspect(cut).num_rows == len(rows)


def test_parts_of_one_video_share_its_id(tmp_path: Path) -> None:
    rows = [{"uri": "a.mp4", "from": n, "to": n + 1} for n in range(3)]
    spec = job(write_manifest(tmp_path, "parquet", rows), start_column="from", end_column="to")
    assert [(video.start_s, video.end_s) for video in videos(spec)] == [(0, 1), (1, 2), (2, 3)]
    rows.append(rows[1])
    spec = job(write_manifest(tmp_path, "parquet", rows), start_column="from", end_column="to")
    assert "stand more than once" in mistakes(spec)[0]


def test_malformed_lines_are_named_by_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"uri": "a"}\n{"uri": \n\n[1]\n{"uri": "\xff"}\n{"uri": "b"}\n')
    assert [line.partition("a.jsonl: ")[2][:13] for line in mistakes(job(str(path)))] == [
        "line 2: not J",
        "line 4: a lis",
        "line 5 is not",
    ]
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbfuri,t\na,1\nb\n"c\nd",2\ne,3,4\nf,"x"y\n')
    assert [line.partition("a.csv: ")[2][:20] for line in mistakes(job(str(path)))] == [
        "line 3 has 1 cells, ",
        "line 6 has 3 cells, ",
        "line 7: ',' expected",
    ]


def test_a_web_server_that_does_not_answer_is_not_a_missing_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlb_batch.storage.WEB_PATIENCE_S", 0.5)
    with socket.socket() as nobody, pytest.raises(JobError, match=r"didn't answer well .* Connect call failed"):
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        inspect(job(f"http://127.0.0.1:{nobody.getsockname()[1]}/videos.csv"))


def test_what_is_no_manifest(tmp_path: Path) -> None:
    assert "no such file" in mistakes(job(str(tmp_path / "none.parquet")))[0]
    for kind, said in (("parquet", "not a Parquet file"), ("csv", "the file is empty"), ("jsonl", "it holds no rows")):
        path = tmp_path / f"empty.{kind}"
        path.write_bytes(b"")
        assert said in mistakes(job(str(path)))[0]
    (tmp_path / "head.csv").write_text("uri\n")
    assert "it holds no rows" in mistakes(job(str(tmp_path / "head.csv")))[0]
    (tmp_path / "twice.csv").write_text("uri,uri\na,b\n")
    assert "the column 'uri' stands there twice" in mistakes(job(str(tmp_path / "twice.csv")))[0]
    manifest = Path(write_manifest(tmp_path, "parquet", [{"uri": f"{n}.mp4"} for n in range(5000)]))
    sound = manifest.read_bytes()
    manifest.write_bytes(sound[:60] + bytes(40) + sound[100:])
    assert "can't be read" in mistakes(job(str(manifest)))[0]


def test_a_line_without_an_end_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_bytes(b'{"uri": "' + b"x" * (17 * 2**20))
    assert "line 1 is longer than 16 MB" in mistakes(job(str(path)))[0]
    path = tmp_path / "long.csv"
    path.write_bytes(b"uri\n" + b"x" * 200_000 + b"\n")
    assert "line 2: field larger than field limit" in mistakes(job(str(path)))[0]


def test_a_row_without_a_uri_ends_as_an_error(tmp_path: Path) -> None:
    rows = [{"uri": None, "id": "a"}, {"uri": "b.mp4", "id": "b"}]
    first, second = videos(job(write_manifest(tmp_path, "jsonl", rows), id_column="id"))
    assert str(first.problem) == "not_found: the manifest row has no uri" and second.problem is None


# --- flat memory

# For a process of its own. Not ru_maxrss, which begins with the peak of the process that started this one.
PEAK_MB = """
import re
from pathlib import Path

def peak_mb():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
"""


def _peak_mb(manifest: Path, count: int) -> tuple[float, float]:
    """The peak memory of a process that reads all, after the first thousand rows and at the end."""
    code = f"""{PEAK_MB}
from mlb_batch.source import videos
from mlb_batch.spec import JobSpec

def read(manifest):
    given = {{"manifest": manifest, "id_column": "id", "columns": ["title"]}}
    prompts = [{{"id": "c", "kind": "caption", "text": "Of {{title}}"}}, {{"id": "q", "kind": "qa", "column": "q"}}]
    seen = sum(1 for _ in videos(JobSpec.from_dict({{"input": given, "prompts": prompts, "output": "out"}})))
    return seen, peak_mb()

_, early = read({str(manifest)!r} + ".small.csv")
seen, late = read({str(manifest)!r})
assert seen == {count}, seen
print(early, late)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    early, late = map(float, done.stdout.split())
    return early, late


def wide(path: Path) -> None:
    names = ",".join(["uri", *(f"c{n}" for n in range(10**6))])
    path.write_text(f"{names}\na.mp4{',x' * 10**6}\n")


def deep(path: Path) -> None:
    path.write_text(f'{{"uri": "a.mp4", "title": {"[" * 10**6}{"]" * 10**6}}}\n')


def swollen(path: Path) -> None:
    """Nine kilobytes of file, four gigabytes of cells."""
    cells = pa.DictionaryArray.from_arrays(pa.array([0] * 4096, pa.int32()), pa.array(["x" * 10**6]))
    pq.write_table(pa.table({"uri": [f"{n}.mp4" for n in range(4096)], "title": cells}), path, compression="zstd")


@pytest.mark.parametrize(
    ("kind", "write", "said"),
    [("csv", wide, "no column 'title'"), ("jsonl", deep, "line 1: not JSON"), ("parquet", swollen, "4096 videos")],
)
def test_manifests_that_swell_are_answered_soon_and_in_bounded_memory(
    kind: str, write: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    path = tmp_path / f"m.{kind}"
    write(path)
    code = f"""{PEAK_MB}
import time
from mlb_batch.errors import UserError
from mlb_batch.source import videos
from mlb_batch.spec import JobSpec
prompts = [{{"id": "c", "kind": "caption", "text": "Of {{title}}"}}]
try:
    given = {{"manifest": {str(path)!r}, "columns": ["title"]}}
    print(sum(1 for _ in videos(JobSpec.from_dict({{"input": given, "prompts": prompts, "output": "out"}}))), "videos")
except UserError as error:
    print(error)
print(time.process_time(), peak_mb())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    told, used = done.stdout.rsplit("\n", 2)[:2]
    cpu_s, peak_mb = map(float, used.split())
    assert said in told and cpu_s < 10 and peak_mb < 1000, done.stdout[-500:]


def _grows_by_mb(tmp_path: Path, count: int) -> float:
    manifest = tmp_path / "big.csv"
    for path, rows in ((manifest, count), (Path(f"{manifest}.small.csv"), 1000)):
        with path.open("w") as file:
            file.write("uri,id,title,q\n")
            for n in range(rows):
                file.write(f"clips/{n:08d}.mp4,v{n},a title of some length number {n},What happens in {n}?\n")
    early, late = _peak_mb(manifest, count)
    return late - early


def test_a_hundred_thousand_rows_stream_in_flat_memory(tmp_path: Path) -> None:
    assert _grows_by_mb(tmp_path, 100_000) < 20


def test_a_manifest_that_is_changed_after_it_was_checked_is_read_no_further(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"uri": "a.mp4"}\n{"uri": "b.mp4"}\n', encoding="utf-8")
    spec = job(str(path))
    found = inspect(spec)
    assert len(list(videos(spec, found))) == 2
    (tmp_path / "new").write_text('{"uri": "b.mp4"}\n{"uri": "b.mp4"}\n{"uri": "c.mp4"}\n', encoding="utf-8")
    (tmp_path / "new").replace(path)
    with pytest.raises(JobError, match=r"m\.jsonl: it was changed while the job ran.* run the same command again"):
        list(videos(spec, found))


@pytest.mark.slow
def test_a_million_rows_stream_in_flat_memory(tmp_path: Path) -> None:
    assert _grows_by_mb(tmp_path, 1_000_000) < 120, "32 bytes a row for the rule of ids, while it is sorted"


# --- globs and prefixes


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    for name in ("b.mp4", "a b+%#?.MP4", "sub/c.webm", "sub/notes.txt", "sub/deep/d.mkv"):
        path = tmp_path / "clips" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path / "clips"


def names(spec: JobSpec, base: str) -> list[str]:
    return [video.uri.removeprefix(f"{base}/") for video in videos(spec)]


def test_globs_and_prefixes_of_a_folder(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = ["a b+%#?.MP4", "b.mp4", "sub/c.webm", "sub/deep/d.mkv"]
    assert names(glob_job(str(clips)), str(clips)) == every
    assert names(glob_job(f"{clips}/"), str(clips)) == every
    assert names(glob_job(f"file://{clips}"), str(clips)) == every
    assert names(glob_job(f"{clips}/*.mp4"), str(clips)) == ["b.mp4"]
    assert names(glob_job(f"{clips}/**/*.m*"), str(clips)) == ["b.mp4", "sub/deep/d.mkv"]
    assert "sub/notes.txt" in names(glob_job(f"{clips}/**"), str(clips))
    monkeypatch.chdir(clips.parent)
    assert names(glob_job("clips"), str(clips)) == every, "relative to where the command runs, absolute in the rows"
    assert all(video.problem is None and video.video_id == video.uri for video in videos(glob_job("clips")))


def test_below_a_prefix_every_kind_of_video_is_found_and_sound_is_not(tmp_path: Path) -> None:
    kinds = sorted(f"v{ending}" for ending in (".asf", ".dv", ".ivf", ".mov", ".rm", ".rmvb", ".ts", ".VOB", ".wmv"))
    for name in (*kinds, "v.ogg", "v.mp3", "v.srt"):
        (tmp_path / name).write_bytes(b"x")
    assert names(glob_job(str(tmp_path)), str(tmp_path)) == kinds


def test_what_the_job_writes_below_its_own_input_is_no_video(clips: Path) -> None:
    (clips / "out/annotations").mkdir(parents=True)
    (clips / "out/annotations/part-000000.parquet").write_bytes(b"PAR1")
    (clips / "outside.mp4").write_bytes(b"x")
    listed = names(glob_job(f"{clips}/**"), str(clips))
    assert "out/annotations/part-000000.parquet" in listed
    for place in (clips / "out", f"{clips}/sub/../out/", f"file://{clips}/out"):
        own = glob_job(f"{clips}/**").changed(output={"uri": str(place)})
        assert names(own, str(clips)) == [name for name in listed if not name.startswith("out/")], place
    with pytest.raises(InputError, match=f"all {len(listed)} files lie below the output"):
        inspect(glob_job(f"{clips}/**").changed(output={"uri": str(clips)}))


def test_every_way_to_name_a_place(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the folder above, one file, a folder with a pattern's signs in its name; once anchored, from anywhere."""
    inner, signs = tmp_path / "work" / "deep", tmp_path / "work [2024]"
    inner.mkdir(parents=True)
    signs.mkdir()
    for folder, name in itertools.product((inner.parent, signs), ("a.mp4", "b.mp4")):
        (folder / name).touch()
    here, there = ([str(folder / name) for name in ("a.mp4", "b.mp4")] for folder in (inner.parent, signs))
    monkeypatch.chdir(inner)
    for place, expected in (("../*.mp4", here), ("..", here), ("../a.mp4", here[:1]), (str(signs), there),
                            (f"{signs}/b.mp4", there[1:])):  # fmt: skip
        spec = glob_job(place)
        found = list(videos(spec))
        assert [(video.uri, video.problem) for video in found] == [(uri, None) for uri in expected], place
        away = spec.model_copy(update={"input": anchored(spec.input)})
        monkeypatch.chdir(tmp_path)  # where a worker of a cluster starts
        assert list(videos(away)) == found
        monkeypatch.chdir(inner)
    given = anchored(job("m.jsonl", allow=["..", "s3://b/"]).input)
    assert given.manifest == str(inner / "m.jsonl") and given.allow == (str(inner.parent), "s3://b/")


def test_a_place_without_videos_is_the_users_mistake(clips: Path) -> None:
    (clips / "[1]").mkdir()
    (clips / "[1]/a.mp4").touch()
    for place, said in (
        ("*.avi", "check the path"),
        ("none", f"check the path, or list {clips}/none/** for files of any name"),
        ("sub/notes.txt", "its name ends like no video's; name it in a manifest"),
        ("[1]/*.mp4", "check the path (in a pattern [abc] is one of three signs, and [[] a bracket)"),
    ):
        assert mistakes(glob_job(f"{clips}/{place}")) == [f"input.videos: {clips}/{place}: no video is there; {said}"]
    assert names(glob_job(f"{clips}/[[]1]/*.mp4"), str(clips)) == ["[1]/a.mp4"]


def test_links_that_lead_out_of_a_folder_are_forbidden(clips: Path) -> None:
    (clips.parent / "secret.mp4").write_bytes(b"x")
    (clips / "link.mp4").symlink_to(clips.parent / "secret.mp4")
    (clips / "inner.mp4").symlink_to(clips / "b.mp4")
    problems = {video.uri.removeprefix(f"{clips}/"): video.problem for video in videos(glob_job(f"{clips}/*.mp4"))}
    assert problems["inner.mp4"] is None and problems["b.mp4"] is None
    assert problems["link.mp4"] is not None and problems["link.mp4"].error_class == "forbidden"


def outcome(place: object, base: Path, **given: Any) -> dict[str, str]:
    """What becomes of every name that a place gives."""
    found = videos(glob_job(str(place), **given))
    return {os.path.relpath(v.uri, base): v.problem.error_class if v.problem else "annotated" for v in found}


def test_nothing_behind_a_linked_folder_is_left_out_without_a_word(tmp_path: Path) -> None:
    lib, disk = tmp_path / "lib", tmp_path / "disk"
    for folder in (lib, disk / "part1/deep"):
        folder.mkdir(parents=True)
        (folder / "a.mp4").touch()
    (lib / "part1").symlink_to(disk / "part1")
    (lib / "gone").symlink_to(disk / "nowhere")
    own, link, behind = {"lib/a.mp4": "annotated"}, "lib/part1", {"lib/part1/deep/a.mp4": "annotated"}
    for place in (lib, lib / "**/*.mp4"):
        assert outcome(place, tmp_path) == {**own, link: "forbidden"}, "as a linked file"
        assert outcome(place, tmp_path, allow=[str(lib), str(disk)]) == {**own, **behind}
    assert outcome(lib / "*.mp4", tmp_path) == own, "nothing below the folder is asked for"
    assert outcome(lib / "*/*/*.mp4", tmp_path) == {link: "forbidden"}
    assert outcome(lib / "*/*/*.mp4", tmp_path, allow=[str(tmp_path)]) == behind
    assert outcome(lib / "part1", tmp_path) == behind, "a link that is named itself is allowed"


def test_a_linked_folder_inside_shows_nothing_twice_and_leads_round_no_circle(tmp_path: Path) -> None:
    for name in ("2026-01", "2026-02"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep/a.mp4").touch()
        (tmp_path / name / "up").symlink_to(tmp_path)
    (tmp_path / "latest").symlink_to("2026-02")
    (tmp_path / "2026-01/next").symlink_to("../2026-02")
    (tmp_path / "2026-02/before").symlink_to("../2026-01")
    every = {f"{name}/deep/a.mp4": "annotated" for name in ("2026-01", "2026-02")}
    assert outcome(tmp_path, tmp_path) == outcome(tmp_path / "**/*.mp4", tmp_path) == every
    assert outcome(tmp_path / "*/deep/*.mp4", tmp_path) == every
    assert outcome(tmp_path / "late*/*/*.mp4", tmp_path) == {"latest/deep/a.mp4": "annotated"}, "as a shell has it"
    out = dict.fromkeys(("latest/up", "latest/before"), "forbidden")
    assert outcome(tmp_path / "latest", tmp_path) == {"latest/deep/a.mp4": "annotated", **out}


def test_a_bucket_as_glob_prefix_and_manifest(s3: S3Server) -> None:
    import fsspec

    bucket = s3.make_bucket()
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    odd = ["b.mp4", "sub/ü +%#?&=.mp4", "sub/" + "k" * 1000 + ".mp4", "notes.txt"]
    for name in odd:
        fs.pipe_file(f"{bucket}/in/{name}", b"x")
    uris = [video.uri for video in videos(glob_job(f"s3://{bucket}/in/"))]
    assert uris == sorted(f"s3://{bucket}/in/{name}" for name in odd[:3])
    assert [v.uri for v in videos(glob_job(f"s3://{bucket}/in/*.mp4"))] == [f"s3://{bucket}/in/b.mp4"]
    assert all(video.problem is None for video in videos(glob_job(f"s3://{bucket}/in/**")))

    for kind in KINDS:
        lines = json.dumps({"uri": "b.mp4"}) + "\n" + json.dumps({"uri": "s3://other/x.mp4"}) + "\n"
        data = lines.encode() if kind == "jsonl" else b"uri\nb.mp4\ns3://other/x.mp4\n"
        if kind == "parquet":
            sink = pa.BufferOutputStream()
            pq.write_table(pa.table({"uri": ["b.mp4", "s3://other/x.mp4"]}), sink)
            data = sink.getvalue().to_pybytes()
        fs.pipe_file(f"{bucket}/in/m.{kind}", data)
        inside, outside = videos(job(f"s3://{bucket}/in/m.{kind}"))
        assert inside.uri == f"s3://{bucket}/in/b.mp4" and inside.problem is None
        assert outside.problem is not None and outside.problem.error_class == "forbidden"
    assert "no such file" in mistakes(job(f"s3://{bucket}/in/none.csv"))[0]
    assert "no video is there" in mistakes(glob_job(f"s3://{bucket}/none/"))[0]


# --- clips


@settings(deadline=None)
@given(
    duration_s=st.floats(0.5, 2_000),
    every_s=st.floats(0.5, 600),
    overlap=st.floats(0, 0.9),
    start_s=st.none() | st.floats(0, 1_000),
    end_s=st.none() | st.floats(0, 2_500),
)
def test_clips_cover_the_part_without_slivers(
    duration_s: float, every_s: float, overlap: float, start_s: float | None, end_s: float | None
) -> None:
    clips = ClipsSpec(every_s=every_s, overlap_s=overlap * every_s)
    first_s, last_s = start_s or 0.0, min(duration_s, duration_s if end_s is None else end_s)
    spans = clip_spans(duration_s, clips, start_s, end_s)
    if last_s <= first_s:
        assert spans == []
        return
    assert spans[0][0] == first_s and spans[-1][1] == last_s
    for (begin_s, finish_s), (next_s, _) in itertools.pairwise(spans):
        assert math.isclose(finish_s - begin_s, every_s, rel_tol=1e-6)
        assert math.isclose(finish_s - next_s, overlap * every_s, rel_tol=1e-6, abs_tol=1e-6)
    length_s = spans[-1][1] - spans[-1][0]
    assert length_s < 1.1 * every_s + 1e-6
    assert len(spans) == 1 or length_s > (0.1 + overlap) * every_s - 1e-6


@pytest.mark.parametrize("every_s", [0.1, 0.7, 1.1, 2.2, 2.4, 9.6])
@pytest.mark.parametrize("start_s", [None, 0.1])
def test_a_clip_ends_to_the_bit_where_the_next_one_begins(every_s: float, start_s: float | None) -> None:
    """Else a frame between them is in no clip."""
    spans = clip_spans(300.0, ClipsSpec(every_s=every_s), start_s)
    assert all(finish_s == begin_s for (_, finish_s), (begin_s, _) in itertools.pairwise(spans))


def test_a_header_that_claims_years_does_not_fill_the_memory() -> None:
    with pytest.raises(RowError, match="16,666,667 clips; of one") as told:
        clip_spans(1e9, ClipsSpec(every_s=60))
    assert told.value.error_class == "too_long"


def test_clips_by_hand() -> None:
    minute = ClipsSpec(every_s=60)
    assert clip_spans(130, minute) == [(0, 60), (60, 120), (120, 130)]
    assert clip_spans(121, minute) == [(0, 60), (60, 121)], "a sliver joins the clip before"
    assert clip_spans(126, minute) == [(0, 60), (60, 120), (120, 126)], "a tenth of a clip is no sliver"
    assert clip_spans(130, None, 10, None) == [(10, 130)]
    assert clip_spans(130, minute, 100, 500) == [(100, 130)]
    assert clip_spans(130, ClipsSpec(every_s=60, overlap_s=30), 0, 120) == [(0, 60), (30, 90), (60, 120)]
