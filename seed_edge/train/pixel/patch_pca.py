"""Map of the queries with a grid cell: principal components of the colours in their patches.

A few components describe most of a patch (first its mean colour, then gradients across it), and similar
patches get similar codes, which a language model learns faster than unrelated ones.
"""

from __future__ import annotations

import numpy as np
import torch

from seed_edge.models.config import COLOUR_SIDE
from seed_edge.models.image_tokenizer import PixelTokenizer, patches_of
from seed_edge.train.pixel.feature_cache import Cache

SAMPLE = 6000
"""Maximum number of images whose patches are used."""


def fit_patches(model: PixelTokenizer, cache: Cache, seed: int = 0) -> None:
    """Set the weights of `model.patches` from the cache; all components have one scale, which preserves
    distances.
    """
    rows = cache.rows(held_out=False)
    rows = np.random.default_rng(seed).permutation(rows)[:SAMPLE]
    tokens = torch.from_numpy(cache.features[rows][..., -3 * COLOUR_SIDE**2 :].astype(np.float32))
    patches = patches_of(tokens, model.geometry).flatten(2).flatten(0, 1).double()
    mean = patches.mean(0)
    centred = patches - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    components = (
        vectors[:, -model.patches.out_features :].flip(1).T
        / values[-model.patches.out_features :].mean().sqrt()
    )
    with torch.no_grad():
        model.patches.weight.copy_(components)
        model.patches.bias.copy_(-components @ mean)
