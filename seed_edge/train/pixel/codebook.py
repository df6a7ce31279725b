"""The codebook of a finished encoder, by k-means, with separate rows for each semantic query.

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
AT_ONCE = 1 << 10
"""Vectors compared with all rows at a time; this many fit into the processor's cache."""
SAMPLE = 200
"""Maximum number of vectors per row."""


@dataclass(frozen=True)
class CodebookRecipe:
    """Number of codebook rows."""

    rows_per_semantic_query: int
    """Rows of each semantic query."""
    shared_rows: int
    """Rows that all other queries share."""


def refitted_geometry(geometry: PixelGeometry, recipe: CodebookRecipe) -> PixelGeometry:
    """The geometry with the numbers of rows of `recipe`."""
    rows = geometry.semantic_queries * recipe.rows_per_semantic_query + recipe.shared_rows
    return dataclasses.replace(geometry, codebook_size=rows, semantic_rows=recipe.rows_per_semantic_query)


def refitted(
    model: PixelTokenizer, vectors: NDArray[np.float32], recipe: CodebookRecipe, seed: int
) -> PixelTokenizer:
    """The same encoder with a new codebook; the decoder has to be trained for it afterwards.

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
        other = PixelTokenizer(geometry)
    other.load_state_dict(model.state_dict() | {"quantize.embedding.weight": codebook})
    channels_last(other.pixel_head)
    return other


def k_means(vectors: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Centres (count, dim) of vectors (m, dim): k-means++, then Lloyd's algorithm; empty centres are drawn
    again.
    """
    chosen = torch.randperm(len(vectors), generator=generator)[: SAMPLE * count]
    seen = vectors[chosen].float()
    rows, far = seen[:1], torch.full((len(seen),), torch.inf)
    for _ in range(count - 1):  # the farther from all rows so far, the likelier the next
        far = torch.minimum(far, (seen - rows[-1]).square().sum(1))
        place = torch.searchsorted(far.cumsum(0), torch.rand(1, generator=generator) * far.sum()).clamp(
            max=len(seen) - 1
        )
        rows = torch.cat([rows, seen[place]])
    for _ in range(ROUNDS):
        nearest = torch.cat([_nearest(part, rows) for part in seen.split(AT_ONCE)])
        sums = torch.zeros_like(rows).index_add_(0, nearest, seen)
        counts = torch.bincount(nearest, minlength=count)
        idle = counts == 0
        rows = sums / counts.clamp(min=1)[:, None]
        rows[idle] = seen[torch.randint(len(seen), (int(idle.sum()),), generator=generator)]
    return rows


def _nearest(vectors: Tensor, rows: Tensor) -> Tensor:
    return (rows.square().sum(1) - 2 * vectors @ rows.T).argmin(1)
