"""The steps of methods that keep whole grids: pooling a frame, and LLaVA-MLB's cells."""

from __future__ import annotations

from functools import lru_cache

from mlb_batch.cost.schedule import WHOLE

# Rows x columns of a cell, finest first: no pooling, then the seven grids of the paper's ablation.
CELLS = ((1, 1), (1, 2), (1, 3), (2, 2), (2, 3), (3, 3), (4, 4), (6, 6))


@lru_cache(maxsize=256)
def pool_ladder(rows: int, cols: int) -> tuple[tuple[int, int], ...]:
    """Grids from 1 x 1 to the whole frame, as near to its aspect as a staircase of single steps goes."""
    ladder = [(1, 1)]
    while ladder[-1] != (rows, cols):
        r, c = ladder[-1]
        grow_cols = c < cols and (r == rows or c * rows <= r * cols)
        ladder.append((r, c + 1) if grow_cols else (r + 1, c))
    return tuple(ladder)


def pool_grid(rows: int, cols: int, keep: int) -> tuple[int, int]:
    """The largest grid of the ladder within `keep` millionths of the frame's tokens (never below 1 x 1)."""
    fitting = [g for g in pool_ladder(rows, cols) if g[0] * g[1] * WHOLE <= rows * cols * keep]
    return fitting[-1] if fitting else (1, 1)


def pool_grid_of(rows: int, cols: int, count: int) -> tuple[int, int]:
    """The grid of the ladder that has `count` cells."""
    return next(g for g in pool_ladder(rows, cols) if g[0] * g[1] == count)


def cells_in(rows: int, cols: int, cell: tuple[int, int]) -> int:
    """Cells that cover a frame; a cell that does not divide it leaves smaller ones at the far edges."""
    return -(-rows // cell[0]) * -(-cols // cell[1])


@lru_cache(maxsize=4096)
def cells_before_tail(rows: int, cols: int, cell: tuple[int, int], tail: int) -> int:
    """Cells of a frame that hold at least one token when its last `tail` tokens (raster order) are left out."""
    first = rows * cols - tail
    return len({(p // cols // cell[0], p % cols // cell[1]) for p in range(max(first, 0))})
