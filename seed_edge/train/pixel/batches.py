"""Random batches with fixed shares of the pools of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from seed_edge.data.samples import Sample
from seed_edge.data.subsets import shared_pools


class BatchSource:
    """Samples numbers of training samples; each batch has a fixed number of samples of each pool, pool after
    pool.
    """

    def __init__(self, samples: Sequence[Sample], batch: int, shares: Mapping[str, float]) -> None:
        """
        Args:
            shares: weight of each pool (`data.subsets.POOLS`).
        """
        training = np.array([number for number, sample in enumerate(samples) if not sample.held_out])
        pools = shared_pools([samples[number] for number in training], shares)
        parts = np.array([share for _, share in pools])
        edges = np.rint(np.cumsum(parts / parts.sum()) * batch).astype(int)
        self.pools = [training[pool] for pool, _ in pools]
        self.counts = np.diff(edges, prepend=0)

    def __call__(self, rng: np.random.Generator) -> NDArray[np.int64]:
        return np.concatenate(
            [rng.choice(pool, n) for pool, n in zip(self.pools, self.counts, strict=True) if n]
        )
