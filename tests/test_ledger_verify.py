"""verify finds and names every damage that is planted, before and after a compaction; a further run repairs it."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from ledger_rows import FINGERPRINT, OTHER, annotation, error, row_id, selection

from mlb_batch.chain.strikes import Trace
from mlb_batch.errors import OutputError
from mlb_batch.ledger import Ledger, RunFolder, compact, publish, read_current, tidy, verify
from mlb_batch.ledger.parts import KINDS, Seqs, parse_name, part_bytes, read_part
from mlb_batch.ledger.seal import BrokenSeal, check_seal, sealed_json
from mlb_batch.progress import latest
from mlb_batch.report import report
from mlb_batch.storage import open_store

ROWS = [annotation(n) for n in range(20)]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Five files of four annotations, one of errors, and a current fingerprint."""
    ledger = Ledger(str(tmp_path), FINGERPRINT, "run-1")
    for start in range(0, 20, 4):
        ledger.commit(ROWS[start : start + 4], [])
    ledger.commit([], [error(90), error(91), error(90, attempt=2)])
    publish(str(tmp_path), FINGERPRINT, "run-1")
    return tmp_path


def parts(output: Path) -> list[Path]:
    return sorted(path for kind in ("annotations", "errors") for path in (output / kind).rglob("*.parquet"))


def test_a_sound_output_has_no_findings(output: Path) -> None:
    assert verify(str(output)) == []


def test_every_flipped_byte_is_found(output: Path) -> None:
    dice = random.Random(8)
    for _ in range(20):
        path = dice.choice(parts(output))
        sound = path.read_bytes()
        at = dice.randrange(len(sound))
        path.write_bytes(sound[:at] + bytes([sound[at] ^ (1 << dice.randrange(8))]) + sound[at + 1 :])
        findings = verify(str(output))
        assert str(path.relative_to(output)) in {one.path for one in findings}, f"{path} byte {at}"
        path.write_bytes(sound)
    assert verify(str(output)) == []


def test_every_bit_of_a_file_is_under_its_seal(output: Path) -> None:
    sound = parts(output)[0].read_bytes()
    check_seal(sound)
    for at in range(len(sound)):
        with pytest.raises(BrokenSeal):
            check_seal(sound[:at] + bytes([sound[at] ^ (1 << at % 8)]) + sound[at + 1 :])
    for length in range(len(sound)):
        with pytest.raises(BrokenSeal):
            check_seal(sound[:length])


def test_every_deleted_file_is_found_and_repaired(output: Path) -> None:
    for path in parts(output):
        if path.parent.parent.name == "errors":
            continue
        path.unlink()
        findings = verify(str(output))
        folder = str(path.parent.relative_to(output))
        assert {one.path for one in findings} & {folder, str(path.relative_to(output))}, path

        ledger = Ledger(str(output), FINGERPRINT, "run-2")
        missing = [row for row in ROWS if row["annotation_id"] not in ledger.done()]
        assert len(missing) == 4
        ledger.commit(missing, [])
        ledger.fill_gaps()
        assert verify(str(output)) == []
    ids = pq.read_table(output / "annotations")["annotation_id"].to_pylist()
    assert sorted(ids) == sorted(row_id(n) for n in range(20))


def test_a_run_whose_clock_was_ahead_hides_no_lost_file(tmp_path: Path) -> None:
    """What it recorded stands for less than what came after it, whatever their names' times say."""
    Ledger(str(tmp_path), FINGERPRINT, "run-9-ahead").commit(ROWS[:4], [])
    Ledger(str(tmp_path), FINGERPRINT, "run-1").commit(ROWS[4:], [])
    parts(tmp_path)[-1].unlink()
    for _ in range(2):
        assert {one.path for one in verify(str(tmp_path))} >= {str(parts(tmp_path)[-1].parent.relative_to(tmp_path))}
        compact(str(tmp_path), "compaction", 256, grace_s=0)  # which must not hide it either


DELETED = {  # of five files of four rows: those that are deleted, and whether a compaction merged them before
    "the last two": ([3, 4], False),
    "one between": ([1], False),
    "all": ([0, 1, 2, 3, 4], False),
    "the merged one": ([0], True),
}


