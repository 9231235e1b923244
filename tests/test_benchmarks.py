"""Benchmarks in their own file formats: real annotation files where they are at hand, small ones of the same form."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlb_batch import tiny
from mlb_batch.errors import InputError
from mlb_batch.evaluate import unverified, world
from mlb_batch.evaluate.benchmarks import BENCHMARKS
from mlb_batch.evaluate.cells import cells
from mlb_batch.evaluate.formats import read_file, read_files
from mlb_batch.evaluate.items import Item
from mlb_batch.evaluate.manifest import Prepared, _Names, prepared, videos_folder, written_manifest
from mlb_batch.evaluate.scoring import right
from mlb_batch.evaluate.spec import EvalSpec, WorldSpec
from mlb_batch.evaluate.world import folder_of, show, write_world
from mlb_batch.source.uris import UriPolicy
from mlb_batch.storage import open_store
from mlb_batch.tiny.world import HELD_OUT_FROM, make_clip

REAL = Path(__file__).parents[2] / "shared" / "annotations"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real annotation files are not here")


def real(name: str, *files: str) -> list[Item]:
    return list(BENCHMARKS[name].items(read_files([str(REAL / file) for file in files])))


def written(folder: Path, name: str, content: Any) -> str:
    """A small file in the format that its ending says."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".json"):
        path.write_text(json.dumps(content))
    elif name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(content), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, content[0], delimiter="\t" if name.startswith("Test_") else ",")
            writer.writeheader()
            writer.writerows(content)
    return str(path)


def items_of(name: str, *files: str) -> list[Item]:
    return list(BENCHMARKS[name].items(read_files(files)))


# Real files.


@needs_real
def test_activitynet_from_its_two_files_and_from_one_are_the_same_questions() -> None:
    two = real("activitynetqa", "activitynetqa_test_q.json", "activitynetqa_test_a.json")
    one = real("activitynetqa", "igvlm_ActivityNet_QA.csv")
    assert len(two) == len(one) == 8000 and len({item.id for item in two}) == 8000
    assert len({item.video for item in two}) == 800 and all(item.kind == "open" for item in two)
    by_id = {item.id: item for item in one}
    for item in two:
        other = by_id[item.id]
        assert (item.video, item.answer, item.tags) == (other.video, other.answer, other.tags)
    kinds = Counter(item.tags["kind"] for item in two)
    assert kinds["motion"] == kinds["spatial"] == kinds["temporal"] == 800 and kinds["yes/no"] == 2094
    first = two[0]
    assert (first.id, first.video, first.answer) == ("v_1QIUV7WYKXg_3", "v_1QIUV7WYKXg", "no")
    assert first.prompt == "is the athlete wearing trousers\nAnswer the question using a single word or phrase."


@needs_real
def test_msvd_and_the_generic_questions_of_vcgbench() -> None:
    msvd = real("msvdqa", "igvlm_MSVD_QA.csv")
    assert len({item.id for item in msvd}) == len(msvd) > 5000
    assert (msvd[0].video, msvd[0].answer, msvd[0].tags["kind"]) == ("bQJQGoJF7_k_162_169", "someone", "who")
    vcg = real("vcgbench", "igvlm_videochatgpt_Generic_QA.csv")
    assert {item.kind for item in vcg} == {"judged"} and len({item.id for item in vcg}) == len(vcg) > 1500
    assert vcg[0].video == "v_hFi6S_guB7I" and vcg[0].answer.startswith("The women dancers are a group of five")
    assert vcg[0].tags["aspects"] == "correctness,detail,context" and vcg[0].prompt.startswith("What is the appearance")


# Small files of the same form.


