"""What README shows works as shown: its method is a method, also in a run, its jobs are jobs."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import ray
import yaml
from commands import start
from small_jobs import clips, job_file, table

from mlb_batch import prune
from mlb_batch.cost.flops import price, vanilla
from mlb_batch.cost.schedule import ClipShape
from mlb_batch.spec import JobSpec
from mlb_batch.vlm.captioner import Answer, Ask, Captioner, Clip, Settings
from mlb_batch.vlm.checkpoint import resolve

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_job_of_the_readme_is_a_job() -> None:
    (job,) = blocks("yaml")
    spec = JobSpec.from_dict(yaml.safe_load(job))
    assert spec.prune.method == "adatp" and spec.budget.ratio == 0.273


def loud() -> str:
    (code,) = [block for block in blocks("python") if "METHODS[" in block]
    return code


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_knows_the_method_that_its_script_adds(tmp_path: Path) -> None:
    """Its actors are processes in which nobody has added it."""
    clips(tmp_path / "videos", 1)
    job = job_file(tmp_path, prune={"method": "loud", "options": {"power": 1.0}}, budget={"ratio": 0.5})
    script = tmp_path / "loud.py"
    script.write_text(f"{loud()}\nfrom mlb_batch import JobSpec, run\nrun(JobSpec.load({str(job)!r}))\n")
    process = start(sys.executable, str(script), RAY_ADDRESS=ray.get_runtime_context().gcs_address)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    rows = table(tmp_path / "out")
    assert len(rows) == 2 and all(0 < row["num_kept_tokens"] < row["num_visual_tokens"] for row in rows)


def test_the_method_of_the_readme_prunes_and_its_bill_agrees(monkeypatch: Any) -> None:
    code = loud()
    assert len(code.splitlines()) <= 30
    monkeypatch.setattr(prune, "METHODS", dict(prune.METHODS))
    module = ModuleType("loud")
    monkeypatch.setitem(sys.modules, "loud", module)
    exec(compile(code, "README.md", "exec"), vars(module))
    method = prune.make("loud", {"power": 1.0})
    captioner = Captioner(resolve("embedded:tiny"), Settings(method, keep=250_000, max_new_tokens=2))
    pixels = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)
    ((answer,),) = captioner.annotate([Clip(pixels, (Ask("a", "caption", "Describe the video."),))])
    assert isinstance(answer, Answer) and answer.num_kept_tokens == answer.num_visual_tokens // 4
    side = captioner.shape.side
    prefix, suffix = 3, answer.num_prompt_tokens - 3
    clip = ClipShape(4, side, side, prefix, captioner.shape.trailer, (suffix,))
    planned = price(captioner.shape, clip, method.schedule(captioner.shape, clip, 250_000))
    assert (answer.bill.executed.prefill, answer.bill.executed.vision) == (planned.prefill, planned.vision)
    assert planned.prefill < vanilla(captioner.shape, clip).prefill
