"""Chooses the candidate that fits a prompt best, by the model's own probabilities.

Inconsistent codes decode to an image with other codes. Therefore each candidate is decoded and encoded again,
and the new codes are scored in both directions: their log-probability given the prompt, and that of the
prompt as their caption.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from seed_edge.manifest import Language
from seed_edge.prompts import Tokenize
from seed_edge.runtime.generation import log_probabilities
from seed_edge.runtime.language_model import ScoringModel

CODE_WEIGHT = 1 / 4
"""Weight of the log-probability of codes relative to text; most codes show details that the prompt does not
name.
"""


def rerank(
    model: ScoringModel,
    tokenize: Tokenize,
    language: Language,
    prompt: Sequence[int],
    words: Sequence[int],
    seen: Sequence[NDArray[np.int64]],
) -> int:
    """Index of the candidate with the highest score; the first of equals.

    Args:
        prompt: ids of the prompt that the candidates were sampled from.
        words: ids of the expected caption; may be empty.
        seen: codes (codes_per_image,) of each candidate after it was decoded and encoded again.
    """
    vocab = language.vocab

    def score(codes: NDArray[np.int64]) -> float:
        code_ids = vocab.codes_to_ids(codes)[1:-1]
        total = CODE_WEIGHT * log_probability(model, prompt, code_ids, vocab.code_mask())
        if words:
            caption_prompt = language.prompts.for_caption(vocab, tokenize, codes)
            caption = words[: language.context_length - len(caption_prompt)]  # a prompt may be longer
            total += log_probability(model, caption_prompt, caption, vocab.text_mask())
        return total

    # equal codes are scored once: a second score would differ by rounding
    scores: dict[tuple[int, ...], float] = {}
    for codes in seen:
        if tuple(codes) not in scores:
            scores[tuple(codes)] = score(codes)
    return int(np.argmax([scores[tuple(codes)] for codes in seen]))


def log_probability(
    model: ScoringModel, prompt: Sequence[int], ids: Sequence[int], allowed: NDArray[np.bool_]
) -> float:
    """Natural logarithm of the probability that `ids` follow the prompt, among the allowed ids."""
    columns = np.cumsum(allowed) - 1
    rows = log_probabilities(model.score(prompt, ids)[:, allowed])
    return float(rows[np.arange(len(ids)), columns[ids]].sum())