def test_videomme(tmp_path: Path) -> None:
    row = {"video_id": "001", "duration": "short", "videoID": "fFjv93ACGo8", "question_id": "001-1",
           "task_type": "Counting Problem", "question": "How many?", "answer": "C",
           "options": ["A. Apples.", "B. Candles.", "C. Berries.", "D. The three are one."]}  # fmt: skip
    (item,) = items_of("videomme", written(tmp_path, "test-00000-of-00001.parquet", [row]))
    assert (item.video, item.answer, item.choices[0]) == ("fFjv93ACGo8", "Berries.", "Apples.")
    assert item.tags == {"kind": "Counting Problem", "duration": "short"}
    lines = item.prompt.splitlines()
    assert lines[0].endswith("Respond with only the letter (A, B, C, or D) of the correct option.")
    assert lines[1:3] == ["How many?", "A. Apples."] and lines[-1] == "The best answer is:"
    nested = {"videoID": "x", "duration": "long", "questions": [dict(row, videoID="x"), dict(row, question_id="001-2")]}
    assert len(items_of("videomme", written(tmp_path, "nested.json", [nested]))) == 2


def test_mlvu_with_its_oddities(tmp_path: Path) -> None:
    """Its files hold an answer that no option says, an option without a word, and tasks answered in sentences."""
    ego = [
        {"video": "e.mp4", "question": "Where?", "candidates": ["here", "", "there"], "answer": "",
         "question_type": "ego"},
        {"video": "e.mp4", "question": "", "candidates": ["a bus", "a car"], "answer": "a red bus",
         "question_type": "ego"},
    ]  # fmt: skip
    summary = [{"video": "s.mp4", "question": "Summarize.", "answer": "A man sails.", "question_type": "summary"}]
    files = [written(tmp_path, "3_ego.json", ego), written(tmp_path, "9_summary.json", summary)]
    empty, nobody, told = items_of("mlvu", *files)
    assert (empty.video, empty.id, told.kind) == ("3_ego/e.mp4", "3_ego-0", "judged")
    assert empty.prompt.splitlines()[:3] == ["Question: Where?", "Options:", "(A) here"]
    assert empty.prompt.endswith("Only give the best option.\nBest option: (")
    assert right(empty, "B") and right(empty, "(B)") and not right(empty, "") and not right(empty, "A")
    assert not any(right(nobody, said) for said in ("A", "B", "a bus", ""))


def test_longvideobench_and_egoschema(tmp_path: Path) -> None:
    row = {"id": "v_0", "video_path": "v.mp4", "question": "What?", "candidates": ["x", "y"], "correct_choice": 1,
           "question_category": "S2E", "duration_group": 600}  # fmt: skip
    (item,) = items_of("longvideobench", written(tmp_path, "lvb_val.json", [row]))
    assert (item.answer, item.video, item.tags["duration"]) == ("y", "v.mp4", "600")
    assert item.prompt.startswith("Question: What?\nA. x\nB. y\nAnswer with the option's letter")
    del row["correct_choice"]
    with pytest.raises(InputError, match=r"lvb_test\.json, row 1: no column 'correct_choice'"):
        items_of("longvideobench", written(tmp_path, "lvb_test.json", [row]))
    ego = [{"q_uid": uid, "question": "Why?"} | {f"option {n}": f"o{n}" for n in range(5)} for uid in ("u1", "u2")]
    files = [written(tmp_path, "questions.json", ego), written(tmp_path, "subset_answers.json", {"u2": 3})]
    (item,) = items_of("egoschema", *files)
    assert (item.id, item.answer, len(item.choices)) == ("u2", "o3", 5), "only questions whose answer is public"


def test_nextqa_and_intentqa(tmp_path: Path) -> None:
    options = {f"a{n}": f"o{n}" for n in range(5)}
    row = {"video": "42", "question": "why", "answer": "4", "qid": "7", "type": "CW", **options}
    places = written(tmp_path, "map_vid_vidorID.json", {"42": "0101/42"})
    (item,) = items_of("nextqa", written(tmp_path, "test.csv", [row]), places)
    assert (item.id, item.video, item.answer, item.tags["kind"]) == ("42-7", "0101/42", "o4", "CW")
    intent = dict(row, video_id="42")
    del intent["video"]
    (item,) = items_of("intentqa", written(tmp_path, "intent.csv", [intent]))
    assert (item.video, item.answer) == ("42", "o4")
    plain = {"video": "42", "question": "why", "answer": "to eat", "qid": "7", "type": "CW"}
    more = written(tmp_path, "add_reference_answer_test.json", {"42": {"7": "hungry"}})
    (item,) = items_of("nextqa", written(tmp_path, "open.csv", [plain]), more)
    also = {**plain, "additional_ref_answer": "hungry"}
    (other,) = items_of("nextqa", written(tmp_path, "hub.json", [also]))
    for one in (item, other):
        assert one.kind == "open" and right(one, "To eat.") and right(one, "hungry") and not right(one, "sleep")


