"""CIDEr-D: agreement of a caption with reference sentences, as a metric and as a training reward."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from seed_edge.data.phrasing import split_words

MAX_GRAM = 4
SIGMA = 6.0

Grams = Counter[tuple[str, ...]]


def grams_of(words: Sequence[str], length: int) -> Grams:
    """Return the counts of the n-grams of `length` words."""
    return Counter(tuple(words[i : i + length]) for i in range(len(words) - length + 1))


@dataclass(frozen=True)
class Weighted:
    """TF-IDF vectors of a text."""

    parts: tuple[dict[tuple[str, ...], float], ...]
    """N-gram -> TF-IDF weight, for each n from 1 to 4."""
    norms: tuple[float, ...]
    words: int


class Cider:
    """CIDEr-D (Vedantam et al. 2015, arXiv:1411.5726) with the document frequencies of some references.

    Cosine similarity of TF-IDF weighted n-grams, n = 1 to 4, clipped to the reference, with a Gaussian
    penalty on the difference in length; constants are those of the COCO caption evaluation.
    """

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        """
        Args:
            references: the sentences of each image.
        """
        self._documents: Grams = Counter()
        for group in references:
            self._documents.update({gram for sentence in group for gram in _all_grams(split_words(sentence))})
        self._total = math.log(len(references))

    def weighted(self, text: str) -> Weighted:
        """Return the TF-IDF vectors of a text."""
        words = split_words(text)
        parts: tuple[dict[tuple[str, ...], float], ...] = tuple({} for _ in range(MAX_GRAM))
        for gram, count in _all_grams(words).items():
            parts[len(gram) - 1][gram] = count * (self._total - math.log(max(1, self._documents[gram])))
        return Weighted(
            parts, tuple(math.sqrt(sum(v * v for v in part.values())) for part in parts), len(words)
        )

    def score(self, candidate: Weighted, references: Sequence[Weighted]) -> float:
        """Return the CIDEr-D of one text against the sentences of its image, in [0, 10]."""
        total = 0.0
        for other in references:
            similarity = (
                sum(map(_clipped_cosine, candidate.parts, other.parts, candidate.norms, other.norms))
                / MAX_GRAM
            )
            total += similarity * math.exp(-((candidate.words - other.words) ** 2) / (2 * SIGMA**2))
        return 10 * total / len(references)


def _all_grams(words: Sequence[str]) -> Grams:
    return sum((grams_of(words, n) for n in range(1, MAX_GRAM + 1)), Counter())


def _clipped_cosine(
    a: dict[tuple[str, ...], float], b: dict[tuple[str, ...], float], long_a: float, long_b: float
) -> float:
    length = long_a * long_b
    return sum(min(v, b[gram]) * b[gram] for gram, v in a.items() if gram in b) / length if length else 0.0
