"""A job file: its defaults, and every mistake as one line that names the key and the remedy."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import ValidationError

from mlb_batch import reference
from mlb_batch.errors import SpecError
from mlb_batch.evaluate.spec import EvalSpec
from mlb_batch.spec import JobSpec
from mlb_batch.spec_parts import OutputSpec
from mlb_batch.spec_text import fill_template, template_names

SCHEMA = Path(__file__).parents[1] / "deploy" / "job.schema.json"
JOBS_README = Path(__file__).parents[1] / "jobs" / "README.md"

LEAST = """
input: {videos: clips/*.mp4}
prompts: [{id: caption, kind: caption, text: Describe the video.}]
output: out
"""

WHOLE = """
name: nightly-captions
input:
  manifest: s3://bucket/videos.parquet
  uri_column: uri
  id_column: video_id
  start_column: start_s
  end_column: end_s
  columns: [title, lang]
  changed: version
  allow: ["s3://bucket/"]
clips: {every_s: 60, overlap_s: 0}
prompts:
  - {id: caption, kind: caption, text: "Title: {title}. Describe the video in detail."}
  - {id: q, kind: qa, column: questions}
  - {id: mc, kind: choice, text: "Day or night?", choices: [day, night]}
model: {id: embedded:tiny, revision: main, dtype: auto, device: auto}
frames: {count: 32, strategy: uniform}
prune: {method: adatp, options: {}, select: per_prompt, feature_model: auto, compact_cache: false, selections: 0.01}
budget: {ratio: 0.273, scope: llm, convention: exact, allocation: equal}
canary: {share: 0.0, against: [none, random]}
generate: {max_new_tokens: 128, expected_new_tokens: 60, temperature: 0, seed: 0}
retry: {attempts: 3, errors: false}
limits: {video_s: 60, deadline_h: null, max_error_share: null, price_per_gpu_hour: null}
output: {uri: s3://bucket/annotations/nightly, target_file_mb: 256}
cluster:
  read: {num_cpus: 1, concurrency: [1, 8]}
  caption: {num_gpus: 1, concurrency: auto, batch_videos: auto}
"""


def load(tmp_path: Path, text: str, *sets: str) -> JobSpec:
    path = tmp_path / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return JobSpec.load(path, sets)


def mistake(tmp_path: Path, text: str, *sets: str) -> str:
    with pytest.raises(SpecError) as caught:
        load(tmp_path, text, *sets)
    return str(caught.value)


def test_a_job_needs_three_things_and_the_rest_has_defaults(tmp_path: Path) -> None:
    spec = load(tmp_path, LEAST)
    assert (spec.model.id, spec.prune.method, spec.budget.kind, spec.budget.amount) == (
        "embedded:tiny",
        "adatp",
        "ratio",
        0.273,
    )
    assert (spec.frames.count, spec.retry.attempts, spec.output.uri) == (32, 3, "out")
    assert spec.cluster.read.concurrency == (1, 8) and spec.cluster.caption.concurrency == "auto"
    assert spec.prune.compact_cache is False and spec.prune.selections == 0.0
    assert spec.generate.expected_new_tokens is None


def test_the_whole_job_of_the_interface_loads(tmp_path: Path) -> None:
    spec = load(tmp_path, WHOLE)
    assert spec.clips is not None and spec.clips.every_s == 60
    assert spec.prompts[2].choices == ("day", "night")
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert pickle.loads(pickle.dumps(spec)).as_written() == spec.as_written()


@pytest.mark.parametrize("word", ["1e9", "08", "1:30", "0x1f", "yes", "null", "~", "1_000", "2026-11-29", "1."])
def test_a_job_as_it_is_kept_can_be_run_again(word: str, tmp_path: Path) -> None:
    """Two versions of YAML are read: what either takes for more than a word is quoted."""
    spec = load(tmp_path, LEAST, f"name={json.dumps(word)}")
    (tmp_path / "kept.yaml").write_text(spec.as_written(), encoding="utf-8")
    assert JobSpec.load(tmp_path / "kept.yaml") == spec and spec.name == word


def test_a_job_that_no_file_was_read_for_is_kept_too() -> None:
    parts: dict[str, Any] = {**yaml.safe_load(LEAST), "notify": {"webhook": "https://example.com/secret"}}
    spec = JobSpec(**parts)
    kept = yaml.safe_load(spec.as_written())
    assert kept.pop("notify") == {"webhook": "https://example.com/..."}
    assert JobSpec.from_dict({**kept, "notify": parts["notify"]}).model_dump() == spec.model_dump()


def test_a_file_of_the_other_kind_is_told_by_its_keys(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.yaml"
    path.write_text("methods: [none]\noutput: out\n", encoding="utf-8")
    with pytest.raises(SpecError, match="this is an evaluation file; use mlb-batch evaluate"):
        JobSpec.load(path)
    path.write_text(LEAST, encoding="utf-8")
    with pytest.raises(SpecError, match="this is a job file; use mlb-batch run"):
        EvalSpec.load(path)
    path.write_text("", encoding="utf-8")
    with pytest.raises(SpecError, match="an evaluation file is a mapping of keys like benchmark, methods"):
        EvalSpec.load(path)


def test_what_is_no_mapping_of_plain_values_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"'job.yaml' is no mapping of a job's keys; JobSpec.load reads a file"):
        JobSpec.from_dict("job.yaml")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"Path.* is no plain value"):
        JobSpec.from_dict({**yaml.safe_load(LEAST), "output": tmp_path})
    (tmp_path / "job.yaml").write_text(LEAST, encoding="utf-8")
    assert JobSpec.load(tmp_path / "job.yaml", "budget.ratio=0.6").budget.ratio == 0.6  # one alone, as a list of it


def test_settings_are_applied_over_the_file(tmp_path: Path) -> None:
    spec = load(
        tmp_path,
        LEAST,
        "budget.pflops=1e3",
        "prompts.0.text=What happens?",
        "frames.count=8",
        "output.target_file_mb=64",
        "prune.options={layers: [2, 8]}",
        "limits.deadline_h=null",
    )
    assert (spec.budget.kind, spec.budget.amount) == ("pflops", 1000.0)
    assert spec.prompts[0].text == "What happens?" and spec.frames.count == 8
    assert (spec.output.uri, spec.output.target_file_mb) == ("out", 64)
    assert spec.prune.options == {"layers": [2, 8]}


def test_a_budget_of_the_file_can_be_swapped_by_settings(tmp_path: Path) -> None:
    spec = load(tmp_path, WHOLE, "budget.ratio=null", "budget.gpu_hours=2")
    assert (spec.budget.kind, spec.budget.amount) == ("gpu_hours", 2.0)


def test_no_method_means_no_pruning(tmp_path: Path) -> None:
    assert load(tmp_path, LEAST, "prune.method=none").budget.ratio == 1.0
    said = mistake(tmp_path, LEAST, "prune.method=none", "budget.ratio=0.5")
    assert "budget.ratio: 0.5 can't be met by prune.method none" in said


def test_no_captioner_is_to_use_a_gpu_that_it_does_not_get(tmp_path: Path) -> None:
    said = mistake(tmp_path, LEAST, "model.device=cuda", "cluster.caption.num_gpus=0")
    assert said.startswith("model.device: cuda needs a GPU, and cluster.caption.num_gpus is 0; set")
    load(tmp_path, LEAST, "model.device=auto", "cluster.caption.num_gpus=0")


def test_yaml_without_its_traps(tmp_path: Path) -> None:
    text = LEAST.replace("kind: caption, text", "kind: choice, choices: [yes, no, 2024-01-01], text")
    assert load(tmp_path, text).prompts[0].choices == ("yes", "no", "2024-01-01")
    assert "line 5: not valid YAML: the key 'output' stands twice" in mistake(tmp_path, f"{LEAST}output: b\n")


MISTAKES: list[tuple[str, str]] = [
    ("input.colums=[a]", "input.colums: unknown key (did you mean 'columns'?); known here: manifest, videos,"),
    ("prompt=1", "prompt: unknown key (did you mean 'prompts'?)"),
    ("cluster.caption.gpus=1", "cluster.caption.gpus: unknown key (did you mean 'num_gpus'?)"),
    ("frames.count=many", "frames.count: must be a whole number, got 'many'"),
    ("frames.count=0", "frames.count: must be greater than or equal to 1, got 0"),
    ("frames.strategy=unifrom", "must be one of uniform, fps, keyframes, got 'unifrom' (did you mean 'uniform'?)"),
    ("frames.strategy=fps", "frames: fps goes with strategy fps"),
    ("prompts.0.kind=vqa", "prompts[0].kind: must be one of caption, qa, choice, got 'vqa'"),
    ("prompts.0.id=a b", "prompts[0].id: may hold letters, digits, '_', '-' and '.', got 'a b'"),
    (
        "prompts.0.text='{title} please'",
        "prompts[0].text: {title} is not in input.columns; add it there, or write {{title}}",
    ),
    ("prompts.0.text='{x.__class__}'", "prompts[0].text: {x.__class__} is not a column's name"),
    ("prompts.0.text='{0[1]}'", "prompts[0].text: {0[1]} is not a column's name"),
    ("prompts.0.text='{x!r:>9}'", "prompts[0].text: {x!r:>9} is not a column's name"),
    ("prompts.0.text='a } b'", "prompts[0].text: a lone '}' at character 3"),
    ("prompts.0.column=q", "prompts[0]: give exactly one of text and column"),
    ("prompts=[]", "prompts: give at least one prompt"),
    ("prompts=[{id: a, kind: qa, column: q}]", "prompts[0].column: only a manifest has columns"),
    ("prompts=[{id: a, kind: choice, text: b, choices: [c]}]", "prompts[0]: kind choice needs 2 to 26 choices"),
    ("prompts=[{id: a, kind: qa, text: b}, {id: a, kind: qa, text: c}]", "prompts: the id 'a' is used twice"),
    ("input.manifest=a.parquet", "input: give exactly one of manifest"),
    ("input.id_column=id", "input: id_column: only a manifest has columns"),
    ("input.allow=['https://']", "input.allow[0]: must name a bucket or a host behind https://"),
    ("input.allow=['HTTP:///']", "input.allow[0]: must name a bucket or a host behind HTTP://"),
    ("input.allow=['https://me:secret@videos.example.com/']", "input.allow[0]: must hold no user name or password"),
    ("output=s3:///annotations", "output.uri: must name a bucket or a host behind s3://"),
    ("output=s3:/bucket/annotations", "output.uri: has a scheme without //"),
    ("output=file:relative", "output.uri: has a scheme without //"),
    ("input={manifest: a.xlsx}", "input: manifest must end in .parquet, .jsonl or .csv, got 'a.xlsx'"),
    ("output=null", "output: "),
    ("budget={ratio: 0.5, pflops: 3}", "budget: ratio and pflops are both set; keep one, and set the others to null"),
    ("budget.ratio=0", "budget.ratio: must be greater than 0, got 0"),
    ("budget.ratio=1.5", "budget.ratio: must be less than or equal to 1, got 1.5"),
    ("budget.pflops=-1", "budget.pflops: must be greater than 0, got -1"),
    ("budget.pflops=.nan", "budget.pflops: "),
    ("budget.scope=all", "budget.scope: must be one of llm, total, got 'all'"),
    ("limits.model_s=1.0e+10", "limits.model_s: must be less than or equal to 604800, got 10000000000.0"),
    ("limits.video_s=1.0e+10", "limits.video_s: must be less than or equal to 604800, got 10000000000.0"),
    ("clips={every_s: 5, overlap_s: 5}", "clips: overlap_s must be less than every_s"),
    ("clips={overlap_s: 5}", "clips.every_s: missing, and it has no default"),
    ("retry.errors=1", "retry.errors: must be a boolean, got 1"),
    ("cluster.read.concurrency=0", "cluster.read.concurrency: must be a whole number from 1, or [least, most]"),
    ("cluster.read.concurrency=[4, 2]", "cluster.read.concurrency: must be a whole number from 1, or [least, most]"),
    ("cluster.caption.concurrency=some", "must be a whole number from 1, or [least, most], or auto"),
    ("cluster.caption.batch_videos=0", "cluster.caption.batch_videos: must be a whole number from 1, or auto"),
    ("cluster.caption.num_gpus=2", "cluster.caption.num_gpus: must be 0, or from 0.0001 to 1: a captioner computes on"),
    ("cluster.caption.num_gpus=0.00001", "cluster.caption.num_gpus: must be 0, or from 0.0001 to 1"),
    ("cluster.caption.num_gpus=.nan", "cluster.caption.num_gpus: must be 0, or from 0.0001 to 1"),
    ("cluster.caption.num_gpus=true", "cluster.caption.num_gpus: must be 0, or from 0.0001 to 1"),
    ("cluster.read.num_cpus=0.00001", "cluster.read.num_cpus: must be greater than or equal to 0.0001, got 1e-05"),
    ("model={device: cuda:1}", "model.device: must be one of auto, cpu, cuda, got 'cuda:1' (did you mean 'cuda'?)"),
    ("generate={max_new_tokens: 5, expected_new_tokens: 9}", "generate: expected_new_tokens is above max_new_tokens"),
    ("model.id=3", "model.id: must be a string, got 3"),
    ("budget", "--set budget: write it as key.sub=value"),
    ("name.x=1", "--set name.x=1: name is a plain value"),
    ("prompts.0.text.x=1", "--set prompts.0.text.x=1: prompts.0.text is a plain value"),
    ("prompts.3.text=a", "--set prompts.3.text=a: prompts is a list of 1: use a number from 0"),
    ("prompts.1=a", "--set prompts.1=a: prompts is a list of 1: use a number from 0"),
    ("name=[", "--set name=[, line 1: not valid YAML"),
    ("name={{title}}", "line 1: not valid YAML: a key that is no plain word; quote a text that begins with {"),
    ("name=[[1]: 2]", "not valid YAML: a key that is no plain word"),
    ("frames.count=!!int four", "not valid YAML: invalid literal"),
    ("frames.fps=!!float four", "not valid YAML: could not convert"),
    ("retry.errors=!!bool maybe", "not valid YAML: 'maybe'"),
    ("frames.count=" + "9" * 5000, "not valid YAML: Exceeds the limit"),
    ("name=" + "[" * 3000, "not valid YAML: it is nested too deep"),
    ("name=&a [*a]", "not valid YAML: found unconstructable recursive node"),
    ("canary=&a {share: *a}", "not valid YAML: found unconstructable recursive node"),
    ("output=https://host/out", "output.uri: nothing is written there; use a folder, s3://, gs:// or az://"),
    ("output=memory://out", "output.uri: nothing is written there"),
    ("prune=none", "prune: must be keys with values, of method, options,"),
    ("frames=8", "frames: must be keys with values, of count, strategy,"),
    ("input=/x/*.mp4", "input: must be keys with values, of manifest, videos,"),
    ("prompts=[]", "prompts: "),
]


@pytest.mark.parametrize(("setting", "said"), MISTAKES, ids=[setting for setting, _ in MISTAKES])
def test_a_mistake_is_one_line_that_names_the_key_and_the_remedy(tmp_path: Path, setting: str, said: str) -> None:
    text = mistake(tmp_path, f"name: x\n{LEAST}", setting)
    assert said in text
    assert len(text.splitlines()) == 1


def test_several_mistakes_are_one_line_each(tmp_path: Path) -> None:
    said = mistake(tmp_path, LEAST, "frames.count=x", "retry.atempts=2", "budget={gpu_hours: 1, pflops: 1}")
    assert [line.partition(":")[0] for line in said.splitlines()] == ["frames.count", "budget", "retry.atempts"]


def test_what_is_no_job_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no such file; a job file is wanted"):
        JobSpec.load(tmp_path / "none.yaml")
    assert "line 2: not valid YAML" in mistake(tmp_path, "input: [\n}")
    assert "a job file is a mapping" in mistake(tmp_path, "- a\n- b\n")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="can't be read"):
        JobSpec.load(tmp_path / "binary.yaml")
    assert "not valid YAML" in mistake(tmp_path, "input: !!python/object/apply:os.system ['true']")


def test_the_environment_is_expanded_in_uris_only_and_never_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLACE", "s3://canary-4711")
    text = LEAST.replace("clips/*.mp4", '"${PLACE}/in/"').replace("output: out", 'output: {uri: "${PLACE}/out"}')
    spec = load(tmp_path, text, "prompts.0.text=It costs $${{PLACE}}, ${{PLACE}}", "name=${PLACE}")
    assert (spec.input.videos, spec.output.uri) == ("s3://canary-4711/in/", "s3://canary-4711/out")
    assert spec.name == "${PLACE}"
    assert "canary" not in spec.as_written() and "${PLACE}/out" in spec.as_written()
    assert JobSpec.from_dict(yaml.safe_load(spec.as_written())) == spec
    elsewhere = spec.model_copy(update={"input": spec.input.model_copy(update={"videos": "/canary/in/"})})
    assert elsewhere.as_written() == spec.as_written()
    monkeypatch.delenv("PLACE")
    assert "input.videos: the environment variable PLACE is not set" in mistake(tmp_path, text)


@pytest.mark.parametrize(
    "place", ["${OUT:-/data/out}", "${OUT-x}/y", "s3://${B:-b}/x", "${PLACE}/${", "$PLACE/out", "$PLACE"]
)
def test_what_only_a_shell_expands_is_no_address(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the name of a folder it would be taken, and lie where the process stands: in a pod its rows go with it."""
    monkeypatch.setenv("PLACE", "s3://bucket")
    for key in ("output", "input.videos"):
        said = mistake(tmp_path, LEAST, f"{key}={json.dumps(place)}")
        assert said == f"{key}: ${{NAME}} is understood, and no other way in which a shell names a variable"
    for plain in ("./$PLACE/out", "/data/$PLACE", "$5/out", "cost$"):
        assert load(tmp_path, LEAST, f"output={json.dumps(plain)}").output.uri == plain


def test_templates_know_names_and_escapes_only() -> None:
    assert template_names("{{a}} {b} and {c d}}}") == ["b", "c d"]
    assert fill_template("{{a}} {b}", {"b": "{c} {{d}}"}) == "{a} {c} {{d}}", "a value is no template"


def test_an_output_in_the_folder_that_ray_unpacks_a_job_into_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked = tmp_path / "working_dir_files" / "package"
    unpacked.mkdir(parents=True)
    monkeypatch.chdir(unpacked)
    for lasting in ("~/out", "../../out", str(tmp_path / "out"), "s3://bucket/working_dir_files/out"):
        assert OutputSpec(uri=lasting).uri == lasting
    with pytest.raises(ValidationError, match="give a uri or an absolute path"):
        OutputSpec(uri="out")


def test_the_published_schema_is_the_one_of_the_code() -> None:
    """Mend with: python -m mlb_batch.spec > deploy/job.schema.json"""
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == JobSpec.json_schema()


def test_every_key_is_explained_and_the_reference_is_the_one_of_the_code() -> None:
    """Mend with: python -m mlb_batch.reference > jobs/README.md"""
    assert JOBS_README.read_text(encoding="utf-8") == f"{reference.markdown()}\n"
    assert "|  |\n" not in reference.markdown(), "a key without a word"


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        (LEAST, True),
        (WHOLE, True),
        (f"{LEAST}model: some/model\n", True),
        (f"{LEAST}cluster: {{read: {{concurrency: 3}}}}\n", True),
        (f"{LEAST}budget:\n", True),
        (f"{LEAST}cluster: {{caption: {{num_gpus: 0}}}}\n", True),
        (f"{LEAST}cluster: {{caption: {{num_gpus: 0.25}}}}\n", True),
        (f"{LEAST}cluster: {{caption: {{num_gpus: 2}}}}\n", False),
        (f"{LEAST}modle: a\n", False),
        (f"{LEAST}frames: {{count: x}}\n", False),
        (f"{LEAST}budget: {{ratio: 0.1, pflops: 2}}\n", False),
        (LEAST.replace("output: out", ""), False),
        (LEAST.replace("videos: clips", "manifest: a.csv, videos: clips"), False),
    ],
)
def test_the_published_schema_agrees_with_the_code(tmp_path: Path, text: str, valid: bool) -> None:
    data: Any = yaml.safe_load(text)
    schema_says = not list(jsonschema.Draft202012Validator(JobSpec.json_schema()).iter_errors(data))
    assert schema_says == valid
    if valid:
        load(tmp_path, text)
    else:
        mistake(tmp_path, text)


def test_loading_a_job_needs_neither_torch_nor_ray_nor_transformers() -> None:
    code = "import sys, mlb_batch.spec; print([m for m in ('torch', 'ray', 'transformers', 'av') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
