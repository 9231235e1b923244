"""`mlb-batch evaluate`: its file, what its tables and pictures say, and whole evaluations on a random model."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from evaluations import ITEMS, Annotate, answered, cell, compare, shown, small, spec

from mlb_batch.cli import app, ended
from mlb_batch.errors import BudgetError, InputError, JobError, OutputError, SpecError, UserError
from mlb_batch.evaluate.cells import cells, short_names
from mlb_batch.evaluate.items import Item
from mlb_batch.evaluate.job import evaluate
from mlb_batch.evaluate.results import Answers, results
from mlb_batch.evaluate.spec import EvalSpec
from mlb_batch.evaluate.summary import Counting, _in_order, costs, estimates
from mlb_batch.evaluate.svg import HEIGHT, Curve, Heat, Point, chart, heat_maps
from mlb_batch.evaluate.tables import markdown
from mlb_batch.spec import JobSpec
from mlb_batch.video.write import write_mp4

# Results.


def compared(counting: Counting) -> dict[tuple[str, str, str], dict[str, Any]]:
    every = [cell("none", "none", 1.0), cell("rand", "random"), cell("ours", "adatp")]
    said = {
        "none": answered({"a": "red", "b": "B", "c": "blue", "told": "A red ring moves left."}, flops_prefill=100),
        "rand": answered({"a": "blue", "b": "B", "c": "green", "told": "nothing."}, flops_prefill=27, flops_scoring=0),
        "ours": answered({"a": "Red.", "b": "(B)", "c": "green", "told": "A red ring moves left."}, flops_prefill=26),
    }
    rows = {one.name: results("made", one, ITEMS, said[one.name], None) for one in every}
    found = estimates(rows, every, counting)
    spent = costs(rows["ours"], rows["none"])
    assert (spent["answered"], spent["unanswered"], spent["unanswered_by_class"]) == (4, 1, {"not_found": 1})
    assert spent["llm_flops_share"] == pytest.approx(4 * 27 / (4 * 101)) and spent["ungraded"] == 0
    return {(row["cell"], row["metric"], row["group"]): row for row in found}


def test_half_a_sentence_of_a_caption_that_was_cut_invents_nothing() -> None:
    said = {"told": "A red ring moves left. A blue ri"}
    whole, cut = (results("made", cell("none", "none", 1.0), [ITEMS[4]], answers, None)[0]
                  for answers in (answered(said), answered(said, finish_reason="length")))  # fmt: skip
    assert (whole["hits"], whole["facts_said"], whole["invented"]) == (1, 2, ["a blue ri"])
    assert (cut["hits"], cut["facts_said"], cut["invented"], cut["missed"]) == (1, 1, [], ["a blue ring moves left"])


def test_answers_know_which_questions_they_were_given_to() -> None:
    row = {"video_id": "i", "uri": "/old/out/videos/world-1/clip.mp4", "prompt": "what?", "text": "x"}
    answers, item = Answers({"i": row}, {}), Item("i", "clip.mp4", "open", "what?", "x")
    more = Item("new", "clip.mp4", "open", "when?", "x")
    assert not list(answers.to_others([item, more], True, "world-1")) and not list(answers.to_others([item], True, ""))
    for other, alone, clips in ((replace(item, prompt="who?"), True, ""), (item, False, ""), (item, True, "world-2"),
                                (replace(item, video="b.mp4"), True, "world-1")):  # fmt: skip
        assert list(answers.to_others([other], alone, clips)) == ["i"]
    assert not list(answers.to_others([replace(item, video="moved.mkv")], True, ""))


def test_estimates_are_what_one_counts_by_hand() -> None:
    found = compared(Counting())
    assert found["none", "accuracy", "all"]["value"] == 3 / 4 and found["none", "accuracy", "all"]["questions"] == 4
    assert found["rand", "accuracy", "all"]["value"] == 1 / 4
    ours = found["ours", "accuracy", "all"]
    assert ours["value"] == 2 / 4 and ours["minus_none"] == -1 / 4 and ours["minus_random"] == 1 / 4
    assert (ours["better_than_random"], ours["worse_than_random"], ours["worse_than_none"]) == (1, 0, 1)
    assert ours["clips"] == 3 and ours["low"] < ours["value"] < ours["high"]
    assert found["ours", "accuracy", "early"]["value"] == 1 and found["rand", "accuracy", "early"]["value"] == 0
    assert found["none", "accuracy", "colour"]["value"] == pytest.approx(2 / 3)
    assert (found["none", "recall", "all"]["value"], found["none", "precision", "all"]["value"]) == (1 / 2, 1)
    assert np.isnan(found["none", "accuracy", "all"]["minus_none"])


def test_results_are_grouped_by_the_length_of_videos_where_a_benchmark_says_it() -> None:
    items = [replace(item, tags={**item.tags, "duration": item.video}) for item in ITEMS[:3]]
    one = cell("none", "none", 1.0)
    marked = {"none": results("made", one, items, answered({"a": "red", "b": "A", "c": "blue"}), None)}
    found = estimates(marked, [one], Counting())
    assert {row["group"]: row["value"] for row in found if row["by"] == "duration"} == {"v1": 0.5, "v2": 1.0}
    lasting = [replace(item, tags={"duration": s}) for item, s in zip(ITEMS, ("600", "15", "3600"), strict=False)]
    marked = {"none": results("made", one, lasting, answered({"a": "red", "b": "A", "c": "blue"}), None)}
    groups = [row["group"] for row in estimates(marked, [one], Counting()) if row["by"] == "duration"]
    assert groups == ["15", "600", "3600"]
    assert sorted(["9" * 5000, "60 s", "600 s", "7"], key=_in_order) == ["7", "60 s", "600 s", "9" * 5000]


def test_unanswered_questions_count_as_the_benchmark_says() -> None:
    apart = compared(Counting(unanswered="apart"))["none", "accuracy", "all"]
    assert apart["value"] == 1 and apart["questions"] == 3
    every, told = [cell("rand", "random"), cell("ours", "adatp")], {"a": "red", "b": "B"}
    said = {"rand": answered(told), "ours": answered({**told, "c": "blue"})}
    rows = {one.name: results("made", one, ITEMS, said[one.name], None) for one in every}
    for unanswered, better in (("wrong", 1), ("apart", 0)):  # what random never answered it has not got wrong
        found = estimates(rows, every, Counting(unanswered=unanswered))
        ours = next(row for row in found if (row["cell"], row["metric"], row["group"]) == ("ours", "accuracy", "all"))
        assert ours["better_than_random"] == better
    by_kind = compared(Counting(average="kind"))["ours", "accuracy", "all"]
    assert by_kind["value"] == pytest.approx((1 / 3 + 1) / 2)


def test_tables_hold_no_markup_of_models_files_and_endpoints() -> None:
    one, bad = cell("c", "none", 1.0), "![](http://evil/p.png) [x](javascript:y) <img>\n# Results: `100` | 9"
    items = [replace(item, tags={"kind": bad, "hangs_on": bad}) for item in ITEMS[:3]]
    marked = {"c": results("made", one, items, answered({"a": "red", "b": "B", "c": "x"}), None)}
    given = EvalSpec.from_dict({"methods": ["none"], "output": "/nowhere"})
    spent = {"c": {**costs(marked["c"], marked["c"]), "peak_memory_mb": 0}}
    found = estimates(marked, [one], Counting())
    text = markdown(shown(given, cells=[one], estimates=found, costs=spent, refused={"d": bad}, judges=(bad,)))
    assert text.count("evil") == 4 and "](" not in text.replace("]\\(", "") and "<img" not in text
    assert "\n# Results" not in text and "`100`" not in text


def test_tables_cut_no_list_of_facts_and_mark_what_they_do_cut() -> None:
    facts = Counter({f"a large {colour} ring moves slowly to the left|": 2 for colour in "abcdefgh"})
    given = EvalSpec.from_dict({"methods": ["none"], "output": "/nowhere"})
    text = markdown(shown(given, refused={"d": "why " * 100}, facts={"c": (facts, Counter())}))
    (said,) = (line for line in text.splitlines() if line.startswith("| c |"))
    assert said.count("to the left/ (2)") == 8 and said.count("|") == 4
    assert "- `d`: " + ("why " * 75) + "...\n" in text


@pytest.mark.parametrize(("unanswered", "recall"), [("wrong", 0.4), ("apart", 0.8)])
def test_captions_are_compared_where_both_were_made(unanswered: str, recall: float) -> None:
    """A cell that makes no caption of what is hard has no better ones."""
    truth = "A red ring moves left. A blue ring moves left."
    items = [Item(str(n), f"v{n}", "caption", "?", truth) for n in range(10)]
    every = [cell("none", "none", 1.0), cell("ours", "adatp")]
    easy = {str(n): truth if n < 4 else "" for n in range(5)}
    hard = {str(n): "A green star moves up." for n in range(5, 10)}
    said = {"none": answered(easy | hard), "ours": answered(easy)}
    rows = {one.name: results("made", one, items, said[one.name], None) for one in every}
    found = estimates(rows, every, Counting(unanswered=unanswered))
    by_metric = {row["metric"]: row for row in found if row["cell"] == "ours" and row["by"] == "all"}
    assert by_metric["precision"]["value"] == 1 and by_metric["recall"]["value"] == pytest.approx(recall)
    assert by_metric["precision"]["minus_none"] == by_metric["recall"]["minus_none"] == 0


def test_a_difference_is_counted_on_the_questions_that_both_answered() -> None:
    """Where a cell could not answer what is hard, it is not better for it."""
    items = [Item(str(n), f"v{n}", "open", "?", "yes", tags={"kind": "easy" if n < 5 else "hard"}) for n in range(10)]
    every = [cell("none", "none", 1.0), cell("ours", "adatp")]
    said = {"none": answered({str(n): "yes" if n < 5 else "no" for n in range(10)}),
            "ours": answered({str(n): "yes" for n in range(4)} | {"4": "no"})}  # fmt: skip
    rows = {one.name: results("made", one, items, said[one.name], None) for one in every}
    for over in ("question", "kind"):
        found = estimates(rows, every, Counting("apart", over))
        (ours,) = [row for row in found if (row["cell"], row["metric"], row["by"]) == ("ours", "accuracy", "all")]
        assert ours["value"] == pytest.approx(0.8) and ours["minus_none"] == pytest.approx(-0.2)
        assert (ours["better_than_none"], ours["worse_than_none"]) == (0, 1)


# The file.


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mehtods": ["none"]}, "mehtods"), ({"benchmark": "wordl"}, "world"), ({"ratios": [1.5]}, "ratios"),
        ({"methods": ["adatp", "adatp"]}, "label"), ({"methods": []}, "methods"),
        ({"benchmark": "mlvu"}, "4_count.json"), ({"job": {"budget": {"ratio": 0.5}}}, "job.budget"),
        ({"job": {"prune": {"method": "adatp"}}}, "job.prune.method"),
        ({"benchmark": {"name": "world", "videos": "/x"}}, "neither"), ({"ratios": [0.5, 0.5]}, "twice"),
        ({"methods": [{"method": "adatp", "label": "../up"}]}, "label"),
        ({"job": {"prune": None}}, "job.prune: must be a mapping"), ({"job": {"prune": "adatp"}}, "job.prune"),
        ({"job": {"clips": {"every_s": 60}}}, "job.clips: a question is about its whole video"),
        ({"benchmark": {"name": "world", "world": {"frames": 16, "least_flash": 17}}}, "world: least_flash"),
        ({"benchmark": {"name": "world-image", "world": {"max_acts": 2}}}, "world.max_acts goes with world"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_is_said_in_a_line(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError, match=says.replace(".", r"\.")):
        spec(tmp_path, **change)


def test_what_is_told_of_an_evaluation_holds_no_webhook(tmp_path: Path) -> None:
    job = {"frames": {"count": 8}, "notify": {"webhook": "https://hooks.example.com/secret"}}
    told = spec(tmp_path, job=job).told()
    assert "secret" not in json.dumps(told) and told["job"]["frames"] == {"count": 8}
    assert told["methods"][0]["method"] == "none" and spec(tmp_path).told()["job"] == {}


def test_environment_variables_stand_for_places_as_in_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "/data")
    given = spec(
        tmp_path, benchmark={"name": "mlvu", "annotations": ["${DATA}/1_plotQA.json"], "videos": "${DATA}/videos"},
        models=["${DATA}/tiny", {"id": "${DATA}/other"}], judge={"url": "https://judge${DATA}", "model": "${DATA}"},
        methods=[{"method": "adatp", "feature_model": "${DATA}/pair"}],
    )  # fmt: skip
    assert (given.benchmark.annotations, given.benchmark.videos) == (("/data/1_plotQA.json",), "/data/videos")
    assert [one.id for one in given.models] == ["/data/tiny", "/data/other"]
    assert given.methods[0].feature_model == "/data/pair"
    assert given.judge and (given.judge.url, given.judge.model) == ("https://judge/data", "${DATA}")
    with pytest.raises(SpecError, match=r"benchmark\.videos: the environment variable ABSENT is not set"):
        spec(tmp_path, benchmark={"name": "mlvu", "annotations": "a.json", "videos": "${ABSENT}"})


def test_a_mistake_in_what_is_passed_through_is_found_before_anything_runs(tmp_path: Path) -> None:
    wrong = spec(tmp_path, job={"frames": {"count": "many"}})
    with pytest.raises(SpecError, match=r"job\.frames\.count"):
        cells(wrong, str(tmp_path), str(tmp_path))


def test_cells_are_models_times_methods_times_budgets(tmp_path: Path) -> None:
    given = spec(
        tmp_path, models=["embedded:tiny", "/models/tiny/"], ratios=[0.5, 0.1], asked="alone",
        methods=["none", "random", {"method": "adatp", "label": "plain", "options": {"global": "none"}}],
        job={"frames": {"count": 5}, "prune": {"selections": 0.5}},
    )  # fmt: skip
    every = cells(given, "/out", "/videos")
    assert len(every) == 2 * (1 + 2 * 2) and len({one.name for one in every}) == len(every)
    last = next(one for one in every if one.name == "tiny-2--plain--0.1")
    assert (last.rule, last.job.budget.ratio, last.job.frames.count) == ("adatp", 0.1, 5)
    assert last.job.prune.options == {"global": "none"} and last.job.prune.selections == 0.5
    assert last.over("/out/m.jsonl").job.input.manifest == "/out/m.jsonl" and last.job.input.allow == ("/videos",)
    assert last.job.output.uri == "/out/cells/tiny-2--plain--0.1"
    assert short_names(["a/b", "c/b", "embedded:tiny"]) == ["b-1", "b-2", "tiny"]


def test_no_two_cells_have_one_name(tmp_path: Path) -> None:
    assert short_names(["/m/b-1", "a/b", "c/b"]) == ["b-1", "b-2", "b-3"] and short_names(["/m/模型"]) == ["model"]
    near = spec(tmp_path, methods=["random"], ratios=[0.25, 0.2500001])
    with pytest.raises(SpecError, match=r"2 cells would be called tiny--random--0\.25; give other labels, or ratios"):
        cells(near, "/out", "/videos")


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("adatpp", r"^methods\.adatpp\.method: 'adatpp' is not a method; .*did you mean 'adatp'"),
        ({"method": "adatp", "label": "plain", "options": {"globl": "none"}}, r"^methods\.plain\.options.*globl"),
        (
            {"method": "adatp", "feature_model": "/nowhere"},
            r"^methods\.adatp\.feature_model: '/nowhere' is(?!.*(model\.id|prune\.))",
        ),
    ],
)
def test_a_method_that_is_none_is_said_before_any_cell_runs(tmp_path: Path, method: Any, says: str) -> None:
    annotate = Annotate()
    with pytest.raises(UserError, match=says):
        compare(small(tmp_path, methods=["none", method]), annotate)
    assert annotate.jobs == [] and not (tmp_path / "out").exists(), "no world was made for it"


def test_a_stopped_evaluation_says_so_and_writes_no_tables(tmp_path: Path) -> None:
    def stopped(job: JobSpec) -> dict[str, Any]:
        return {"fingerprint": "f", "stopped": "SIGTERM", "exit_code": 143, "rows_written": 0}

    found = evaluate(small(tmp_path), stopped, lambda text: None)
    assert (found["stopped"], found["exit_code"]) == ("SIGTERM", 143)
    assert not (tmp_path / "out" / "README.md").exists()


def test_what_a_running_evaluation_asks_is_not_changed_by_another(tmp_path: Path) -> None:
    asked: list[bytes] = []

    def stopped(job: JobSpec) -> dict[str, Any]:
        assert job.input.manifest
        asked.append(Path(job.input.manifest).read_bytes())
        return {"fingerprint": "f", "stopped": "SIGTERM", "exit_code": 143, "rows_written": 0}

    def meanwhile(job: JobSpec) -> dict[str, Any]:
        evaluate(small(tmp_path, asked="together"), stopped, lambda text: None)
        return stopped(job)

    for annotate in (stopped, meanwhile):
        evaluate(small(tmp_path), annotate, lambda text: None)
    assert asked[0] == asked[2] != asked[1]


EXAMPLES = sorted((Path(__file__).parents[1] / "jobs").glob("*.yaml"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_the_examples_are_good_files(file: Path) -> None:
    if file.stem.startswith("evaluate"):
        assert cells(EvalSpec.load(file), "/out", "/videos")
    else:
        assert JobSpec.load(file).prompts


def test_settings_step_into_short_forms() -> None:
    file = EXAMPLES[0].with_name("evaluate.yaml")
    given = EvalSpec.load(file, ["methods.4.options.schedule=steep", "methods.0.label=all", "models.0.dtype=float32"])
    assert (given.methods[4].method, given.methods[4].options) == ("adatp", {"schedule": "steep"})
    assert given.methods[0].name == "all" and given.methods[1].name == "random"
    assert (given.models[0].id, given.models[0].dtype) == ("embedded:tiny", "float32")
    alone = EvalSpec.load(file, ["models=a", "models.device=cpu", "benchmark=world-image", "benchmark.limit=2"])
    assert (alone.models[0].id, alone.models[0].device) == ("a", "cpu")
    assert (alone.benchmark.name, alone.benchmark.limit) == ("world-image", 2)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("ratios.0.x=1", r"--set ratios\.0\.x=1: ratios\.0 is a plain value, it has no keys below it"),
        ("methods.0.method.x=1", r"methods\.0\.method is a plain value"),
        ("methods.first.label=x", "first.label=x: methods is a list of 6: use a number from 0"),
    ],
)  # fmt: skip
def test_a_setting_below_a_plain_value_is_refused_in_a_line(setting: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        EvalSpec.load(EXAMPLES[0].with_name("evaluate.yaml"), [setting])


# Pictures.


def test_charts_are_xml_with_a_curve_and_a_name_for_each_method() -> None:
    curves = [Curve(name, tuple(Point(x, y, y - 0.1, y + 0.1) for x in (0.1, 0.5))) for name, y in
              (("adatp <&>", 0.8), ("random", 0.8))]  # fmt: skip
    root = ElementTree.fromstring(chart("t", "x", "y", curves, Point(1.0, 0.9, 0.88, 0.92)))
    texts = [one.text for one in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"adatp <&>", "random", "unpruned", "50 %"} <= set(texts)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}polyline"))) == 2
    names = [one for one in root.iter("{http://www.w3.org/2000/svg}text") if one.text in ("adatp <&>", "random")]
    assert abs(float(names[0].get("y", 0)) - float(names[1].get("y", 0))) >= 14, "names don't lie over each other"
    same = chart("one point", "x", "y", [Curve("a", (Point(0.5, 0.5, 0.5, 0.5),))])
    assert "NaN" not in same and ElementTree.fromstring(same) is not None


def test_the_names_of_many_curves_that_end_alike_stay_in_the_picture() -> None:
    for value in (0.1, 0.9):
        curves = [Curve(f"m{n}", (Point(0.3, value, 0.0, 1.0),)) for n in range(13)]
        texts = ElementTree.fromstring(chart("t", "x", "y", curves)).iter("{http://www.w3.org/2000/svg}text")
        names = sorted(float(one.get("y", 0)) for one in texts if (one.text or "").startswith("m"))
        assert len(names) == 13 and names[0] > 0 and names[-1] < HEIGHT - 5
        assert all(below - above >= 14 for above, below in pairwise(names))


def test_the_longest_name_that_a_method_may_have_is_not_cut_off() -> None:
    label = "plain-adatp.with_a-quite-long-label_of.60-signs-0123456789ab"
    root = ElementTree.fromstring(chart("t", "x", "y", [Curve(label, (Point(0.3, 0.5, 0.4, 0.6),))]))
    (name,) = (one for one in root.iter("{http://www.w3.org/2000/svg}text") if one.text == label)
    assert len(label) == 60 and float(root.get("width", 0)) - float(name.get("x", 0)) >= 60 * 7


def test_heat_maps_are_white_where_even() -> None:
    root = ElementTree.fromstring(heat_maps("t", [Heat("h", [[1.0, 4.0, 0.25]], ["layer 1"])], neutral=1.0))
    cells_drawn = [one.get("fill") for one in root.iter("{http://www.w3.org/2000/svg}rect")][1:]
    assert cells_drawn == ["#ffffff", "#b2182b", "#2166ac"]


# Whole evaluations.


def rows(tmp_path: Path) -> list[dict[str, Any]]:
    return pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()


def said(tmp_path: Path) -> dict[tuple[str, str], str]:
    return {(row["method"], row["item"]): row["said"] for row in rows(tmp_path)}


def test_an_evaluation_from_the_file_to_the_tables_and_the_second_does_nothing(
    ray_cluster: None, tmp_path: Path
) -> None:
    given, first = small(tmp_path, bias={"clips": 2}), Annotate()
    found = compare(given, first)
    assert (found["exit_code"], found["cells"], found["rows_written"], len(first.jobs)) == (0, 3, 27, 3)
    out = tmp_path / "out"
    results_before, text = rows(tmp_path), (out / "README.md").read_text()
    assert len(results_before) == 27 and all(row["answered"] for row in results_before)
    assert "6 questions and 3 captions on 3 clips" in text
    by_cell = {row["cell"]: row for row in json.loads((out / "summary.json").read_text())["estimates"]
               if (row["metric"], row["by"]) == ("accuracy", "all")}  # fmt: skip
    for name, row in by_cell.items():
        own = [one["points"] for one in results_before if one["cell"] == name and one["kind"] != "caption"]
        assert row["value"] == pytest.approx(sum(own) / 6) and row["questions"] == 6 and f"| {row['method']} |" in text
    told = json.loads((out / "summary.json").read_text())["costs"]
    shares = {name: cost["llm_flops_share"] for name, cost in told.items()}
    model = next(iter(by_cell)).partition("--")[0]
    assert shares[f"{model}--none"] == 1 and all(0.4 < shares[f"{model}--{m}--0.6"] <= 0.6 for m in ("random", "adatp"))
    assert all(cost["peak_memory_mb"] > 50 for cost in told.values()), "Ray runs under this process here"
    for name in (f"accuracy-{model}.svg", f"bias-{model}.svg", f"bias-{model}-places.svg", f"kept-{model}.svg"):
        ElementTree.fromstring((out / name).read_text())
        assert f"({name})" in text
    assert "grey" in text and (out / "bias.parquet").exists() and (out / "summary.parquet").exists()
    drawn = (out / f"kept-{model}.svg").read_text()
    assert "adatp at 60 % (9 answers)" in drawn and "random at 60 %" in drawn and "plain top" in drawn
    again = Annotate()
    assert compare(given, again)["rows_written"] == 0 and again.jobs == []
    assert rows(tmp_path) == results_before and (out / "README.md").read_text() == text
    world = {"clips": 3, "frames": 8, "questions": 2}
    for change in ({"seed": 1}, {"max_acts": 1}):  # its clips would be scored by these clips' answers
        with pytest.raises(OutputError, match=r"holds answers to other questions.*'000000-0'.*an output of its own"):
            compare(small(tmp_path, benchmark={"name": "world", "world": {**world, **change}}), again)
    with pytest.raises(OutputError, match="asked in another way"):
        compare(small(tmp_path, asked="together"), again)
    assert again.jobs == [] and len(list(out.glob("manifest*"))) == 1, "what was refused left no questions behind"
    fewer = compare(small(tmp_path, benchmark={"name": "world", "world": {**world, "clips": 2}}), again)
    assert (fewer["answers"], fewer["errors"]) == (18, 0), "of what was asked now"
    (out / "memory.json").write_text("[1")
    with pytest.raises(OutputError, match=r"memory\.json is damaged .*: delete it"):
        compare(given, again)


@pytest.mark.slow
def test_an_evaluation_that_broke_off_goes_on_where_it_was(ray_cluster: None, tmp_path: Path) -> None:
    two = {"methods": ["none", "random"]}
    with pytest.raises(JobError):
        compare(small(tmp_path, **two), Annotate(fail_at=2))
    second = Annotate()
    found = compare(small(tmp_path, **two), second)
    assert len(second.jobs) == 1 and found["exit_code"] == 0 and found["rows_written"] == 9
    more, world = Annotate(), {"clips": 4, "frames": 8, "questions": 2}
    grown = compare(small(tmp_path, methods=["none"], benchmark={"name": "world", "world": world}), more)
    assert grown["rows_written"] == 3 and len(more.jobs) == 1, "more clips add only their own answers"


@pytest.mark.slow
def test_asked_together_or_alone_the_unpruned_model_says_the_same(ray_cluster: None, tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    compare(small(alone, methods=["none"]), Annotate())
    compare(small(together, methods=["none"], asked="together"), Annotate())
    assert said(alone) == said(together) and len(said(alone)) == 9


@pytest.mark.slow
def test_videos_that_are_missing_are_unanswered_and_counted_apart(ray_cluster: None, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    write_mp4(videos / "v_here.mkv", np.zeros((6, 16, 16, 3), np.uint8), fps=4)
    asked = [{"video_name": name, "question": "is it?", "question_id": name, "answer": "yes", "type": 3}
             for name in ("here", "gone")]  # fmt: skip
    (tmp_path / "qa.json").write_text(json.dumps(asked))
    given = {"name": "activitynetqa", "annotations": str(tmp_path / "qa.json"), "videos": str(videos)}
    found = compare(small(tmp_path, benchmark=given, methods=["none"]), Annotate())
    assert (found["exit_code"], found["answers"], found["errors"]) == (3, 1, 1)
    by_item = {row["item"]: row for row in rows(tmp_path)}
    assert "2 questions on 2 clips" in (tmp_path / "out/README.md").read_text()
    assert by_item["here"]["answered"] and not by_item["gone"]["answered"]
    assert by_item["gone"]["error_class"] == "not_found" and "not_found 1" in (tmp_path / "out/README.md").read_text()
    (row,) = [one for one in json.loads((tmp_path / "out" / "summary.json").read_text())["estimates"]
              if one["by"] == "all"]  # fmt: skip
    assert row["questions"] == 1, "this benchmark scores what was answered"
    again = Annotate()
    assert compare(small(tmp_path, benchmark=given, methods=["none"]), again)["exit_code"] == 3
    write_mp4(videos / "v_gone.mp4", np.zeros((6, 16, 16, 3), np.uint8), fps=4)
    found = compare(small(tmp_path, benchmark=given, methods=["none"]), again)
    assert (found["exit_code"], found["answers"], found["rows_written"]) == (0, 2, 1), "it came after all"
    job = {"limits": {"max_error_share": 0.5}, **small(tmp_path).job}
    (videos / "v_gone.mp4").unlink()
    allowed = small(tmp_path / "allowed", benchmark=given, methods=["none"], job=job)
    assert compare(allowed, Annotate())["exit_code"] == 0


def test_bias_is_measured_last_and_on_videos_that_are_there(tmp_path: Path) -> None:
    """What can't be measured keeps no table of what was answered from being written."""
    (tmp_path / "videos").mkdir()
    write_mp4(tmp_path / "videos" / "v_7.mp4", np.zeros((4, 16, 16, 3), np.uint8), fps=4)
    asked = [{"video_name": str(n), "question": "is it?", "question_id": str(n), "answer": "yes", "type": 3}
             for n in range(20)]  # fmt: skip
    (tmp_path / "qa.json").write_text(json.dumps(asked))
    benchmark = {"name": "activitynetqa", "annotations": str(tmp_path / "qa.json"), "videos": str(tmp_path / "videos")}
    given = small(tmp_path, benchmark=benchmark, methods=["none"], bias={"clips": 2})

    def nothing(job: JobSpec) -> dict[str, Any]:
        return {"fingerprint": "0123456789abcdef", "stopped": "", "exit_code": 3, "rows_written": 0}

    evaluate(given, nothing, lambda text: None)
    read = tmp_path / "out" / "README.md"
    assert "| 0 | 20 (not_run 20) |" in read.read_text() and "nan" not in read.read_text()
    assert "20 questions" in read.read_text() and "## Where text looks" in read.read_text()
    assert pq.read_table(tmp_path / "out" / "bias.parquet")["clips"].unique().to_pylist() == [1]
    (tmp_path / "videos" / "v_7.mp4").write_bytes(b"nothing")
    read.unlink()
    with pytest.raises(InputError, match="none of the 1 videos that it is measured on can be read"):
        evaluate(given, nothing, lambda text: None)
    assert "20 questions" in read.read_text() and "## Where text looks" not in read.read_text()


