"""Feature noise: augments the semantic vectors of an image with the differences between other images of one
thing.

Drawings of one thing differ in style; views of one photo differ in crop and lighting. Such differences, taken
from other images, are added before quantization. The language model is thus trained on hundreds of variants
of a thing instead of a few, and no image has to be encoded again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from seed_edge.data.samples import Sample
from seed_edge.train.pixel.feature_cache import VIEWS


class FeatureNoise:
    """Samples varied semantic vectors of cached images."""

    def __init__(self, samples: Sequence[Sample], vectors: NDArray[np.float32]) -> None:
        """
        Args:
            vectors: semantic vectors of all rows of the cache, (samples * VIEWS, semantic_queries, code_dim).
        """
        self._vectors = vectors
        self._centre = vectors.copy()
        things = defaultdict(list)
        for number, sample in enumerate(samples):
            if sample.style is not None and sample.label and not sample.held_out:
                things[sample.label, sample.recoloured and sample.colour].append(number)
        drawn = np.zeros(len(vectors), bool)
        for numbers in things.values():
            rows = (np.array(numbers)[:, None] * VIEWS + np.arange(VIEWS)).ravel()
            self._centre[rows] = vectors[rows].mean(0)
            drawn[rows] = True
        self._drawn = drawn
        training = np.repeat([not sample.held_out for sample in samples], VIEWS)
        with_several = {number for key, numbers in things.items() if len(numbers) > 1 for number in numbers}
        of_several = np.repeat([number in with_several for number in range(len(samples))], VIEWS)
        self._by_style = np.flatnonzero(drawn & of_several)
        self._by_view = np.flatnonzero(training & ~drawn)

    def __call__(self, rows: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float32]:
        """Return varied vectors (rows, semantic_queries, code_dim) of rows of the cache, with noise of random
        strength.
        """
        vectors = self._vectors[rows]
        result = vectors.copy()
        strength = rng.random((len(rows), 1, 1), dtype=np.float32)
        drawn = self._drawn[rows]
        if drawn.any() and len(self._by_style):
            centre, others = self._centre[rows[drawn]], rng.choice(self._by_style, drawn.sum())
            difference = self._vectors[others] - self._centre[others]
            share = strength[drawn]
            result[drawn] = (
                centre + np.sqrt(1 - share) * (vectors[drawn] - centre) + np.sqrt(share) * difference
            )
        if (~drawn).any() and len(self._by_view):
            others = rng.choice(self._by_view, (~drawn).sum())
            first = others - others % VIEWS
            result[~drawn] += strength[~drawn] * (self._vectors[first + 1] - self._vectors[first])
        return result
