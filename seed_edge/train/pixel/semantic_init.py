"""What of a picture's pooled features tells most about its words, found in one step: canonical correlation.

With one name a picture this is linear discriminant analysis (Fisher 1936): directions in which things differ, in units of how
much pictures of one thing differ from each other. Several drawing styles of one thing teach it what style is. Gradient descent
takes hours to find as much.
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

NUM_WORDS, RAREST = 2500, 4
"""Words of sentences that are told, and how many samples must have one."""
SEVERAL = 12
"""Samples of a name that count; of more, each counts less."""
SENTENCE_WEIGHT, PHRASE_WEIGHT = 0.3, 0.2
"""Of photos with sentences, and of pictures of several things."""
SHRINKAGE, RIDGE = 0.1, 2.0
"""Added to the spread within things, as a share of its mean; and samples that every word is taken to have besides."""


def fit_glance(model: PixelTokenizer, cache: Cache, seed: int = 0, chunk: int = 2000) -> None:
    """Set `model.glance` from the cache; channels must have been measured."""
    rows = cache.rows(held_out=False)
    numbers = rows // VIEWS
    wanted, weights = targets_of([cache.samples[number] for number in numbers])
    rows = np.concatenate([rows + view for view in range(VIEWS)])
    wanted, weights = np.tile(wanted, (VIEWS, 1)), np.tile(weights, VIEWS)
    pooled = np.concatenate([_pooled(model, cache.features[rows[i : i + chunk]]) for i in range(0, len(rows), chunk)])
    directions = correlated(pooled, wanted, weights, model.glance.out_features)
    turned, _ = np.linalg.qr(
        np.random.default_rng(seed).standard_normal((directions.shape[1],) * 2)
    )  # each code an equal share
    with torch.no_grad():
        model.glance.weight.copy_(torch.from_numpy((directions @ turned).T))
        model.glance.bias.zero_()


def _pooled(model: PixelTokenizer, features: NDArray[np.float16]) -> NDArray[np.float32]:
    vision = torch.from_numpy(features.astype(np.float32).mean(1))
    return ((vision - model.vision_mean) / model.vision_std).numpy()


def targets_of(samples: list[Sample]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What is known of samples: (samples, names and words), 1 where it is; and how much each sample counts."""
    names = [(sample.style is None, sample.label) if sample.label and not sample.phrases else None for sample in samples]
    frequency = Counter(name for name in names if name)
    place: dict[tuple[bool, str] | str, int] = {name: number for number, name in enumerate(frequency)}
    bags = [words_of(sample) if sample.captions or sample.phrases else Counter() for sample in samples]
    spoken = Counter(word for bag in bags for word in bag).most_common(NUM_WORDS)
    place |= {word: len(place) + number for number, (word, count) in enumerate(spoken) if count >= RAREST}
    wanted = np.zeros((len(samples), len(place)), np.float32)
    weights = np.zeros(len(samples), np.float32)
    for number, (name, bag, sample) in enumerate(zip(names, bags, samples, strict=True)):
        if name:
            wanted[number, place[name]] = 1
            weights[number] = min(SEVERAL, frequency[name]) / frequency[name]
        for word, count in bag.items():
            if word in place:
                wanted[number, place[word]] = min(count, 3) / 3
        if not name and bag:
            weights[number] = SENTENCE_WEIGHT if sample.captions else PHRASE_WEIGHT
    return wanted, weights


def correlated(
    seen: NDArray[np.float32], wanted: NDArray[np.float32], weights: NDArray[np.float32], count: int
) -> NDArray[np.float64]:
    """Directions (channels, count) of `seen` that tell most of `wanted`, best first, each as long as it is telling.

    Args:
        seen: (samples, channels).
        wanted: (samples, targets).
        weights: how much each sample counts, (samples,).
    """
    root, total = np.sqrt(weights)[:, None], weights.sum()
    x = (seen - seen.mean(0)) * root
    y = wanted * root
    told = y @ np.linalg.solve(y.T @ y + RIDGE * np.eye(y.shape[1], dtype=np.float32), y.T @ x)
    rest = x - told
    between = (told.T @ told / total).astype(np.float64)
    within = (rest.T @ rest / total).astype(np.float64)
    within += SHRINKAGE * np.trace(within) / len(within) * np.eye(len(within))
    inverse = np.linalg.inv(np.linalg.cholesky(within))
    values, vectors = np.linalg.eigh(inverse @ between @ inverse.T)
    values, vectors = values[::-1][:count], vectors[:, ::-1][:, :count]
    return inverse.T @ vectors * np.sqrt(values / (1 + values))