def test_short_answers_and_tgif(tmp_path: Path) -> None:
    row = {"answer": "man", "category_id": 1, "id": 5, "question": "who is there?", "video_id": 7010}
    (item,) = items_of("msrvttqa", written(tmp_path, "test_qa.json", [row]))
    assert (item.video, item.id, item.tags["kind"]) == ("video7010", "5", "who")
    (item,) = items_of("msvdqa", written(tmp_path, "test_qa.json", [row]))
    assert item.video == "vid7010"
    frame = {"gif_name": "g1", "question": "what ?", "answer": "cookie", "type": "0", "vid_id": "FRAMEQA9", "key": "2"}
    action = {"gif_name": "g2", "question": "what ?", **{f"a{n}": f"o{n}" for n in range(1, 6)}, "answer": "4",
              "vid_id": "ACTION4", "key": "2"}  # fmt: skip
    files = [written(tmp_path, "Test_frameqa_question.csv", [frame]),
             written(tmp_path, "Test_action_question.csv", [action])]  # fmt: skip
    one, other = items_of("tgifqa", *files)
    assert (one.kind, one.answer, one.tags["kind"]) == ("open", "cookie", "frameqa")
    assert (other.kind, other.answer, other.tags["kind"]) == ("choice", "o5", "action")


def test_vcgbench_asks_twice_where_it_asks_for_consistency(tmp_path: Path) -> None:
    generic = [{"video_name": "v_a", "Q": "What?", "A": "A dog runs."}]
    twice = [{"video_name": "v_a", "Q1": "Is it a dog?", "Q2": "Which animal is it?", "A": "A dog."}]
    files = [written(tmp_path, "generic_qa.json", generic), written(tmp_path, "temporal_qa.json", generic),
             written(tmp_path, "consistency_qa.json", twice)]  # fmt: skip
    first, temporal, one, other = items_of("vcgbench", *files)
    assert (first.tags["aspects"], temporal.tags["aspects"]) == ("correctness,detail,context", "temporal")
    assert (one.prompt, other.prompt) == ("Is it a dog?", "Which animal is it?")
    assert (one.tags["twin"], other.tags["twin"]) == (other.id, one.id)


def test_a_file_of_another_benchmark_is_named_with_what_is_missing(tmp_path: Path) -> None:
    path = written(tmp_path, "test.csv", [{"video": "1", "question": "q"}])
    with pytest.raises(InputError, match=r"test\.csv, row 1: no column 'options'"):
        items_of("videomme", path)
    with pytest.raises(InputError, match="no such file"):
        read_file(str(tmp_path / "absent.json"))
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(InputError, match="not what its name says"):
        read_file(str(tmp_path / "bad.json"))
    with pytest.raises(InputError, match="ends in none of"):
        read_file(written(tmp_path, "notes.txt", [{"a": 1}]))


def test_a_file_of_the_root_folder_is_not_looked_for_where_one_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "only-here.json", [{"a": 1}])
    assert read_file("only-here.json").rows == ({"a": 1},)
    with pytest.raises(InputError, match=r" /only-here\.json: no such file"):
        read_file("/only-here.json")


def test_vcgbench_from_copies_that_number_each_file_anew(tmp_path: Path) -> None:
    row = {"video_name": "v_a", "question": "What?", "question_id": "v_a_0", "answer": "A dog runs."}
    one, other = items_of(
        "vcgbench", written(tmp_path, "Generic_QA.csv", [row]), written(tmp_path, "Temporal_QA.csv", [row])
    )
    assert one.id != other.id and (one.tags["aspects"], other.tags["aspects"]) == (
        "correctness,detail,context", "temporal"
    )  # fmt: skip
    with pytest.raises(InputError, match=r"Consistency_QA1\.csv, row 1: no column 'Q1'"):
        items_of("vcgbench", written(tmp_path, "Consistency_QA1.csv", [row]))


