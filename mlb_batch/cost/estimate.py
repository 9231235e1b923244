"""A total over a population from a random sample of it, with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

ONE_SIDED_99 = 2.326347874040841  # quantiles of the normal distribution
TWO_SIDED_99 = 2.5758293035489004


def ratio_total(
    amounts: Sequence[int], sizes: Sequence[int], total_size: int, population: int, z: float
) -> tuple[float, float, float]:
    """(estimate, low, high) of the amounts' total, from each unit's amount and a size whose total is known.

    The ratio estimator: where amounts grow with the sizes its error is that of the ratio alone. Sizes of one give the
    plain mean. With the whole population in the sample there is no error.
    """
    n = len(amounts)
    assert 0 < n == len(sizes) <= population, (n, len(sizes), population)
    ratio = sum(amounts) / sum(sizes)
    estimate = ratio * total_size
    if n == population or n < 2:
        return estimate, estimate, estimate
    spread = sum((a - ratio * s) ** 2 for a, s in zip(amounts, sizes, strict=True)) / (n - 1)
    mean_error = math.sqrt(spread / n * (1 - n / population))
    error = z * mean_error * total_size * n / sum(sizes)
    return estimate, estimate - error, estimate + error
