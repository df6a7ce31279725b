"""Metrics of captions against reference sentences: BLEU-4, ROUGE-L, CIDEr-D.

Definitions and constants are those of the COCO caption evaluation (Chen et al. 2015, arXiv:1504.00325),
except for tokenization: words are lower-case letters, digits and apostrophes, instead of Penn Treebank
tokens.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from seed_edge.data.phrasing import split_words
from seed_edge.metrics.cider import MAX_GRAM, Cider, grams_of

ROUGE_BETA = 1.2


def bleu4(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return the corpus BLEU-4 of captions (Papineni et al. 2002), in [0, 1], with clipped precisions and
    brevity penalty.
    """
    matched, possible = np.zeros(MAX_GRAM), np.zeros(MAX_GRAM)
    length = reference_length = 0
    for caption, sentences in zip(captions, references, strict=True):
        words, others = split_words(caption), [split_words(sentence) for sentence in sentences]
        length += len(words)
        reference_length += min((abs(len(other) - len(words)), len(other)) for other in others)[1]
        for n in range(1, MAX_GRAM + 1):
            grams, max_counts = grams_of(words, n), Counter[tuple[str, ...]]()
            for other in others:
                max_counts |= grams_of(other, n)
            matched[n - 1] += sum((grams & max_counts).values())
            possible[n - 1] += max(0, len(words) - n + 1)
    if not matched.all():
        return 0.0
    brevity = 1.0 if length >= reference_length else math.exp(1 - reference_length / length)
    return float(brevity * np.exp(np.log(matched / possible).mean()))


def rouge_l(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return the mean ROUGE-L (Lin 2004), in [0, 1]: F-measure of the longest common subsequence, from the
    best precision and the best recall over the references.
    """
    scores = []
    for caption, sentences in zip(captions, references, strict=True):
        words, others = split_words(caption), [split_words(sentence) for sentence in sentences]
        common = [_longest_common(words, other) for other in others]
        precision = max(c / max(1, len(words)) for c in common)
        recall = max(c / max(1, len(other)) for c, other in zip(common, others, strict=True))
        weight = ROUGE_BETA**2
        scores.append(
            (1 + weight) * precision * recall / (recall + weight * precision) if precision and recall else 0.0
        )
    return float(np.mean(scores))


def _longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    row = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for j, other in enumerate(b, 1):
            diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return the mean CIDEr-D (see `metrics.cider`), in [0, 10], with the document frequencies of
    `references`.
    """
    metric = Cider(references)
    weighted = [[metric.weighted(sentence) for sentence in group] for group in references]
    pairs = zip(captions, weighted, strict=True)
    return float(np.mean([metric.score(metric.weighted(caption), group) for caption, group in pairs]))