@pytest.mark.parametrize("answer", ["", "c", "7"])
def test_an_answer_that_is_no_letter_is_named_not_taken_for_the_first_option(tmp_path: Path, answer: str) -> None:
    row = {"videoID": "x", "question_id": "1", "duration": "short", "task_type": "t", "question": "?", "answer": answer,
           "options": ["A. a", "B. b"]}  # fmt: skip
    with pytest.raises(InputError, match=rf"x\.parquet, row 1: its answer is '{answer}', not an option's letter"):
        items_of("videomme", written(tmp_path, "x.parquet", [row]))


def video_mme(options: Any) -> dict[str, Any]:
    return {"videoID": "x", "question_id": "1", "duration": "short", "task_type": "t", "question": "?", "answer": "B",
            "options": options}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "read"),
    [
        (["A. A. Milne", "B. U.S. Army"], ("A. Milne", "U.S. Army")), (["(A) x", "(B)\ny"], ("x", "y")),
        (["U.S. Army", "A.M. radio"], ("U.S. Army", "A.M. radio")),
        (["E. coli", "B. subtilis"], ("E. coli", "B. subtilis")),
    ],
)  # fmt: skip
def test_only_letters_that_number_the_options_are_taken_from_them(
    tmp_path: Path, options: list[str], read: tuple[str, ...]
) -> None:
    (item,) = items_of("videomme", written(tmp_path, "x.json", [video_mme(options)]))
    assert item.choices == read and item.answer == read[1]


@pytest.mark.parametrize("told", ["1", 1, 1.0])
def test_an_options_number_is_read_however_a_copy_writes_it(tmp_path: Path, told: Any) -> None:
    row = {"id": "v_0", "video_path": "v.mp4", "question": "?", "candidates": ["x", "y"], "correct_choice": told,
           "question_category": "S2E", "duration_group": 15}  # fmt: skip
    (item,) = items_of("longvideobench", written(tmp_path, "lvb_val.json", [row]))
    assert item.answer == "y" and right(item, "B")


@pytest.mark.parametrize(("candidates", "answer"), [(["0", "1"], "1 "), (["0", " 1"], "1"), ([1, 2], 2)])
def test_an_answer_is_the_option_that_says_it_whatever_stands_around_it(
    tmp_path: Path, candidates: list[Any], answer: Any
) -> None:
    row = {"video": "v.mp4", "question": "?", "candidates": candidates, "answer": answer, "question_type": "count"}
    (item,) = items_of("mlvu", written(tmp_path, "4_count.json", [row]))
    assert right(item, "B") and not right(item, "A")


def test_rows_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x\.json, row 1: its options are 'A\. x', not a list"):
        items_of("videomme", written(tmp_path, "x.json", [video_mme("A. x")]))
    with pytest.raises(InputError, match=r"x\.json, row 1: one of its options is null"):
        items_of("videomme", written(tmp_path, "x.json", [video_mme(["A. x", None])]))
    half = {"q_uid": "u", "question": "?", "option 0": "x", "option 1": "y"}
    files = [written(tmp_path, "questions.json", [half]), written(tmp_path, "subset_answers.json", {"u": 0.5})]
    with pytest.raises(InputError, match=r"questions\.json, row 1: its answer is 0\.5, not an option's number"):
        items_of("egoschema", *files)
    silent = {"answer": "man", "id": 5, "question": " ", "video_id": 7010}
    with pytest.raises(InputError, match=r"test_qa\.json, row 1: its question is empty"):
        items_of("msvdqa", written(tmp_path, "test_qa.json", [silent]))


