"""Which clip gets how much of the job's budget: all alike, or by how much a clip repeats itself."""

from __future__ import annotations

from dataclasses import dataclass

from mlb_batch.cost.schedule import WHOLE


@dataclass(frozen=True)
class ContentRule:
    """A clip's keep from its redundancy, once `level` is solved: those that repeat themselves give to the others.

    keep = level x (1 - redundancy), from `floor` to WHOLE: it never rises with redundancy and never falls with level.
    """

    level: int  # millionths; may exceed WHOLE
    floor: int  # the keep under which no clip goes

    def keep(self, redundancy: float) -> int:
        """Millionths. The redundancy is rounded first, so that the last bits of a float don't move a clip."""
        assert 0.0 <= redundancy <= 1.0, redundancy
        fresh = WHOLE - round(redundancy * WHOLE)
        return max(self.floor, min(WHOLE, self.level * fresh // WHOLE))
