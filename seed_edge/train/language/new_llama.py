"""Trains a small LLaMA from random weights on folders of codes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from seed_edge.data.code_shards import Codebook, read_code_shards, read_codebook
from seed_edge.data.subsets import shared_pools
from seed_edge.models.llama_files import extended_vocab, write_added_tokens
from seed_edge.output_checks import RUN_FILES, prepare_output_folder
from seed_edge.prompts import TEMPLATES
from seed_edge.train.language.code_embeddings import code_row_vectors, code_slice, freeze_rows
from seed_edge.train.language.examples import ExampleBuilder, Mixture, without_blocked_terms
from seed_edge.train.language.loss import LanguageLoss
from seed_edge.train.language.preview import Preview
from seed_edge.train.language.recipes import LlamaRecipe, NewLlamaRecipe
from seed_edge.train.language.run import train_language_model
from seed_edge.train.language.text_vocab import train_pieces
from seed_edge.train.trainer import Report
from seed_edge.vocab import Vocab


def new_llama(
    vocab: Vocab, shape: LlamaRecipe, seed: int, codebook: Codebook | None = None
) -> LlamaForCausalLM:
    """Return a LLaMA with random weights; with a `codebook`, similar codes start with similar rows in its
    table and head.
    """
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab.size,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            max_position_embeddings=shape.max_length,
            rms_norm_eps=1e-6,
            bos_token_id=vocab.bos_id,
            eos_token_id=vocab.eos_id,
            tie_word_embeddings=False,
        )
    )
    model.set_attn_implementation("eager")  # on CPU, the backward pass of fused attention takes twice as long
    if codebook is not None:
        rows = code_slice(vocab)
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight.data[rows] = code_row_vectors(codebook, shape.hidden_size) * layer.weight.std()
        freeze_rows(model, rows)
    return model


def train_new_llama(
    codes: Sequence[Path], out: Path, recipe: NewLlamaRecipe, report: Report, preview: Preview | None = None
) -> None:
    """Train a new language model on folders of codes and write it into `out`.

    After an interruption, the same call resumes at the last checkpoint.

    Raises:
        DataError: the folders cannot be read, or their texts are too few for the text vocabulary.
    """
    prepare_output_folder(out, "run", codes, RUN_FILES)
    space, folders = read_code_shards(codes)
    samples = [
        item for folder in folders.values() for item in without_blocked_terms(folder, recipe.blocked_terms)
    ]
    seed = recipe.schedule.seed
    pieces = train_pieces([item.sample for item in samples], recipe.model.text_vocab_size, out, seed)
    vocab = extended_vocab(pieces, space.codebook_size, space.codes_per_image)
    write_added_tokens(vocab, out)
    model = new_llama(vocab, recipe.model, seed, read_codebook(codes))
    builder = ExampleBuilder(
        vocab, pieces.encode, TEMPLATES["own"], uncond_prob=recipe.uncond_prob, code_noise=recipe.code_noise
    )
    shares = {"caption": recipe.caption_shares, "draw": recipe.draw_shares}

    def mixture_of(held_out: bool) -> Mixture:
        chosen = [item for item in samples if item.sample.held_out == held_out]
        known = [item.sample for item in chosen]
        pools = {
            task: [
                ([chosen[number] for number in numbers], share)
                for numbers, share in shared_pools(known, pool_shares)
            ]
            for task, pool_shares in shares.items()
        }
        return Mixture(builder, {"caption": 1 - recipe.draw_share, "draw": recipe.draw_share}, pools)

    loss_module = LanguageLoss(model, vocab, recipe.text_weight)
    train_language_model(
        loss_module, builder, mixture_of, recipe.schedule, recipe.model.max_length, out, report, preview
    )
