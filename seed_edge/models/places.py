"""Where queries look and paint at first: those with a place are laid over the picture row by row.

Attention that starts without places takes thousands of steps to find them; these are starting values only, learnt on.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seed_edge.models.config import PixelGeometry

SIGHT = 0.1
"""Standard deviation of a query's first look, in sides of the picture."""
BRUSH = 0.125
"""Standard deviation of what a code paints at first, in sides of the picture."""


def rows_and_columns(count: int) -> tuple[int, int]:
    """`count` places as the squarest grid there is, rows not fewer than columns: 32 -> (8, 4)."""
    columns = next(n for n in range(math.isqrt(count), 0, -1) if count % n == 0)
    return count // columns, columns


def centres(rows: int, columns: int) -> Tensor:
    """Centres of the cells of a grid, (rows * columns, 2): y and x in [0, 1], row by row."""
    y, x = ((torch.arange(n) + 0.5) / n for n in (rows, columns))
    return torch.cartesian_prod(y, x)


def places_of_queries(geometry: PixelGeometry) -> Tensor:
    """Centres of the queries that have a place, (num_queries - semantic_queries, 2)."""
    return centres(*rows_and_columns(geometry.num_queries - geometry.semantic_queries))


def log_nearness(a: Tensor, b: Tensor, deviation: float) -> Tensor:
    """Gaussian log-weight of each centre in `b` (m, 2) seen from each in `a` (n, 2): (n, m), 0 where they meet."""
    return -((a[:, None] - b[None]).square().sum(-1)) / (2 * deviation**2)