@pytest.mark.parametrize("again", [True, False], ids=["made again", "left the input"])
@pytest.mark.parametrize("deleted", DELETED)
def test_after_a_repair_everything_is_sound(deleted: str, again: bool, tmp_path: Path) -> None:
    """The remedy that `verify` names is enough, also where what was lost is wanted no more. Until it was followed every
    run says what is gone: nobody else may look before it is.
    """
    every = [annotation(n) for n in range(20)]
    for start in range(0, 20, 4):
        Ledger(str(tmp_path), FINGERPRINT, "run-1").commit(every[start : start + 4], [])
    numbers, merged = DELETED[deleted]
    if merged:
        compact(str(tmp_path), "compaction", 256, grace_s=0)
    gone = [parts(tmp_path)[number] for number in numbers]
    for path in gone:
        path.unlink()
    Ledger(str(tmp_path), FINGERPRINT, "night-2").commit([annotation(n) for n in range(100, 104)], [])
    assert {str(path.relative_to(tmp_path)) for path in gone} <= {one.path for one in verify(str(tmp_path))}

    ledger = Ledger(str(tmp_path), FINGERPRINT, "night-3")
    assert str(gone[0]) in ledger.gone
    ledger.commit(every if again else [], [])
    ledger.fill_gaps()
    assert verify(str(tmp_path)) == []
    assert Ledger(str(tmp_path), FINGERPRINT, "night-4").gone == ""
    compact(str(tmp_path), "another compaction", 256, grace_s=0)
    assert verify(str(tmp_path)) == []


def test_a_lost_selection_is_not_said_to_come_back(tmp_path: Path) -> None:
    for n in range(3):
        Ledger(str(tmp_path), FINGERPRINT, f"run-{n}").commit([annotation(n)], [], [selection(n)])
    folder = tmp_path / "selections" / FINGERPRINT
    damaged = folder / "part-000002.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    (folder / "part-000001.parquet").unlink()
    assert all("nothing brings back" in one.remedy and "computes" not in one.remedy for one in verify(str(tmp_path)))
    with pytest.raises(OutputError, match="once the file is deleted, the same run goes on without its rows"):
        Ledger(str(tmp_path), FINGERPRINT, "run-3")
    damaged.unlink()
    ledger = Ledger(str(tmp_path), FINGERPRINT, "run-3")
    assert "nothing brings back which tokens were kept" in ledger.gone and len(ledger.done()) == 3
    ledger.fill_gaps()
    assert verify(str(tmp_path)) == [] and Ledger(str(tmp_path), FINGERPRINT, "run-4").gone == ""


def test_a_fingerprint_that_was_deleted_on_purpose_is_told_once_and_can_be_forgotten(tmp_path: Path) -> None:
    for n in range(3):
        Ledger(str(tmp_path), OTHER, f"old-{n}").commit([annotation(n, OTHER)], [error(9, fingerprint=OTHER)])
    compact(str(tmp_path), "old-compaction", 256, grace_s=0)
    for n in range(3):
        Ledger(str(tmp_path), FINGERPRINT, f"new-{n}").commit([annotation(n)], [])
    for kind in ("annotations", "errors"):
        shutil.rmtree(tmp_path / kind / OTHER)
    (found,) = verify(str(tmp_path))
    assert (found.path, found.problem) == (f"annotations/{OTHER}", "all files are gone")
    assert "ledger.json names this fingerprint" in found.remedy

    for record in (tmp_path / "runs").glob("*/ledger.json"):
        if OTHER in record.read_text():
            shutil.rmtree(record.parent)
    assert verify(str(tmp_path)) == []
    Ledger(str(tmp_path), FINGERPRINT, "new-3").commit([annotation(3)], [])
    assert verify(str(tmp_path)) == []


def test_a_number_is_never_given_twice(tmp_path: Path) -> None:
    """Else of two runs that write at once one would not see the rows of the other."""
    for n in range(3):
        Ledger(str(tmp_path), FINGERPRINT, f"run-{n}").commit([annotation(n)], [])
    parts(tmp_path)[2].unlink()
    parts(tmp_path)[0].unlink()
    Ledger(str(tmp_path), FINGERPRINT, "run-3").commit([annotation(3)], [])
    assert [path.name for path in parts(tmp_path)] == ["part-000001.parquet", "part-000003.parquet"]


def test_a_bit_that_turned_never_makes_rows_vanish(output: Path) -> None:
    """Pages' headers are under no checksum of Parquet's, and the damage of some is read as no rows at all."""
    path = parts(output)[1]
    sound = path.read_bytes()
    rows = pq.read_metadata(path).row_group(0)
    ids = next(one for at in range(rows.num_columns) if (one := rows.column(at)).path_in_schema == "annotation_id")
    for bit in range(8 * ids.dictionary_page_offset, 8 * (ids.dictionary_page_offset + 64)):
        at = bit // 8
        path.write_bytes(sound[:at] + bytes([sound[at] ^ (1 << bit % 8)]) + sound[at + 1 :])
        with pytest.raises(OutputError):
            read_part(open_store(str(output)), "annotations", FINGERPRINT, Seqs.one(1), ["annotation_id"])