@pytest.mark.parametrize("odd", [["u"], {"u": 1}, None, 10**400])
def test_an_id_or_an_answer_of_any_kind_ends_as_a_named_mistake(tmp_path: Path, odd: Any) -> None:
    """Not as a traceback: ids that can't be looked up, numbers too large to be read."""
    ego = {"q_uid": "u", "question": "?", "option 0": "x", "option 1": "y"}
    told = written(tmp_path, "subset_answers.json", {"u": odd})
    with pytest.raises(InputError, match=r"questions\.json, row 1: "):
        items_of("egoschema", written(tmp_path, "questions.json", [ego]), told)
    assert items_of("egoschema", written(tmp_path, "questions.json", [{**ego, "q_uid": odd}]), told) == []
    asked = written(tmp_path, "q.json", [{"video_name": "a", "question": "q", "question_id": odd}])
    with pytest.raises(InputError, match=r"q\.json, row 1: "):
        items_of("activitynetqa", asked, written(tmp_path, "a.json", [{"question_id": "1", "answer": "yes"}]))


def test_a_text_where_a_mapping_should_be_is_named(tmp_path: Path) -> None:
    row = {"video": "42", "question": "why", "answer": "to eat", "qid": "7", "type": "CW"}
    files = [written(tmp_path, "open.json", [row]), written(tmp_path, "reference_answers.json", {"42": "hungry"})]
    with pytest.raises(InputError, match=r"open\.json, row 1: "):
        items_of("nextqa", *files)


@pytest.mark.parametrize("name", ["deep.json", "deep.jsonl"])
def test_a_file_that_is_nested_too_deep_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("[" * 200_000)
    with pytest.raises(InputError, match=rf"{name}: not what its name says"):
        read_file(str(tmp_path / name))


FIVE = "a0,a1,a2,a3,a4\n42,1,CW,why,3,o0,o1,o2,o3,o4\n42,2,CW,how,3,o0,on a ch"


@pytest.mark.parametrize(
    ("name", "file", "text", "lost"),
    [
        ("nextqa", "test.csv", f"video,qid,type,question,answer,{FIVE}", "a2"),
        ("intentqa", "test.csv", f"video_id,qid,type,question,answer,{FIVE}", "a2"),
        ("nextqa", "open.csv", "video,qid,type,question,answer\n42,1,CW,why,to eat\n42,2,CW,how d", "answer"),
        ("tgifqa", "Test_frameqa.csv", "gif_name\tvid_id\tquestion\tanswer\ng\tF1\twho ?\tman\ng\tF2\twh", "answer"),
    ],
)
def test_a_row_that_broke_off_is_named_and_asks_nothing(
    tmp_path: Path, name: str, file: str, text: str, lost: str
) -> None:
    """Of a download that ended early: what was lost would be an option called None, or the answer that is right."""
    (tmp_path / file).write_text(text)
    with pytest.raises(InputError, match=rf"{file}, row 2: no column '{lost}'"):
        items_of(name, str(tmp_path / file))


def test_more_options_than_letters_are_refused_not_left_out_of_the_question(tmp_path: Path) -> None:
    row = {"video": "v.mp4", "question": "?", "candidates": [f"o{n}" for n in range(26)], "answer": "o25",
           "question_type": "t"}  # fmt: skip
    (item,) = items_of("mlvu", written(tmp_path, "1_plotQA.json", [row]))
    assert "(Z) o25" in item.prompt and right(item, "Z")
    with pytest.raises(InputError, match=r"row 1: it has 27 options; at most 26"):
        items_of("mlvu", written(tmp_path, "1_plotQA.json", [dict(row, candidates=[*row["candidates"], "o26"])]))


def test_rows_without_an_id_or_with_an_answer_of_another_kind_are_named(tmp_path: Path) -> None:
    asked = [{"video_name": "a", "question": "q", "question_id": "1"}, {"video_name": "a", "question": "q"}]
    told = [{"question_id": "1", "answer": "yes", "type": 3}]
    with pytest.raises(InputError, match=r"q\.json, row 2: no column"):
        items_of("activitynetqa", written(tmp_path, "q.json", asked), written(tmp_path, "a.json", told))
    ego = [{"q_uid": "u", "question": "?", "option 0": "x", "option 1": "y"}]
    files = [written(tmp_path, "questions.json", ego), written(tmp_path, "subset_answers.json", {"u": "first"})]
    with pytest.raises(InputError, match=r"questions\.json, row 1: .*'first'"):
        items_of("egoschema", *files)
    assert items_of("egoschema", written(tmp_path, "other.json", asked), files[1]) == []
    vcg = [{"video_name": "v", "Q": "What?", "A": "A dog."}, {"video_name": "v", "Q": "What?"}]
    with pytest.raises(InputError, match=r"generic_qa\.json, row 2: no column 'answer or A'"):
        items_of("vcgbench", written(tmp_path, "generic_qa.json", vcg))


