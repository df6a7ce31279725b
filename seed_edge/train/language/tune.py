"""Trains a LLaMA checkpoint further on folders of codes: all parameters, or low-rank adapters (LoRA)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from transformers import LlamaForCausalLM

from seed_edge.data.code_shards import CodeSample, read_code_shards
from seed_edge.data.dialogues import dialogues_about
from seed_edge.data.subsets import shared_pools
from seed_edge.errors import DataError
from seed_edge.models.llama_files import PIECES_FILE, TEMPLATE, read_pieces, write_added_tokens
from seed_edge.output_checks import RUN_FILES, prepare_output_folder
from seed_edge.prompts import TEMPLATES
from seed_edge.train.language.checkpoints import open_llama
from seed_edge.train.language.code_embeddings import code_slice, freeze_rows
from seed_edge.train.language.examples import TASKS, ExampleBuilder, Mixture, without_blocked_terms
from seed_edge.train.language.layers import add_layers, interpolated, trainable_weights
from seed_edge.train.language.lora import lora_config
from seed_edge.train.language.loss import LanguageLoss
from seed_edge.train.language.preview import Preview
from seed_edge.train.language.recipes import TuneRecipe
from seed_edge.train.language.replay import replay_samples
from seed_edge.train.language.run import train_language_model
from seed_edge.train.language.scst import CiderReward
from seed_edge.train.trainer import Report
from seed_edge.vocab import Vocab

REPLAY_FOLDER = "/replay"
"""Name of the replay samples among the folders of codes; no folder can have this name."""


def tune_llama(
    llm: Path,
    codes: Sequence[Path],
    out: Path,
    recipe: TuneRecipe,
    report: Report,
    preview: Preview | None = None,
) -> None:
    """Train a checkpoint further on folders of codes; write an adapter, or the whole model, into `out`.

    A checkpoint without codes gets rows for them in its embedding table and its output head. After an
    interruption, the same call resumes at the last checkpoint.

    Raises:
        CheckpointError: the checkpoint is incomplete, or has other codes than the folders.
        DataError: the recipe contradicts itself, or the folders cannot be read.
    """
    prepare_output_folder(out, "run", (llm, *codes), RUN_FILES)
    space, folders = read_code_shards(codes)
    if recipe.template not in TEMPLATES:
        raise DataError(f"template is {recipe.template!r}; it must be one of {', '.join(TEMPLATES)}")
    if recipe.lora is not None and recipe.init_weight_share:
        raise DataError("init_weight_share needs training in full; leave it out with lora")
    torch.manual_seed(recipe.schedule.seed)
    model, vocab = open_llama(llm, space, recipe.bf16_frozen and recipe.lora is not None)
    pieces = read_pieces(llm)
    trained = _prepare_model(model, vocab, recipe)
    builder = ExampleBuilder(
        vocab,
        pieces.encode,
        TEMPLATES[recipe.template],
        recipe.end_with_full_stop,
        recipe.uncond_prob,
        recipe.code_noise,
    )
    folders = {
        name: without_blocked_terms(samples, recipe.blocked_terms) for name, samples in folders.items()
    }
    if recipe.replay_count:
        report(f"replay: drawing {recipe.replay_count} everyday things")
        folders[REPLAY_FOLDER] = replay_samples(model, builder, recipe.replay_count, recipe.schedule.seed)
    shutil.copyfile(llm / PIECES_FILE, out / PIECES_FILE)
    write_added_tokens(vocab, out)
    reward = None
    if recipe.reward is not None:
        training = [item for samples in folders.values() for item in samples if not item.sample.held_out]
        reward = CiderReward(training, builder, pieces.decode, recipe.reward)
    share = recipe.init_weight_share
    train_language_model(
        LanguageLoss(trained, vocab, recipe.text_weight, reward),
        builder,
        partial(_mixture, builder, folders, recipe),
        recipe.schedule,
        recipe.max_length,
        out,
        report,
        preview,
        partial(interpolated, model, share, trainable_weights(model)) if share else nullcontext,
    )


def _prepare_model(model: LlamaForCausalLM, vocab: Vocab, recipe: TuneRecipe) -> LlamaForCausalLM | PeftModel:
    """Return the model with the added layers, the frozen parts and the adapter of the recipe."""
    add_layers(model, recipe.added_layers)
    if recipe.freeze_code_embeddings:
        freeze_rows(model, code_slice(vocab))
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    trained: LlamaForCausalLM | PeftModel = model
    if recipe.lora is not None:
        trained = get_peft_model(model, lora_config(recipe.lora))
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    else:
        for name, module in model.named_modules():
            if name.rpartition(".")[2] in recipe.frozen_modules:
                module.requires_grad_(False)
    model.config.max_position_embeddings = max(model.config.max_position_embeddings, recipe.max_length)
    setattr(model.config, TEMPLATE, recipe.template)
    return trained


def _mixture(
    builder: ExampleBuilder, folders: Mapping[str, Sequence[CodeSample]], recipe: TuneRecipe, held_out: bool
) -> Mixture:
    """Return the mixture of the recipe's tasks, of the samples that are held out or of the others."""
    chosen = {
        name: [item for item in samples if item.sample.held_out == held_out]
        for name, samples in folders.items()
    }
    weighted = [
        (samples, recipe.folder_weights.get(name, float(len(samples)))) for name, samples in chosen.items()
    ]
    pools = dict.fromkeys(TASKS, weighted)
    every = [item for samples in chosen.values() for item in samples]
    about = {task: [(item.sample, item) for item in every] for task in TASKS}
    if recipe.dialogues:
        about["converse"] = dialogues_about(every, recipe.schedule.seed)
        pools["converse"] = [*pools["converse"], ([dialogue for _, dialogue in about["converse"]], 1.0)]
    for task, shares in recipe.pool_shares.items():
        numbered = shared_pools([sample for sample, _ in about[task]], shares)
        pools[task] = [([about[task][number][1] for number in numbers], share) for numbers, share in numbered]
    return Mixture(builder, recipe.tasks, pools)