def test_a_file_in_anothers_place_stops_a_run(output: Path) -> None:
    one, other = parts(output)[1:3]
    one.write_bytes(other.read_bytes())
    with pytest.raises(OutputError, match=f"{one.name}: it belongs to another place"):
        Ledger(str(output), FINGERPRINT, "run-2")


def test_deleted_errors_are_found(output: Path) -> None:
    shutil.rmtree(output / "errors")
    folder = f"errors/{FINGERPRINT}"
    assert [one.path for one in verify(str(output))] == [f"{folder}/part-000000.parquet", folder]


def test_gaps_are_closed_once_the_rows_are_there_again(output: Path) -> None:
    for path in parts(output)[1:4]:
        path.unlink()
    ledger = Ledger(str(output), FINGERPRINT, "run-2")
    ledger.commit(ROWS, [])  # one file with what three held
    assert len(verify(str(output))) == 3
    ledger.fill_gaps()
    assert verify(str(output)) == []


def test_a_damaged_file_stops_a_run_with_its_name(output: Path) -> None:
    path = parts(output)[2]
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(OutputError, match=f"{path.name} is damaged"):
        Ledger(str(output), FINGERPRINT, "run-2")


def test_what_runs_keep_beside_their_rows_is_checked_too(output: Path) -> None:
    """What captioners died on, and the canary's own outputs."""
    Trace(str(output), FINGERPRINT, "run-1").write({"a clip": 1}, at_work=False)
    rival = Ledger(f"{output}/canary/none", OTHER, "run-1")
    rival.commit(ROWS[:4], [])
    assert verify(str(output)) == []
    for path in (output / f"strikes/{FINGERPRINT}.json", next((output / "canary").rglob("*.parquet"))):
        sound = path.read_bytes()
        path.write_bytes(sound.replace(b"1", b"3", 1))
        assert str(path.relative_to(output)) in {one.path for one in verify(str(output))}
        path.write_bytes(sound)
    assert Trace(str(output), FINGERPRINT, "run-2").read() == (False, {"a clip": 1})


def test_doubled_rows_strays_and_misplaced_files_are_found(output: Path) -> None:
    first = min((output / "annotations").rglob("*.parquet"))
    copy = first.with_name("part-000005.parquet")
    shutil.copy(first, copy)
    (first.parent / "notes.txt").write_text("hello")
    (output / "annotations" / "old").mkdir()
    (output / "current.json").write_text('{"fingerprint": "ffffffffffffffff"}')
    found = {one.path: one.problem for one in verify(str(output))}
    assert "stand twice" in found.pop(str(copy.relative_to(output)))
    assert found.keys() == {f"annotations/{FINGERPRINT}/notes.txt", "annotations/old", "current.json"}


def test_current_names_the_newest_complete_fingerprint(tmp_path: Path) -> None:
    assert read_current(str(tmp_path)) is None
    publish(str(tmp_path), FINGERPRINT, "run-1")
    publish(str(tmp_path), FINGERPRINT, "run-2")  # nothing new: nothing is written
    current = read_current(str(tmp_path))
    assert current is not None and (current["fingerprint"], current["run_id"]) == (FINGERPRINT, "run-1")


