"""Rows of codes in the embedding table and the output head of a language model."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from seed_edge.data.code_shards import Codebook
from seed_edge.vocab import Vocab


def code_slice(vocab: Vocab) -> slice:
    """Return the rows of the codes in an embedding table or an output head."""
    return slice(vocab.first_code_id, vocab.first_code_id + vocab.codebook_size)


def freeze_rows(model: LlamaForCausalLM, rows: slice) -> None:
    """Exclude `rows` of the embedding table from training.

    Similar codes have similar rows at first. A model that may change each row on its own memorises its
    training images and recognises fewer things in unseen styles (`docs/embedded-model.md`).
    """

    def zero_rows(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient[rows] = 0
        return gradient

    model.get_input_embeddings().weight.register_hook(zero_rows)


def code_row_vectors(codebook: Codebook, width: int) -> Tensor:
    """Return initial embeddings (codebook_size, width) of codes, with mean square 1: similar codes get
    similar rows.

    The codes of each query with separate codebook rows are mapped onto directions that other queries do not
    use, as far as `width` allows, so that the mean over an image preserves each of them. Half of a row is a
    random vector of its query. Random numbers come from PyTorch's global generator.
    """
    vectors = torch.from_numpy((codebook.vectors - codebook.vectors.mean(0)) / codebook.vectors.std())
    (queries, count), dim = codebook.own_rows, vectors.shape[1]
    blocks = [*vectors[: queries * count].split(count)] if count else []
    blocks.append(vectors[queries * count :])
    directions = torch.linalg.qr(torch.randn(width, width)).Q
    rows = []
    for number, block in enumerate(blocks):
        columns = torch.arange(number * dim, (number + 1) * dim) % width
        rows.append(block @ directions[columns] * (width / dim) ** 0.5 + torch.randn(width))
    return torch.cat(rows) / 2**0.5
