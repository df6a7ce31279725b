"""A small language model that reads the semantic codes while the tokenizer is trained, so that they tell what is shown.

It is thrown away afterwards: the language model proper learns to read codes that no longer change. Whole words, since it need
not spell. Captioning through the codes is what SEED's later tokenizers and CoCa (Yu et al. 2022, arXiv:2205.01917) train with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seed_edge.data.phrasing import split_words

START, END, UNKNOWN = 0, 1, 2
LONGEST = 24
"""Words of a text that are read."""


class WordList:
    """The most frequent words of some texts, numbered."""

    def __init__(self, texts: Sequence[str], count: int) -> None:
        frequency = Counter(word for text in texts for word in split_words(text))
        kept = [word for word, number in frequency.most_common(count) if number > 1]
        self._ids = {word: number for number, word in enumerate(kept, UNKNOWN + 1)}

    def __len__(self) -> int:
        return len(self._ids) + UNKNOWN + 1

    def batch(self, texts: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        """Ids that are read and ids to be predicted, both (texts, longest); the latter -100 where nothing is."""
        rows = [[self._ids.get(word, UNKNOWN) for word in split_words(text or "")][:LONGEST] for text in texts]
        longest = max(map(len, rows)) + 1
        read = torch.full((len(rows), longest), END)
        wanted = torch.full_like(read, -100)
        for number, row in enumerate(rows):
            read[number, : len(row) + 1] = torch.tensor([START, *row])
            if row:
                wanted[number, : len(row) + 1] = torch.tensor([*row, END])
        return read, wanted


class Reader(nn.Module):
    """Features of semantic codes, then words: a causal transformer."""

    def __init__(self, words: int, prefix: int, width: int, depth: int = 2, heads: int = 8, dropout: float = 0.15) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.positions = nn.Parameter(torch.randn(1, prefix + LONGEST + 1, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, 0.0, F.gelu, batch_first=True, norm_first=True)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, words)

    def forward(self, told: Tensor, read: Tensor, wanted: Tensor) -> Tensor:
        """Mean cross-entropy of `wanted`, given `told` (batch, prefix, width) and the ids `read` (batch, length)."""
        x = torch.cat([told, self.embedding(read).to(told.dtype)], 1)
        x = self.dropout(x + self.positions[:, : x.shape[1]])
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
        x = self.norm(self.layers(x, mask=mask, is_causal=True)[:, told.shape[1] :])
        asked = wanted != -100
        return F.cross_entropy(self.head(x[asked]).float(), wanted[asked]) if asked.any() else x.new_zeros(())
