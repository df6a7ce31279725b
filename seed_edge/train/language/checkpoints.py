"""Reads and writes LLaMA checkpoints in Hugging Face's layout; adds rows for codes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from peft import PeftModel
from transformers import LlamaForCausalLM, PreTrainedModel

from seed_edge.errors import CheckpointError
from seed_edge.models.checkpoints import UNREADABLE, check_not_inflated, reason_of
from seed_edge.models.llama_files import (
    ADDED_TOKENS_FILE,
    extended_vocab,
    read_added_tokens,
    read_config,
    read_pieces,
    vocab_of,
)
from seed_edge.vocab import CodeSpace, Vocab


def open_llama(path: Path, space: CodeSpace, bf16: bool = False) -> tuple[LlamaForCausalLM, Vocab]:
    """Open a LLaMA in Hugging Face's layout; rows for codes are added where it has none.

    Raises:
        CheckpointError: a file is missing or damaged, or its codes do not fit `space`.
    """
    pieces, size = read_pieces(path), int(read_config(path)["vocab_size"])
    if (path / ADDED_TOKENS_FILE).exists():
        vocab = vocab_of(read_added_tokens(path), pieces, size, space.codes_per_image, path)
    else:
        vocab = extended_vocab(pieces, space.codebook_size, space.codes_per_image)
    if vocab.codes != space:
        raise CheckpointError(
            f"{path} has {vocab.codes}, the samples have {space}; they belong to different image tokenizers"
        )
    model = load_llama(path, bf16)
    if size != vocab.size:
        model.resize_token_embeddings(vocab.size, mean_resizing=False)
    model.config.use_cache = False
    return model, vocab


def load_llama(path: Path, bf16: bool) -> LlamaForCausalLM:
    """Load weights and configuration, in bf16 or fp32.

    Raises:
        CheckpointError: a file is missing or damaged, or a tensor is missing.
    """
    read_config(path)
    for weights in path.glob("*.bin"):
        check_not_inflated(weights)
    try:
        model, info = LlamaForCausalLM.from_pretrained(
            path, dtype=torch.bfloat16 if bf16 else torch.float32, output_loading_info=True
        )
    except UNREADABLE as error:
        raise CheckpointError(f"{path} cannot be read ({reason_of(error)})") from error
    if info["missing_keys"]:  # transformers would continue with random weights
        raise CheckpointError(
            f"{path} cannot be read (tensor {min(info['missing_keys'])} is missing); copy or download it "
            "again"
        )
    return model


def save_checkpoint(model: PreTrainedModel | PeftModel, out: Path) -> None:
    """Write a model or an adapter with `save_pretrained`; each file appears when complete, weights last."""
    with tempfile.TemporaryDirectory(dir=out) as folder:
        model.save_pretrained(folder)
        for path in sorted(Path(folder).iterdir(), key=lambda path: path.suffix == ".safetensors"):
            os.replace(path, out / path.name)
