"""Bags of words: the words that the texts of a sample contain, as training targets."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from seed_edge.data.samples import Sample

STOP_WORDS = frozenset(
    [
        "a",
        "an",
        "the",
        "of",
        "in",
        "on",
        "at",
        "is",
        "are",
        "and",
        "with",
        "to",
        "his",
        "her",
        "their",
        "its",
        "by",
        "for",
        "from",
        "as",
        "it",
        "this",
        "that",
    ]
)


def words_of(sample: Sample) -> Counter[str]:
    """Return the weighted words of all texts of a sample; keywords of a drawing have a third of the weight
    of its label.
    """
    words: Counter[str] = Counter()
    for text in sample.captions:
        words.update(set(re.findall(r"[a-z]+", text.lower())) - STOP_WORDS)
    if sample.label:
        words.update(
            {word: 3 for word in re.findall(r"[a-z]+", sample.label.lower()) if word not in STOP_WORDS}
        )
        words.update({word: 1 for word in sample.tags if word.isalpha()})
    for phrase in sample.phrases:
        words.update(set(re.findall(r"[a-z]+", phrase)) - STOP_WORDS)
    if sample.colour:
        words[sample.colour] += 3
    if sample.label or sample.captions or sample.phrases:
        words["drawing" if sample.style else "photo"] += 1
    return words


class WordTargets:
    """Distribution over the vocabulary for each sample; rarer words have more weight."""

    def __init__(self, samples: Sequence[Sample], num_words: int) -> None:
        bags = [words_of(sample) for sample in samples]
        documents = Counter(word for bag in bags for word in bag)
        self.words = [word for word, count in documents.most_common(num_words) if count > 1]
        index = {word: i for i, word in enumerate(self.words)}
        inverse = np.array([np.log(1 + len(samples) / documents[word]) for word in self.words], np.float32)
        self._bags = [
            [(index[word], count * inverse[index[word]]) for word, count in bag.items() if word in index]
            for bag in bags
        ]

    def __call__(self, numbers: Sequence[int]) -> Tensor:
        """Return the distributions (len(numbers), words); rows sum to 1, or to 0 without words."""
        target = torch.zeros(len(numbers), len(self.words))
        for row, number in enumerate(numbers):
            for word, weight in self._bags[number]:
                target[row, word] = float(weight)
        return target / target.sum(1, keepdim=True).clamp(min=1e-6)
