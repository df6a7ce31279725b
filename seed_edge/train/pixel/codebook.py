"""Fits the codebook of a trained encoder by k-means, with separate rows for each semantic query.

While the encoder is trained, all queries share the rows, so that none stays unused. Separate rows are easier
for a language model: a code then has the same meaning wherever it occurs.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seed_edge.models.config import PixelGeometry
from seed_edge.models.image_tokenizer import PixelTokenizer
from seed_edge.models.memory_layout import channels_last

ROUNDS = 25
CHUNK = 1 << 10
"""Vectors compared with all rows at a time; this many fit into the processor's cache."""
MAX_VECTORS_PER_ROW = 200
"""Maximum number of vectors per row."""


@dataclass(frozen=True)
class CodebookRecipe:
    """Number of codebook rows."""

    rows_per_semantic_query: int
    """Rows of each semantic query."""
    shared_rows: int
    """Rows that all other queries share."""


def refitted_geometry(geometry: PixelGeometry, recipe: CodebookRecipe) -> PixelGeometry:
    """Return the geometry with the numbers of rows of `recipe`."""
    rows = geometry.semantic_queries * recipe.rows_per_semantic_query + recipe.shared_rows
    return dataclasses.replace(geometry, codebook_size=rows, semantic_rows=recipe.rows_per_semantic_query)


def refitted(
    model: PixelTokenizer, vectors: NDArray[np.float32], recipe: CodebookRecipe, seed: int
) -> PixelTokenizer:
    """Return the model with a new codebook; its decoder must be trained again.

    Args:
        vectors: (images, n, code_dim), of training images.
    """
    generator = torch.Generator().manual_seed(seed)
    semantic, dim = model.geometry.semantic_queries, model.geometry.code_dim
    z = torch.from_numpy(np.ascontiguousarray(vectors))
    rows = [k_means(z[:, query], recipe.rows_per_semantic_query, generator) for query in range(semantic)]
    rows.append(k_means(z[:, semantic:].reshape(-1, dim), recipe.shared_rows, generator))
    codebook = torch.cat(rows)
    geometry = refitted_geometry(model.geometry, recipe)
    with torch.random.fork_rng():
        refitted_model = PixelTokenizer(geometry)
    refitted_model.load_state_dict(model.state_dict() | {"quantize.embedding.weight": codebook})
    channels_last(refitted_model.pixel_head)
    return refitted_model


def k_means(vectors: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return centres (count, dim) of vectors (m, dim): k-means++, then Lloyd's algorithm; centres without
    vectors are replaced with random vectors.
    """
    chosen = torch.randperm(len(vectors), generator=generator)[: MAX_VECTORS_PER_ROW * count]
    seen = vectors[chosen].float()
    rows, distances = seen[:1], torch.full((len(seen),), torch.inf)
    for _ in range(count - 1):  # k-means++: probability proportional to the squared distance
        distances = torch.minimum(distances, (seen - rows[-1]).square().sum(1))
        threshold = torch.rand(1, generator=generator) * distances.sum()
        index = torch.searchsorted(distances.cumsum(0), threshold).clamp(max=len(seen) - 1)
        rows = torch.cat([rows, seen[index]])
    for _ in range(ROUNDS):
        nearest = torch.cat([_nearest(part, rows) for part in seen.split(CHUNK)])
        sums = torch.zeros_like(rows).index_add_(0, nearest, seen)
        counts = torch.bincount(nearest, minlength=count)
        empty = counts == 0
        rows = sums / counts.clamp(min=1)[:, None]
        rows[empty] = seen[torch.randint(len(seen), (int(empty.sum()),), generator=generator)]
    return rows


def _nearest(vectors: Tensor, rows: Tensor) -> Tensor:
    return (rows.square().sum(1) - 2 * vectors @ rows.T).argmin(1)
