"""Grid positions of the non-semantic queries; the decoder attends to them by distance at first."""

from __future__ import annotations

import torch
from torch import Tensor

from seed_edge.models.config import PixelGeometry

BRUSH = 0.125
"""Standard deviation of the initial Gaussian of a code, as a fraction of the side of the image."""


def centres(rows: int, columns: int) -> Tensor:
    """Centres of the cells of a grid, (rows * columns, 2): y and x in [0, 1], row by row."""
    y, x = ((torch.arange(n) + 0.5) / n for n in (rows, columns))
    return torch.cartesian_prod(y, x)


def places_of_queries(geometry: PixelGeometry) -> Tensor:
    """Centres of the non-semantic queries, (num_queries - semantic_queries, 2)."""
    return centres(*geometry.placed_grid)


def log_nearness(a: Tensor, b: Tensor, deviation: float) -> Tensor:
    """Gaussian log-weight of each centre in `b` (m, 2) seen from each in `a` (n, 2): (n, m), 0 where they
    meet.
    """
    return -((a[:, None] - b[None]).square().sum(-1)) / (2 * deviation**2)