@pytest.mark.parametrize("damage", [lambda data: data.replace(b"T", b"U", 1), lambda data: data[: len(data) // 2]])
def test_a_damaged_current_is_refused_by_who_reads_it_and_written_anew_by_the_next_run(
    output: Path, damage: Callable[[bytes], bytes]
) -> None:
    path = output / "current.json"
    path.write_bytes(damage(path.read_bytes()))
    (finding,) = verify(str(output))
    assert finding.path == "current.json" and "run the newest job again" in finding.remedy
    before = sorted(output.rglob("*"))
    for reader in (read_current, report, lambda uri: compact(uri, "compaction", 256, grace_s=0)):
        with pytest.raises(OutputError, match=r"current\.json: .*; run the newest job again"):
            reader(str(output))
    assert sorted(output.rglob("*")) == before, "a compaction began"
    (output / "compacting").mkdir()  # as one left it that was killed; the run sweeps first
    (output / "compacting" / "left.parquet").touch()
    tidy(str(output))
    publish(str(output), FINGERPRINT, "run-2")
    assert verify(str(output)) == []
    tidy(str(output))
    assert not list((output / "compacting").iterdir())


@pytest.mark.parametrize("there", [[], ["notes.txt"], ["annotations/all.json", "runs/1/loss.csv", "plans/house.json"]])
def test_where_no_run_has_left_anything_there_is_nothing_to_check(tmp_path: Path, there: list[str]) -> None:
    for name in there:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("something else")
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(OutputError, match="no run is recorded here"):
            verify(str(place))


def test_what_other_programs_leave_beside_the_rows_is_named_or_passed_by(output: Path) -> None:
    folder = RunFolder(str(output), "run-1")
    folder.begin("output: x\n", {}, {})
    folder.write_json("summary", {"fingerprint": FINGERPRINT, "expected": 22})
    folder.write_json("progress", {"state": "ended"})
    for stray in ("runs/run-1/.ipynb_checkpoints", "plans/.ipynb_checkpoints"):
        (output / stray).mkdir(parents=True)
    (output / "canary").mkdir()
    for name in ("runs/notes.txt", "runs/.DS_Store", "runs/zz.txt", "canary/.DS_Store"):
        (output / name).write_text("a note")
    found = {one.path: one.problem for one in verify(str(output))}
    assert set(found.values()) == {"not written by this project"}
    assert found.keys() == {"runs/run-1/.ipynb_checkpoints", "plans/.ipynb_checkpoints", "canary/.DS_Store"}
    assert report(str(output))["reconciliation"]["lost"] == 0 and latest(str(output))["state"] == "ended"
    assert compact(str(output), "compaction", 256, grace_s=0).merged == 1


def test_a_folder_in_the_place_of_a_file_is_named(output: Path) -> None:
    (output / "runs" / "run-1" / "summary.json").mkdir()
    with pytest.raises(OutputError, match=r"summary\.json is a folder"):
        report(str(output))
    places = ("runs/run-1/summary.json", f"annotations/{FINGERPRINT}/part-000005.parquet", "current.json")
    (output / "current.json").unlink()
    for name in places[1:]:
        (output / name).mkdir()
    assert [one.path for one in verify(str(output)) if one.problem.startswith("it is a folder")] == list(places)


def test_a_file_of_a_number_far_off_is_named_and_counts_for_one(output: Path) -> None:
    """Whoever puts it there chooses its number: what lies between is not counted one by one."""
    folder, far = f"annotations/{FINGERPRINT}", "part-999999.parquet"
    shutil.copy(parts(output)[0], output / folder / far)
    compact(str(output), "compaction", 256, grace_s=0)
    assert {one.path for one in verify(str(output))} == {f"{folder}/part-000005-999998.parquet", f"{folder}/{far}"}
    (output / folder / far).unlink()
    Ledger(str(output), FINGERPRINT, "run-2").fill_gaps()
    assert verify(str(output)) == [] and len(parts(output)) == 3


def test_a_run_folder_keeps_what_is_written(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path), "run-1")
    assert folder.read_json("summary") is None
    folder.write_spec("output: x\n")
    folder.write_json("progress", {"done": 1})
    folder.write_json("progress", {"done": 2})
    assert folder.read_json("progress") == {"done": 2}
    text = (tmp_path / "runs" / "run-1" / "spec.yaml").read_text()
    assert text.startswith("output: x\n") and yaml.safe_load(text) == {"output": "x"}


# --- fifty damages


def document(output: Path, dice: random.Random) -> Path:
    """A file that a run leaves beside its rows."""
    beside = [*(output / "runs").rglob("*.*"), *(output / "plans").iterdir(), output / "current.json"]
    return dice.choice(sorted(beside))


def some_part(output: Path, dice: random.Random, kind: str | None = None) -> Path:
    return dice.choice(sorted((output / (kind or dice.choice(KINDS))).rglob("*.parquet")))


def flip(path: Path, dice: random.Random) -> set[str]:
    data = path.read_bytes()
    at = dice.randrange(len(data))
    path.write_bytes(data[:at] + bytes([data[at] ^ (1 << dice.randrange(8))]) + data[at + 1 :])
    return {"checksum"}


def truncate(path: Path, dice: random.Random) -> set[str]:
    data = path.read_bytes()
    path.write_bytes(data[: dice.randrange(len(data))])
    return {"checksum"}


def lose(path: Path, dice: random.Random) -> set[str]:
    path.unlink()
    return {"gone"}


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table], sealed: bool) -> None:
    """With other rows: by any Parquet program, or sealed as if this project had written it."""
    table = change(pq.read_table(path))
    if not sealed:
        pq.write_table(table, path)
        return
    seqs, fingerprint = parse_name(path.name), path.parent.name
    assert seqs is not None
    schema = table.schema.remove_metadata()
    tables = [table.replace_schema_metadata()]
    path.write_bytes(part_bytes(tables, schema, seqs, fingerprint, "run-1", "some-token"))


