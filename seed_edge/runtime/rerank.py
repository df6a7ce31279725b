"""Which of several drawings is most like what was asked for, as the model itself sees them.

Codes that do not go together become a blot, and a blot has other codes than those it was made of. So each drawing is looked
at, and what is seen is judged in both directions: would it have been drawn for these words, and would it be called that?
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
"""What a nat of codes counts beside one of words; 32 codes tell much that no words ask for."""


def rerank(
    model: ScoringModel,
    tokenize: Tokenize,
    language: Language,
    prompt: Sequence[int],
    words: Sequence[int],
    seen: Sequence[NDArray[np.int64]],
) -> int:
    """Number of the drawing that fits best; the first of equals.

    Args:
        prompt: ids after which the drawings' codes were written.
        words: ids of a caption that would be right; may be none.
        seen: codes (codes_per_image,) of each drawing, after it became a picture and was encoded.
    """
    vocab = language.vocab

    def score(codes: NDArray[np.int64]) -> float:
        written = vocab.codes_to_ids(codes)[1:-1]
        found = CODE_WEIGHT * log_probability(model, prompt, written, vocab.code_mask())
        if words:
            caption = language.prompts.for_caption(vocab, tokenize, codes)
            fitting = words[: language.context_length - len(caption)]  # a prompt may be longer than a caption can be
            found += log_probability(model, caption, fitting, vocab.text_mask())
        return found

    scores: dict[tuple[int, ...], float] = {}  # what looks the same is judged once: a second number would differ by a rounding
    for codes in seen:
        if tuple(codes) not in scores:
            scores[tuple(codes)] = score(codes)
    return int(np.argmax([scores[tuple(codes)] for codes in seen]))


def log_probability(model: ScoringModel, prompt: Sequence[int], said: Sequence[int], allowed: NDArray[np.bool_]) -> float:
    """Natural logarithm of how likely `said` follows the prompt, where only allowed ids may follow."""
    columns = np.cumsum(allowed) - 1
    found = log_probabilities(model.score(prompt, said)[:, allowed])
    return float(found[np.arange(len(said)), columns[said]].sum())