def test_half_a_surrogate_pair_does_not_travel_to_where_results_are_written(tmp_path: Path) -> None:
    half = "who\ud83d"
    row = {"videoID": "x", "question_id": half, "duration": half, "task_type": half, "question": half, "answer": "B",
           "options": ["A. a", f"B. {half}"]}  # fmt: skip
    (item,) = items_of("videomme", written(tmp_path, "x.json", [row]))
    texts = (item.id, item.prompt, item.answer, *item.choices, *item.tags.values())
    assert "".join(texts).encode() and item.answer == "who?" == item.choices[1]


def test_a_line_of_json_may_hold_any_sign(tmp_path: Path) -> None:
    (tmp_path / "qa.jsonl").write_text('{"question": "one\u2028two\x85"}\r\n\n{"question": "é"}', encoding="utf-8")
    assert [row["question"] for row in read_file(str(tmp_path / "qa.jsonl")).rows] == ["one\u2028two\x85", "é"]


# The README's table.


def test_the_readme_lists_every_benchmark_that_was_not_run_with_a_command_that_the_spec_takes() -> None:
    root = Path(__file__).parents[1]
    assert unverified.table() in (root / "README.md").read_text(encoding="utf-8")
    for name, public_one in BENCHMARKS.items():
        words = shlex.split(unverified.command(name))
        assert words[:2] == ["mlb-batch", "evaluate"] and f"`{unverified.command(name)}`" in unverified.table()
        spec = EvalSpec.load(root / words[2], words[4::2])
        assert spec.benchmark.name == name and len(spec.benchmark.annotations) == len(public_one.files)
        assert cells(spec, "/out", "/videos") and (spec.judge is not None) == (public_one.form == "judged")


# Manifests.


def public(tmp_path: Path, **more: Any) -> EvalSpec:
    rows = [{"video_name": f"v{n // 2}", "question": f"q{n}", "question_id": f"i{n}", "answer": "yes", "type": 3}
            for n in range(6)]  # fmt: skip
    files = written(tmp_path, "qa.json", rows)
    given = {"name": "activitynetqa", "annotations": files, "videos": str(tmp_path / "videos"), **more}
    return EvalSpec.from_dict({"benchmark": given, "methods": "none", "output": str(tmp_path / "out")})


def ready(spec: EvalSpec) -> Prepared:
    store = open_store(spec.output.uri)
    return prepared(spec, store, videos_folder(spec, store), print)


def manifest(spec: EvalSpec, found: Prepared) -> list[dict[str, Any]]:
    path = Path(written_manifest(spec, open_store(spec.output.uri), found))
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def one_there(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "v_v0.mp4").touch()