def double_row(path: Path, dice: random.Random) -> set[str]:
    sealed = dice.random() < 0.7
    rewrite(path, lambda table: pa.concat_tables([table, table.slice(dice.randrange(table.num_rows), 1)]), sealed)
    return {"stand twice" if sealed else "checksum"}


def lose_row(path: Path, dice: random.Random) -> set[str]:
    sealed = dice.random() < 0.7
    rewrite(path, lambda table: table.slice(1), sealed)
    return {"can be read" if sealed else "checksum"}


def copy_beside(path: Path, dice: random.Random) -> set[str]:
    """The same file under another free number: all of its rows stand twice."""
    copy = path.with_name("part-000777.parquet")
    shutil.copy(path, copy)
    return {"stand twice", "another place"}


def exchange(path: Path, dice: random.Random) -> set[str]:
    """Another fingerprint's file takes its place."""
    other = next(one for one in sorted(path.parents[1].rglob("*.parquet")) if one.parent != path.parent)
    shutil.copy(other, path)
    return {"another place"}


# What is done to which files, and how often: fifty in all.
DAMAGES: list[tuple[Callable[[Path, random.Random], set[str]], str, int]] = [
    (flip, "part", 10), (flip, "document", 8), (truncate, "part", 5), (truncate, "document", 4),
    (lose, "part", 7), (lose, "document", 3), (double_row, "part", 4), (lose_row, "part", 5), (copy_beside, "part", 2),
    (exchange, "annotations", 2),
]  # fmt: skip


@pytest.fixture(scope="module", params=["as committed", "after a compaction", "after a compaction and a run"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two fingerprints with rows of every kind, and all that two runs leave."""
    output = tmp_path_factory.mktemp("whole")
    commits(output, 0)
    if request.param != "as committed":
        assert compact(str(output), "compaction", 256, grace_s=0).merged == 6
    if request.param.endswith("run"):
        commits(output, 1)
    assert verify(str(output)) == []
    return output


def commits(output: Path, round_: int) -> None:
    for fingerprint in (OTHER, FINGERPRINT):
        run_id = f"run-{round_}-{fingerprint}"
        ledger = Ledger(str(output), fingerprint, run_id)
        for n in range(100 * round_, 100 * round_ + 12, 4):
            rows = [annotation(n + i, fingerprint) for i in range(4)]
            failed = [error(n + 50, fingerprint=fingerprint), error(n + 51, fingerprint=fingerprint)]
            ledger.commit(rows, failed, [selection(n + i, fingerprint) for i in range(4)])
        folder = RunFolder(str(output), run_id)
        folder.write_spec("output: x\n")
        for name in ("plan", "environment", "summary"):
            folder.write_json(name, {"key": "0123", "clips": 12, "complete": True, "rows_written": 18})
        folder.write_json("progress", {"state": "ended", "annotated": 12})
        publish(str(output), fingerprint, run_id)
    (output / "plans").mkdir(exist_ok=True)
    (output / "plans" / "0123.json").write_bytes(sealed_json({"solved": {"keep": 12}}))


def test_fifty_of_fifty_damages_are_found_and_named(whole: Path, tmp_path: Path) -> None:
    dice = random.Random(21)
    plan = [(damage, where) for damage, where, times in DAMAGES for _ in range(times)]
    assert len(plan) == 50
    for n, (damage, where) in enumerate(plan):
        output = tmp_path / str(n)
        shutil.copytree(whole, output)
        path = document(output, dice) if where == "document" else some_part(output, dice, *[where] * (where in KINDS))
        if damage is lose and path.parent.name == "compaction":  # its record alone: nothing else tells of it
            path = output / "current.json"
        said = damage(path, dice)
        name = str((path.with_name("part-000777.parquet") if damage is copy_beside else path).relative_to(output))
        findings = verify(str(output))
        # A row less in a file with a seal of its own can't be told from here: the folder is named, and the count.
        where_found = str(Path(name).parent) if said == {"can be read"} else name
        problems = [finding.problem for finding in findings if finding.path == where_found]
        assert problems, f"{damage.__name__} of {name}: {[str(one) for one in findings]}"
        assert all(any(word in problem for problem in problems) for word in said), (damage.__name__, name, problems)
        assert all(finding.remedy for finding in findings)
        shutil.rmtree(output)
