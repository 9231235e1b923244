"""Rows that kill their actor, and models that kill every process that loads them: the real step in real actors."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import deadly_clip
import pyarrow as pa
import pytest
import ray
from commands import kill_all, start
from deadly_clip import DEADLY, SAME, Killer, read
from ray.data import ActorPoolStrategy, DataContext

from mlb_batch.chain.arrivals import arriving
from mlb_batch.chain.cluster import data_context
from mlb_batch.chain.pools import MOST_A_LOOK
from mlb_batch.chain.strikes import IN_A_ROW, STRIKES, Record, Strikes, Trace
from mlb_batch.errors import JobError
from mlb_batch.ledger.seal import unsealed_json
from mlb_batch.stages import Caption, Measure
from mlb_batch.work import Outcome, read_table

pytestmark = pytest.mark.usefixtures("ray_cluster")
CLIPS = 12


def outcomes(load: Any, batch: int = 4, hang_s: float | None = None) -> Iterator[Outcome]:
    yield from ran(Caption, (load, SAME, Strikes(hang_s=hang_s), 1), batch)


def ran(step: type, given: tuple[Any, ...], batch: int) -> Iterator[Any]:
    # Files of the tests are not importable in the workers: they travel by value.
    for module in (sys.modules[__name__], deadly_clip):
        ray.cloudpickle.register_pickle_by_value(module)
    with DataContext.current(data_context(MOST_A_LOOK)):
        reads = ray.data.from_arrow([read_table(read(number)) for number in range(CLIPS)])
        done = reads.map_batches(
            step, fn_constructor_args=given, batch_format="pyarrow", batch_size=batch, num_cpus=1,
            compute=ActorPoolStrategy(size=1),
        )  # fmt: skip
        with arriving(done) as arrivals:
            while (arrived := arrivals.take(1.0)) is not None:
                yield from arrived


def test_a_clip_that_kills_its_actor_is_found_and_its_neighbours_are_not_blamed(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    errors = [row for outcome in outcomes(lambda: Killer(str(notes))) for row in outcome.errors]
    assert len(errors) == len({row["annotation_id"] for row in errors}) == CLIPS
    by_class = {row["video_id"]: row["error_class"] for row in errors}
    assert by_class.pop(f"v{DEADLY}") == "model_error"
    assert set(by_class.values()) == {"bad_prompt"}
    deadly = [line for line in notes.read_text().splitlines() if str(DEADLY) in line.strip("[]").split(", ")]
    assert len(deadly) == STRIKES and deadly[1:] == [f"[{DEADLY}]"] * (STRIKES - 1), "it was to run alone after a death"


@pytest.mark.slow
def test_a_model_that_kills_every_process_that_loads_it_ends_the_job() -> None:
    def load() -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(JobError, match="while they loaded the model") as ended:
        list(outcomes(load))
    assert "\n" not in str(ended.value)


@pytest.mark.slow
def test_a_clip_on_which_the_captioner_hangs_is_found_too(tmp_path: Path) -> None:
    hanging = lambda: Killer(str(tmp_path / "notes"), hangs=True)  # noqa: E731  (travels by value)
    errors = [row for outcome in outcomes(hanging, hang_s=2.0) for row in outcome.errors]
    assert len(errors) == len({row["annotation_id"] for row in errors}) == CLIPS
    assert [row["video_id"] for row in errors if row["error_class"] == "model_error"] == [f"v{DEADLY}"]


@pytest.mark.parametrize("hangs", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_clip_that_kills_who_measures_it_is_left_to_the_run_proper(hangs: bool, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    load = lambda: Killer(str(notes), hangs=hangs)  # noqa: E731  (travels by value)
    found = sorted(one.found[0] for one in ran(Measure, (load, Strikes(hang_s=2.0)), 1))
    assert found == [number for number in range(CLIPS) if number != DEADLY]
    assert notes.read_text().splitlines().count(f"[{DEADLY}]") == STRIKES


@pytest.mark.slow
def test_a_machine_on_which_every_process_dies_ends_the_job(tmp_path: Path) -> None:
    """Or it would make an error of clip after clip, for three loads of the model each."""
    notes = tmp_path / "notes"
    with pytest.raises(JobError, match=f"{IN_A_ROW} captioning processes in a row died or hung") as ended:
        list(outcomes(lambda: Killer(str(notes), of_all=True)))
    assert "\n" not in str(ended.value)
    touched = len(notes.read_text().splitlines())
    assert IN_A_ROW <= touched <= IN_A_ROW + 4, "a death is known when its clips come again, and others may come first"


def test_deaths_are_counted_by_machine_and_an_answer_forgives_them() -> None:
    record = Record({}, None, careful=False)

    def dies(key: str, machine: str, process: str) -> int:
        record.deaths([key])
        return record.begin([key], (machine, process))

    assert [dies(f"k{n}", "bad", f"p{n}") for n in range(3)] == [0, 0, 0], "nobody knows of them yet"
    assert [dies(f"k{n}", "bad", f"q{n}") for n in range(3)] == [1, 2, 3]
    assert dies("other", "good", "r") == 0
    assert dies("k0", "good", "s") == 0, "it died on the bad one"
    assert record.begin(["new"], ("bad", "t")) == 4
    record.end(["new"])
    assert record.begin(["newer"], ("bad", "t")) == 0
    for key in ("k1", "k2"):
        record.deaths([key])
    assert record.begin(["newest"], ("bad", "t")) == 2, "a process that held several keys is one"


class Unplannable:
    """A dataset that breaks in the driver, before anything runs, and not in one of Ray's own errors."""

    def iter_internal_ref_bundles(self) -> Iterator[Any]:
        raise AttributeError("it has no such name")