@pytest.mark.slow
def test_a_budget_that_a_method_cannot_meet_is_said_and_the_rest_goes_on(ray_cluster: None, tmp_path: Path) -> None:
    given = small(tmp_path, methods=["none", "random"], ratios=[0.0001])
    found = compare(given, Annotate())
    ((name, why),) = found["cells_not_run"].items()
    assert name.endswith("--random--0.0001") and "floor" in why and found["cells"] == 1
    assert name in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(BudgetError, match="no cell can be run"):
        compare(small(tmp_path, methods=["random"], ratios=[0.0001]), Annotate())


@pytest.mark.parametrize(
    ("raised", "told"), [(KeyboardInterrupt(), ("SIGINT", 130)), (SystemExit(143), ("SIGTERM", 143))]
)
def test_a_signal_outside_a_cell_is_answered_as_within_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], raised: BaseException,
    told: tuple[str, int],
) -> None:  # fmt: skip
    def signalled(*_: object) -> None:
        raise raised

    monkeypatch.setattr("mlb_batch.evaluate.manifest.write_world", signalled)
    (tmp_path / "eval.yaml").write_text(f"methods: [none]\noutput: {tmp_path}/out\n")
    assert ended(lambda: app(["evaluate", str(tmp_path / "eval.yaml")])) == told[1]
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["stopped"], last["exit_code"]) == told and last["output"] == f"{tmp_path}/out"


def test_the_command_says_a_mistake_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "eval.yaml"
    path.write_text("methods: [none]\nmodel: x\noutput: out\n")
    assert ended(lambda: app(["evaluate", str(path)])) == 2
    assert "model: unknown key (did you mean models?)" in " ".join(capsys.readouterr().err.split()).replace("'", "")
