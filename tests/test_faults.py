"""The table of faults names tests that exist, and has a line for every fault."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
TABLE = (TESTS / "FAULTS.md").read_text(encoding="utf-8")
COUNTS = {"E": 20, "S": 11, "V": 17, "P": 11, "X": 16, "O": 4}


def test_every_fault_has_a_line_and_every_test_that_it_names_exists() -> None:
    lines = [line for line in TABLE.splitlines() if re.match(r"\| [A-Z]\d+ \|", line)]
    assert [line.split()[1] for line in lines] == [
        f"{kind}{n}" for kind, most in COUNTS.items() for n in range(1, most + 1)
    ]
    assert all(line.replace(r"\|", "").count("|") == 7 for line in lines), "a line with another number of cells"
    named = re.findall(r"`(\w+\.py)(?:::(\w+))?`", TABLE)
    missing = [f"{file}::{name}" for file, name in named if f"def {name}(" not in (TESTS / file).read_text() and name]
    assert len(named) > 60 and not missing, missing


def test_what_only_a_slow_test_proves_is_said_to_be_so() -> None:
    for file, name, label in re.findall(r"`(\w+\.py)::(\w+)`( \(slow\))?", TABLE):
        text = (TESTS / file).read_text()
        decorators = text.split(f"def {name}(")[0].rpartition("\n\n\n")[2]
        slow = "@pytest.mark.slow\n" in decorators or re.search(r"^pytestmark = .*pytest\.mark\.slow", text, re.M)
        assert bool(label) == bool(slow), (file, name)