def test_a_chain_that_breaks_in_any_way_ends_the_job() -> None:
    """An end before all rows must never look like the end of all rows."""
    broken: Any = Unplannable()
    with arriving(broken) as arrivals, pytest.raises(JobError, match="it has no such name"):
        while arrivals.take(1.0) is not None:
            pass


def refuses(table: pa.Table) -> pa.Table:
    raise ValueError("no room on /scratch")


class Divides:
    def __call__(self, table: pa.Table) -> pa.Table:
        raise ZeroDivisionError("of an actor")


class Looks:
    def __call__(self, table: pa.Table) -> pa.Table:
        raise KeyError("no such column")


@pytest.mark.parametrize(
    "step, said",
    [
        (refuses, "the chain broke: ValueError: no room on /scratch; run the same"),
        (Divides, "the chain broke: ZeroDivisionError: of an actor; run the same"),
        (Looks, "the chain broke: KeyError: 'no such column'; run the same"),
    ],
)
def test_what_broke_the_chain_is_said_in_its_own_words(step: Any, said: str) -> None:
    """Not in those that Ray writes behind them."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with DataContext.current(data_context(MOST_A_LOOK)):
        compute = ActorPoolStrategy(size=1) if isinstance(step, type) else None
        broken = ray.data.from_arrow(pa.table({"a": [1]})).map_batches(
            step, batch_format="pyarrow", num_cpus=0.5, compute=compute
        )
        with arriving(broken) as arrivals, pytest.raises(JobError) as caught:
            while arrivals.take(1.0) is not None:
                pass
    assert str(caught.value).startswith(said)
    assert len(str(caught.value).splitlines()) == 1


def run_of(place: str, *batches: Sequence[str], deadly: str, forget: bool = False) -> dict[str, int]:
    """What a driver's record does with these batches; it dies where the deadly key is touched for the first time."""
    trace = Trace(place, "f" * 16, "a-run")
    died, begun = trace.read()
    record = Record({} if forget else begun, trace, died)
    trace.write({} if forget else begun)
    for keys in batches:
        before = record.deaths(keys)
        alone = [[key] for key, count in zip(keys, before, strict=True) if 0 < count < STRIKES]
        for some in [[key for key, count in zip(keys, before, strict=True) if not count], *alone]:
            record.begin(some, ("here", "a process"))
            if deadly in some:
                return trace.read()[1]
            record.end(some)
    trace.write(record.known_deaths(), at_work=False)
    return trace.read()[1]


def test_what_is_written_down_before_it_is_touched(tmp_path: Path) -> None:
    place, batches = str(tmp_path), (["a", "b"], ["c", "d"], ["e"])
    assert run_of(place, *batches, deadly="d") == {}, "nothing was known to be dangerous"
    assert run_of(place, *batches, deadly="d") == {"c": 1, "d": 1}, "after a death, everything is"
    assert run_of(place, *batches, deadly="d") == {"d": 2}, "alone, and c has ended"
    assert run_of(place, *batches, deadly="d") == {"d": 3}
    assert run_of(place, *batches, deadly="d") == {"d": 3}, "it was touched again"
    assert Trace(place, "f" * 16, "x").read() == (False, {"d": 3}), "the run before has ended well"
    assert run_of(place, *batches, deadly="d", forget=True) == {}
    (tmp_path / "strikes" / f"{'f' * 16}.json").write_text("{")
    assert Trace(place, "f" * 16, "x").read() == (True, {})


@pytest.mark.whole_run
@pytest.mark.slow
def test_a_clip_that_takes_the_driver_along_is_found_by_the_runs_after(tmp_path: Path) -> None:
    """Every run dies of it until one knows better: a batch, the batch's clips one by one, and an error row."""
    notes, command = tmp_path / "notes", str(Path(__file__).with_name("deadly_clip.py"))
    for died in itertools.count():
        assert died <= 1 + STRIKES, notes.read_text()
        process = start(sys.executable, command, str(tmp_path / "out"), str(notes))
        try:
            out, err = process.communicate(timeout=120)
        finally:
            kill_all(process)
        if process.returncode != -signal.SIGKILL:
            break
    assert process.returncode == 0, err[-2000:]
    became = json.loads(out.splitlines()[-1])
    assert became.pop("v2") == ["model_error", False] and set(map(tuple, became.values())) == {("bad_prompt", False)}
    touched = [line.strip() for line in notes.read_text().splitlines() if "2" in line]
    assert touched[:2] == ["[0, 1, 2, 3]"] * 2, "the first run that dies knows nothing, the second one takes notes"
    assert touched[2:] == ["[2]"] * (STRIKES - 1)
    left = unsealed_json((tmp_path / "out" / "strikes" / f"{'f' * 16}.json").read_bytes())
    assert left == {"run": "", "begun": {f"caption {2:032x}": STRIKES}}
