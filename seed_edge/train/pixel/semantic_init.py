"""Start of the semantic queries: the linear map of pooled features that predicts words best, by canonical
correlation (CCA).

With one label per image, CCA is linear discriminant analysis (Fisher 1936): directions along which things
differ, in units of the spread within one thing. Several styles of one thing show which differences are style.
Gradient descent takes hours to find a comparable map.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from numpy.typing import NDArray

from seed_edge.data.samples import Sample
from seed_edge.models.image_tokenizer import PixelTokenizer
from seed_edge.train.pixel.bag_of_words import words_of
from seed_edge.train.pixel.feature_cache import VIEWS, Cache

NUM_WORDS, MIN_SAMPLES = 2500, 4
"""Number of words of sentences that are targets, and minimum number of samples with such a word."""
FULL_WEIGHT_SAMPLES = 12
"""Maximum number of samples of a label that have full weight; of a larger number, each has less."""
SENTENCE_WEIGHT, PHRASE_WEIGHT = 0.3, 0.2
"""Weights of photos with sentences, and of drawings of several things; a labelled image has up to 1."""
SHRINKAGE, RIDGE = 0.1, 2.0
"""Added to the spread within things, as a fraction of its mean; and ridge regularisation of the regression on
words.
"""


def init_semantic_map(model: PixelTokenizer, cache: Cache, seed: int = 0, chunk: int = 2000) -> None:
    """Set the weights of `model.glance` from the cache; `vision_mean` and `vision_std` must have been
    measured.
    """
    rows = cache.rows(held_out=False)
    numbers = rows // VIEWS
    targets, weights = targets_of([cache.samples[number] for number in numbers])
    rows = np.concatenate([rows + view for view in range(VIEWS)])
    targets, weights = np.tile(targets, (VIEWS, 1)), np.tile(weights, VIEWS)
    pooled = np.concatenate(
        [_pooled(model, cache.features[rows[i : i + chunk]]) for i in range(0, len(rows), chunk)]
    )
    directions = cca_directions(pooled, targets, weights, model.glance.out_features)
    # a random rotation spreads the directions evenly over all codes
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((directions.shape[1],) * 2))
    with torch.no_grad():
        model.glance.weight.copy_(torch.from_numpy((directions @ rotation).T))
        model.glance.bias.zero_()


def _pooled(model: PixelTokenizer, features: NDArray[np.float16]) -> NDArray[np.float32]:
    vision = torch.from_numpy(features.astype(np.float32).mean(1))
    return ((vision - model.vision_mean) / model.vision_std).numpy()


def targets_of(samples: list[Sample]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Targets (samples, labels and words) in [0, 1], and weights (samples,), both float32."""
    names = [
        (sample.style is None, sample.label) if sample.label and not sample.phrases else None
        for sample in samples
    ]
    frequency = Counter(name for name in names if name)
    index: dict[tuple[bool, str] | str, int] = {name: number for number, name in enumerate(frequency)}
    bags = [words_of(sample) if sample.captions or sample.phrases else Counter() for sample in samples]
    frequent_words = Counter(word for bag in bags for word in bag).most_common(NUM_WORDS)
    index |= {
        word: len(index) + number
        for number, (word, count) in enumerate(frequent_words)
        if count >= MIN_SAMPLES
    }
    targets = np.zeros((len(samples), len(index)), np.float32)
    weights = np.zeros(len(samples), np.float32)
    for number, (name, bag, sample) in enumerate(zip(names, bags, samples, strict=True)):
        if name:
            targets[number, index[name]] = 1
            weights[number] = min(FULL_WEIGHT_SAMPLES, frequency[name]) / frequency[name]
        for word, count in bag.items():
            if word in index:
                targets[number, index[word]] = min(count, 3) / 3
        if not name and bag:
            weights[number] = SENTENCE_WEIGHT if sample.captions else PHRASE_WEIGHT
    return targets, weights


def cca_directions(
    features: NDArray[np.float32], targets: NDArray[np.float32], weights: NDArray[np.float32], count: int
) -> NDArray[np.float64]:
    """Directions (channels, count) of `features` that predict `targets` best, best first, scaled by their
    correlation.

    Args:
        features: (samples, channels).
        targets: (samples, targets).
        weights: (samples,).
    """
    root, total = np.sqrt(weights)[:, None], weights.sum()
    x = (features - features.mean(0)) * root
    y = targets * root
    predicted = y @ np.linalg.solve(y.T @ y + RIDGE * np.eye(y.shape[1], dtype=np.float32), y.T @ x)
    residual = x - predicted
    between = (predicted.T @ predicted / total).astype(np.float64)
    within = (residual.T @ residual / total).astype(np.float64)
    within += SHRINKAGE * np.trace(within) / len(within) * np.eye(len(within))
    inverse = np.linalg.inv(np.linalg.cholesky(within))
    values, vectors = np.linalg.eigh(inverse @ between @ inverse.T)
    values, vectors = values[::-1][:count], vectors[:, ::-1][:, :count]
    return inverse.T @ vectors * np.sqrt(values / (1 + values))
