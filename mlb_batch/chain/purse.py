"""One purse for all captioners, where each clip has a keep of its own: together they never spend more than the budget.

A clip asks before it is run. While the floors of all clips still to come are covered, it gets what it asks for;
afterwards it gets its floor. An answer is given once: a clip that runs again, after a death, spends nothing twice.
"""

from __future__ import annotations

from typing import Any

import ray

from mlb_batch.chain.beside import beside_driver, release
from mlb_batch.cost.allocate import ContentRule, Reserve
from mlb_batch.cost.schedule import ClipShape
from mlb_batch.cost.solve import Pricer
from mlb_batch.errors import JobError


class Purse:
    """The actor."""

    def __init__(self, limit: int, floors: int) -> None:
        self._reserve = Reserve(limit, min(limit, floors))
        self._granted: dict[str, bool] = {}

    def grant(self, key: str, wanted: int, floor: int) -> bool:
        if key not in self._granted:
            self._granted[key] = self._reserve.grant(wanted, floor)
        return self._granted[key]


class Grants:
    """A captioner's side of it: prices the clip, and asks. The pricer is the driver's: a calibrated device's rates lie
    on the machine that planned, and maybe on no other.
    """

    def __init__(self, limit: int, floors: int, rule: ContentRule, pricer: Pricer) -> None:
        # Should it die, what it granted is forgotten and the job ends.
        self._purse: Any = beside_driver(Purse).remote(limit, floors)
        self._rule, self._pricer = rule, pricer

    def keep(self, key: str, clip: ClipShape, wanted: int) -> int:
        prices = self._pricer.clip(clip, wanted), self._pricer.clip(clip, self._rule.floor)
        try:
            granted: bool = ray.get(self._purse.grant.remote(key, *prices))
        except ray.exceptions.RayError as error:  # no clip is to blame
            lost = f"the purse of allocation content is lost ({type(error).__name__})"
            raise JobError(f"{lost}; what is committed stays, run the same command to resume") from None
        return wanted if granted else self._rule.floor

    def close(self) -> None:
        release(self._purse)
