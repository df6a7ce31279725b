"""Scores of captions against the sentences that people wrote: BLEU-4, ROUGE-L, CIDEr-D.

Definitions and constants are those of the COCO caption evaluation (Chen et al. 2015, arXiv:1504.00325), so that figures
compare with published ones, but for the splitting into words: lower case letters, digits and apostrophes, no Penn Treebank.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from seed_edge.train.texts import split_words

LONGEST_GRAM = 4
ROUGE_BETA = 1.2
CIDER_SIGMA = 6.0

Grams = Counter[tuple[str, ...]]


def grams_of(words: Sequence[str], length: int) -> Grams:
    """How often each run of `length` words occurs."""
    return Counter(tuple(words[i : i + length]) for i in range(len(words) - length + 1))


def bleu4(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU-4 over all captions (Papineni et al. 2002), in [0, 1]: clipped precisions, penalty for being too short."""
    matched, possible = np.zeros(LONGEST_GRAM), np.zeros(LONGEST_GRAM)
    length = wanted = 0
    for caption, sentences in zip(captions, references, strict=True):
        words, others = split_words(caption), [split_words(sentence) for sentence in sentences]
        length += len(words)
        wanted += min((abs(len(other) - len(words)), len(other)) for other in others)[1]
        for n in range(1, LONGEST_GRAM + 1):
            own, most = grams_of(words, n), Counter[tuple[str, ...]]()
            for other in others:
                most |= grams_of(other, n)
            matched[n - 1] += sum((own & most).values())
            possible[n - 1] += max(0, len(words) - n + 1)
    if not matched.all():
        return 0.0
    brevity = 1.0 if length >= wanted else math.exp(1 - wanted / length)
    return float(brevity * np.exp(np.log(matched / possible).mean()))


def rouge_l(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean ROUGE-L (Lin 2004), in [0, 1]: F-measure of the longest common subsequence, best precision and best recall."""
    scores = []
    for caption, sentences in zip(captions, references, strict=True):
        words, others = split_words(caption), [split_words(sentence) for sentence in sentences]
        common = [_longest_common(words, other) for other in others]
        precision = max(c / max(1, len(words)) for c in common)
        recall = max(c / max(1, len(other)) for c, other in zip(common, others, strict=True))
        weight = ROUGE_BETA**2
        scores.append((1 + weight) * precision * recall / (recall + weight * precision) if precision and recall else 0.0)
    return float(np.mean(scores))


def _longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    row = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for j, other in enumerate(b, 1):
            diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean CIDEr-D (Vedantam et al. 2015, arXiv:1411.5726): 0 for nothing in common, up to 10.

    Cosine of tf-idf weighted n-grams, n = 1 to 4, clipped to the reference and with a Gaussian penalty on the difference in
    length. Document frequencies are those of `references`, so a figure depends on the set it is taken over.
    """
    sentences = [[_all_grams(sentence) for sentence in group] for group in references]
    documents: Grams = Counter()
    for group in sentences:
        documents.update({gram for grams in group for gram in grams})
    total = math.log(len(references))

    def weighted(grams: Grams) -> list[dict[tuple[str, ...], float]]:
        parts: list[dict[tuple[str, ...], float]] = [{} for _ in range(LONGEST_GRAM)]
        for gram, count in grams.items():
            parts[len(gram) - 1][gram] = count * (total - math.log(max(1, documents[gram])))
        return parts

    scores = []
    for caption, group in zip(captions, sentences, strict=True):
        grams = _all_grams(caption)
        own, length = weighted(grams), _words_in(grams)
        similarities = []
        for reference in group:
            penalty = math.exp(-((length - _words_in(reference)) ** 2) / (2 * CIDER_SIGMA**2))
            parts = zip(own, weighted(reference), strict=True)
            similarities.append(penalty * float(np.mean([_clipped_cosine(a, b) for a, b in parts])))
        scores.append(10 * float(np.mean(similarities)))
    return float(np.mean(scores))


def _all_grams(text: str) -> Grams:
    words = split_words(text)
    return sum((grams_of(words, n) for n in range(1, LONGEST_GRAM + 1)), Counter())


def _words_in(grams: Grams) -> int:
    return sum(count for gram, count in grams.items() if len(gram) == 1)


def _clipped_cosine(a: dict[tuple[str, ...], float], b: dict[tuple[str, ...], float]) -> float:
    lengths = math.sqrt(sum(v * v for v in a.values())) * math.sqrt(sum(v * v for v in b.values()))
    return sum(min(v, b[gram]) * b[gram] for gram, v in a.items() if gram in b) / lengths if lengths else 0.0