def test_a_video_is_found_whatever_its_ending_and_a_missing_one_keeps_its_name(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    for name in ("v_v0.mkv", "v_v1.webm"):
        (tmp_path / "videos" / name).touch()
    found = ready(public(tmp_path))
    names = ["v_v0.mkv", "v_v0.mkv", "v_v1.webm", "v_v1.webm", "v_v2.mp4", "v_v2.mp4"]
    assert [item.video for item in found.items] == names
    rows = manifest(public(tmp_path), found)
    assert [row["uri"] for row in rows] == [f"{tmp_path}/videos/{name}" for name in names]
    assert rows[0]["questions"] == [{"id": "i0", "question": found.items[0].prompt}] and rows[0]["captions"] == []


def test_a_video_is_found_beside_files_of_the_same_name(tmp_path: Path) -> None:
    """Subtitles, sound and pictures are no videos; of two videos with one name it is the .mp4."""
    (tmp_path / "videos").mkdir()
    beside = ("v_v0.MP4", "v_v0.srt", "v_v1.mp4", "v_v1.wav", "v_v1.webm", "v_v1.webp", "v_v2.gif", "v_v2.mkv")
    for name in beside:
        (tmp_path / "videos" / name).touch()
    items = ready(public(tmp_path)).items
    assert sorted({item.video for item in items}) == ["v_v0.MP4", "v_v1.mp4", "v_v2.mkv"]


def test_a_video_is_found_beside_a_folder_of_its_frames_and_by_its_full_name(tmp_path: Path) -> None:
    (tmp_path / "videos" / "v_v0").mkdir(parents=True)
    for name in ("v_v0.mp4", "v_v1", "v_v2.mp4", "v_v2.mp4.mkv", "v_v2.vob"):
        (tmp_path / "videos" / name).touch()
    names = _Names(str(tmp_path / "videos"))
    told = {"v_v0": "v_v0.mp4", "v_v0.mp4": "v_v0.mp4", "v_v1": "v_v1", "v_v2.mp4": "v_v2.mp4", "v_v2.vob": "v_v2.vob"}
    assert {name: names.file(name) for name in told} == told and not names.missing


@pytest.mark.usefixtures("one_there")
def test_asked_together_a_clip_is_one_row(tmp_path: Path) -> None:
    spec = public(tmp_path).model_copy(update={"asked": "together"})
    assert [len(row["questions"]) for row in manifest(spec, ready(spec))] == [2, 2, 2]


@pytest.mark.usefixtures("one_there")
def test_a_limit_takes_whole_videos_and_a_larger_one_keeps_them(tmp_path: Path) -> None:
    one, two = ready(public(tmp_path, limit=1)).items, ready(public(tmp_path, limit=2)).items
    assert len(one) == 2 and len(two) == 4 and {item.id for item in one} < {item.id for item in two}
    assert {item.video for item in one} == {"v_v0.mp4"}, "the one that is there"


@pytest.mark.usefixtures("one_there")
def test_a_question_that_stands_twice_is_refused(tmp_path: Path) -> None:
    spec = public(tmp_path)
    files = spec.benchmark.annotations * 2
    again = spec.model_copy(update={"benchmark": spec.benchmark.model_copy(update={"annotations": files})})
    with pytest.raises(InputError, match="'i0' stands twice"):
        ready(again)


def test_a_folder_that_cannot_be_listed_is_taken_at_its_word(tmp_path: Path) -> None:
    """A web server lists nothing, and may redirect who asks for a folder: its videos are asked for by their names."""
    spec = public(tmp_path, videos="http://localhost:9/v/")
    found = ready(spec)
    assert [item.video for item in found.items][::2] == ["v_v0.mp4", "v_v1.mp4", "v_v2.mp4"] and not found.missing
    assert manifest(spec, found)[0]["uri"] == "http://localhost:9/v/v_v0.mp4"


def test_a_folder_with_none_of_the_videos_is_said_before_anything_runs(tmp_path: Path) -> None:
    """A video that isn't there is an answer that no later run tries again."""
    with pytest.raises(InputError, match=r"benchmark\.videos: none of 3 videos is in .*/videos; v_v0\.mp4 should be"):
        ready(public(tmp_path))
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "v_v0.srt").touch()
    with pytest.raises(InputError, match="none of 3 videos"):
        ready(public(tmp_path))


def test_links_that_lead_out_of_the_folder_are_said_before_anything_runs(tmp_path: Path) -> None:
    """As a download's cache has them: every video would be forbidden, one after the other."""
    for name in ("videos", "cache"):
        (tmp_path / name).mkdir()
    for number in range(3):
        (tmp_path / "cache" / f"{number}f").touch()
        (tmp_path / "videos" / f"v_v{number}.mp4").symlink_to(tmp_path / "cache" / f"{number}f")
    with pytest.raises(InputError, match=r"/videos leads elsewhere, v_v0\.mp4 for one; name in benchmark\.allow"):
        ready(public(tmp_path))
    given = public(tmp_path, allow=[str(tmp_path / "cache")])
    found = ready(given)
    opened = UriPolicy.of(cells(given, given.output.uri, found.videos)[0].job.input)
    assert len(found.items) == 6 and all(opened.resolve(row["uri"]) for row in manifest(given, found))
    (tmp_path / "videos" / "v_v2.mp4").unlink()
    (tmp_path / "videos" / "v_v2.mp4").touch()
    assert len(ready(public(tmp_path)).items) == 6, "what can be opened is asked about"


