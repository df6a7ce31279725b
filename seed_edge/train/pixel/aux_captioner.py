"""A small captioner that is trained with the semantic queries, so that their codes describe the content of an
image.

It is not part of the finished tokenizer: the language model is trained later, on fixed codes.
Its vocabulary consists of whole words. SEED's later tokenizers and CoCa (Yu et al. 2022, arXiv:2205.01917)
are trained with captions as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seed_edge.data.phrasing import split_words

START, END, UNKNOWN = 0, 1, 2
MAX_WORDS = 24
"""Maximum length of a text, in words."""


class WordList:
    """Vocabulary of the most frequent words of some texts."""

    def __init__(self, texts: Sequence[str], count: int) -> None:
        frequency = Counter(word for text in texts for word in split_words(text))
        words = [word for word, number in frequency.most_common(count) if number > 1]
        self._ids = {word: number for number, word in enumerate(words, UNKNOWN + 1)}

    def __len__(self) -> int:
        return len(self._ids) + UNKNOWN + 1

    def batch(self, texts: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        """Return input ids and target ids of texts, both (texts, length) int64; targets are -100 where
        nothing is predicted.
        """
        rows = [
            [self._ids.get(word, UNKNOWN) for word in split_words(text or "")][:MAX_WORDS] for text in texts
        ]
        length = max(map(len, rows)) + 1
        inputs = torch.full((len(rows), length), END)
        targets = torch.full_like(inputs, -100)
        for number, row in enumerate(rows):
            inputs[number, : len(row) + 1] = torch.tensor([START, *row])
            if row:
                targets[number, : len(row) + 1] = torch.tensor([*row, END])
        return inputs, targets


class AuxiliaryCaptioner(nn.Module):
    """A causal transformer over the features of semantic codes, followed by words."""

    def __init__(
        self, words: int, prefix: int, width: int, depth: int = 2, heads: int = 8, dropout: float = 0.15
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.positions = nn.Parameter(torch.randn(1, prefix + MAX_WORDS + 1, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, 0.0, F.gelu, batch_first=True, norm_first=True
        )
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, words)

    def forward(self, features: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of the target ids, a scalar.

        Args:
            features: of the semantic codes, (batch, prefix, width).
            inputs: (batch, length) int64.
            targets: (batch, length) int64, -100 where nothing is predicted.
        """
        x = torch.cat([features, self.embedding(inputs).to(features.dtype)], 1)
        x = self.dropout(x + self.positions[:, : x.shape[1]])
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
        x = self.norm(self.layers(x, mask=mask, is_causal=True)[:, features.shape[1] :])
        predicted = targets != -100
        return (
            F.cross_entropy(self.head(x[predicted]).float(), targets[predicted])
            if predicted.any()
            else x.new_zeros(())
        )
