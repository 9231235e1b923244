"""verify finds and names every flipped byte and every deleted file, and a further run repairs them."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from ledger_rows import FINGERPRINT, annotation, error, row_id

from mlb_batch.errors import OutputError
from mlb_batch.ledger import Ledger, RunFolder, publish, read_current, verify
from mlb_batch.ledger.seal import BrokenSeal, check_seal

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
    for _ in range(50):
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
        assert verify(str(output)) == []
    ids = pq.read_table(output / "annotations")["annotation_id"].to_pylist()
    assert sorted(ids) == sorted(row_id(n) for n in range(20))


def test_deleted_errors_are_found(output: Path) -> None:
    shutil.rmtree(output / "errors")
    folder = f"errors/{FINGERPRINT}"
    assert [one.path for one in verify(str(output))] == [f"{folder}/part-000000.parquet", folder]


def test_gaps_are_closed_once_the_rows_are_there_again(output: Path) -> None:
    for path in parts(output)[1:4]:
        path.unlink()
    ledger = Ledger(str(output), FINGERPRINT, "run-2")
    ledger.commit(ROWS, [])  # one file with what three held
    assert len(verify(str(output))) == 2
    ledger.fill_gaps()
    assert verify(str(output)) == []


def test_a_damaged_file_stops_a_run_with_its_name(output: Path) -> None:
    path = parts(output)[2]
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(OutputError, match=f"{path.name} is damaged"):
        Ledger(str(output), FINGERPRINT, "run-2")


def test_doubled_rows_strays_and_misplaced_files_are_found(output: Path) -> None:
    first, *_, last = sorted((output / "annotations").rglob("*.parquet"))
    copy = first.with_name("part-000005.parquet")
    shutil.copy(first, copy)
    (first.parent / "notes.txt").write_text("hello")
    (output / "annotations" / "old").mkdir()
    (output / "current.json").write_text('{"fingerprint": "ffffffffffffffff"}')
    found = {one.path: one.problem for one in verify(str(output))}
    assert "stand twice" in found.pop(str(copy.relative_to(output)))
    assert found.keys() == {f"annotations/{FINGERPRINT}/notes.txt", "annotations/old", "current.json"}
    assert last != copy


def test_current_names_the_newest_complete_fingerprint(tmp_path: Path) -> None:
    assert read_current(str(tmp_path)) is None
    publish(str(tmp_path), FINGERPRINT, "run-1")
    publish(str(tmp_path), FINGERPRINT, "run-2")  # nothing new: nothing is written
    current = read_current(str(tmp_path))
    assert current is not None and (current["fingerprint"], current["run_id"]) == (FINGERPRINT, "run-1")


def test_a_run_folder_keeps_what_is_written(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path), "run-1")
    assert folder.read_json("summary") is None
    folder.write_spec("output: x\n")
    folder.write_json("progress", {"done": 1})
    folder.write_json("progress", {"done": 2})
    assert folder.read_json("progress") == {"done": 2}
    text = (tmp_path / "runs" / "run-1" / "spec.yaml").read_text()
    assert text.startswith("output: x\n") and yaml.safe_load(text) == {"output": "x"}