# The world.


def test_the_world_is_held_out_and_its_questions_are_spread_over_kinds(tmp_path: Path) -> None:
    spec = WorldSpec(clips=6, questions=5, seed=3)
    items, folder = write_world(open_store(str(tmp_path)), "world", spec, print), folder_of("world", spec)
    assert len(list((tmp_path / folder).iterdir())) == 6
    shown = show("world", spec, 2)
    clip = make_clip(HELD_OUT_FROM + 300_002, 16)
    assert (shown.pixels_FHWC == clip.pixels_FHWC).all() and shown.caption == clip.caption
    for index in range(6):
        of_clip = [item for item in items if item.video == f"clip-{index:06d}.mp4"]
        asked = [item for item in of_clip if item.kind != "caption"]
        assert len(asked) == 5 and len(of_clip) == 6
        known = {(q.text, q.choices[ord(q.answer) - 65] if q.choices else q.answer) for q in
                 show("world", spec, index).questions}  # fmt: skip
        assert {(item.prompt, item.answer) for item in asked} <= known
        kinds = [item.tags["kind"] for item in asked]
        there = {question.kind for question in show("world", spec, index).questions}
        assert len(set(kinds)) == min(5, len(there))


def test_many_clips_are_no_silent_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "TOLD_EVERY", 2)
    told: list[str] = []
    write_world(open_store(str(tmp_path)), "world", WorldSpec(clips=5, frames=4), told.append)
    assert told == ["2 of 5 clips", "4 of 5 clips"]


def test_world_files_are_written_once_and_apart_by_what_shapes_them(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    items, folder = write_world(store, "world", WorldSpec(clips=2), print), folder_of("world", WorldSpec(clips=2))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / folder).iterdir()}
    more = write_world(store, "world", WorldSpec(clips=3, questions=2), print)
    assert len(more) < len(items) * 2
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    assert len(list((tmp_path / folder).iterdir())) == 3
    assert folder_of("world", WorldSpec(clips=2, frames=8)) != folder


@pytest.mark.parametrize("file", ["questions.py", "scenes.py", "words.py", "world.py"])
def test_a_release_that_asks_otherwise_has_clips_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """Answers to the questions of another release, or letters of other options, would be scored by its truth."""
    before = folder_of("world", WorldSpec())
    shutil.copytree(Path(tiny.__file__).parent, tmp_path / "tiny", ignore=shutil.ignore_patterns("weights"))
    with (tmp_path / "tiny" / file).open("a") as code:
        code.write("\n# Asked otherwise.\n")
    monkeypatch.setattr(tiny, "__file__", str(tmp_path / "tiny" / "__init__.py"))
    world._code.cache_clear()
    try:
        assert folder_of("world", WorldSpec()) != before
    finally:
        world._code.cache_clear()


def test_slides_ask_only_what_has_one_answer_in_the_whole_clip() -> None:
    """Against the scenes themselves: a thing that is asked for stands once, and one that is denied stands nowhere."""
    spec, several = WorldSpec(clips=2, frames=12), 0
    for index in range(60):
        shown = show("world-image", spec, index)
        assert shown.pixels_FHWC.shape == (12, world.IMAGE_WORLD_PX, world.IMAGE_WORLD_PX, 3) and shown.questions
        changes = (shown.pixels_FHWC[1:] != shown.pixels_FHWC[:-1]).any(axis=(1, 2, 3)).sum()
        several += bool(changes)
        answers: dict[str, set[str]] = {}
        for question in shown.questions:
            answers.setdefault(question.text, set()).add(world._said(question))
        assert all(len(told) == 1 for told in answers.values()), answers
        assert changes or all(question.hangs_on == "any" for question in shown.questions)
    assert several > 20
