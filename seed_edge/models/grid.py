"""Grid positions of the non-semantic queries; they initialise the mixing weights of the decoder."""

from __future__ import annotations

import torch
from torch import Tensor

from seed_edge.models.config import PixelGeometry

INITIAL_SPREAD = 0.125
"""Standard deviation of the initial Gaussian weights of a code, as a fraction of the side of the image."""


def cell_centres(rows: int, columns: int) -> Tensor:
    """Return the centres of the cells of a grid, (rows * columns, 2): y and x in [0, 1], row by row."""
    y, x = ((torch.arange(n) + 0.5) / n for n in (rows, columns))
    return torch.cartesian_prod(y, x)


def query_centres(geometry: PixelGeometry) -> Tensor:
    """Return the centres of the non-semantic queries' cells, (num_queries - semantic_queries, 2)."""
    return cell_centres(*geometry.placed_grid)


def log_nearness(a: Tensor, b: Tensor, deviation: float) -> Tensor:
    """Return the Gaussian log-weight (n, m) of the distances between points `a` (n, 2) and `b` (m, 2); 0 at
    distance 0.
    """
    return -((a[:, None] - b[None]).square().sum(-1)) / (2 * deviation**2)
