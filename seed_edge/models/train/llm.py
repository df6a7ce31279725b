"""Trains the language model: LLaMA whose vocabulary holds text pieces, then the codes, then BOI and EOI.

Next-token loss on the answer: image to caption and words to image, half and half. Writes a folder in the layout of
Hugging Face checkpoints (`config.json`, `model.safetensors`, `tokenizer.model`, `added_tokens.json`), which is what
export reads.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from seed_edge.errors import DataError
from seed_edge.models.checkpoints import load_image_tokenizer
from seed_edge.models.train.drawings import CANONICAL
from seed_edge.models.train.loop import Loop, optimizers_for
from seed_edge.models.train.samples import VIEWS, Cache, Sample, build_cache
from seed_edge.models.train.texts import STYLE_WORDS, caption, request
from seed_edge.models.train.tokenizer import CODES_FILE, codes_of_cache
from seed_edge.prompts import Prompts
from seed_edge.vocab import Vocab

LLM_FOLDER = "llm"
BOI, EOI, CODE = "<img>", "</img>", "<img_{:05d}>"
PROMPTS = Prompts(caption="{bos}{images}", draw="{bos}{text}{boi}", lowercase=True)
CONTEXT = 128
BOS_ID, EOS_ID = 1, 2


@dataclass(frozen=True)
class LlmRecipe:
    """Shape of the model and knobs of one training run."""

    steps: int = 5200
    batch: int = 64
    rate: float = 2e-3
    """Peak learning rate."""
    warmup: int = 60
    weight_decay: float = 0.05
    text_pieces: int = 4096
    width: int = 256
    depth: int = 8
    heads: int = 8
    mlp: int = 704
    dropout: float = 0.1
    """Of attention weights."""
    caption_shares: tuple[float, ...] = (0.0, 0.0, 0.24, 0.08, 0.46, 0.22)
    """Of the pools of pictures (`POOLS`) among pictures to caption."""
    draw_shares: tuple[float, ...] = (0.5, 0.1, 0.0, 0.3, 0.07, 0.03)
    """The same among pictures to draw."""
    wordless: float = 0.1
    """Share of pictures to draw without being told what, which is what guidance at run time starts from."""
    seed: int = 0


def train_pieces(cache: Cache, count: int, folder: Path, seed: int) -> sentencepiece.SentencePieceProcessor:
    """Train `tokenizer.model` (BPE with byte fallback, as LLaMA's) on captions and requests; reuse a finished one."""
    path = folder / "tokenizer.model"
    if not path.exists():
        rng = np.random.default_rng(seed)
        texts = [t.lower() for sample in cache.samples if not sample.held_out for t in sample.captions]
        for sample in cache.samples:
            if not sample.held_out:
                texts += [text for text in (caption(sample, rng), request(sample, rng), request(sample, rng)) if text]
        _train_pieces(texts, count, path)
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def _train_pieces(texts: list[str], count: int, path: Path) -> None:
    partial = path.with_name("pieces")
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_prefix=str(partial),
            model_type="bpe",
            vocab_size=count,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            split_digits=True,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise DataError(f"{len(texts):,} texts do not give {count} pieces ({reason}); lower --text-pieces") from error
    partial.with_suffix(".vocab").unlink()
    os.replace(partial.with_suffix(".model"), path)


def extended_vocab(text_pieces: int, codebook_size: int, codes_per_image: int) -> Vocab:
    """Codes after the text pieces, then BOI and EOI: the order of SEED-LLaMA."""
    return Vocab(
        size=text_pieces + codebook_size + 2,
        first_code_id=text_pieces,
        codebook_size=codebook_size,
        codes_per_image=codes_per_image,
        bos_id=BOS_ID,
        eos_id=EOS_ID,
        boi_id=text_pieces + codebook_size,
        eoi_id=text_pieces + codebook_size + 1,
    )


def write_added_tokens(vocab: Vocab, folder: Path) -> None:
    """`added_tokens.json`, as SEED-LLaMA's tokenizer has it."""
    tokens = {CODE.format(code): vocab.first_code_id + code for code in range(vocab.codebook_size)}
    tokens |= {BOI: vocab.boi_id, EOI: vocab.eoi_id}
    (folder / "added_tokens.json").write_text(json.dumps(tokens) + "\n")


POOLS = ("canonical", "styled", "drawings", "composites", "sentences", "labelled")
"""Kinds of pictures: single things as they are drawn unasked; in styles that have a name; in any style; several things; photos
with whole sentences; photos with a name."""


def canonical_labels(cache: Cache) -> frozenset[str | None]:
    """Labels that there is a drawing of in the canonical style."""
    return frozenset(sample.label for sample in cache.samples if sample.style == CANONICAL)


def pools_of(sample: Sample, canonical: frozenset[str | None]) -> set[str]:
    """Which of `POOLS` a sample belongs to."""
    if sample.captions:
        return {"sentences"}
    if sample.phrases:
        return {"composites"}
    if sample.label is None:
        return set()
    if sample.style is None:
        return {"labelled"}
    unasked = sample.style == CANONICAL or sample.label not in canonical
    return {"drawings"} | ({"canonical"} if unasked else set()) | ({"styled"} if sample.style in STYLE_WORDS else set())


class ExampleSource:
    """Draws batches of ids with a mask of what is to be predicted."""

    def __init__(
        self,
        cache: Cache,
        codes: NDArray[np.int64],
        vocab: Vocab,
        tokenize: Callable[[str], list[int]],
        recipe: LlmRecipe,
    ) -> None:
        self.cache, self.codes, self.vocab, self.tokenize, self.recipe = cache, codes, vocab, tokenize, recipe
        rows = cache.rows(held_out=False)
        kept = [pools_of(cache.samples[row // VIEWS], canonical_labels(cache)) for row in rows]
        self.pools = [rows[[name in names for names in kept]] for name in POOLS]
        if not any(len(pool) for pool in self.pools):
            raise DataError("no picture has a caption or a label; give data with texts")

    def _row(self, shares: Sequence[float], rng: np.random.Generator) -> int:
        there = np.array(shares) * [len(pool) > 0 for pool in self.pools]
        if not there.sum():
            there = np.array([len(pool) > 0 for pool in self.pools], float)
        return int(rng.choice(self.pools[rng.choice(len(POOLS), p=there / there.sum())]))

    def example(self, rng: np.random.Generator) -> tuple[list[int], int]:
        """Ids of one example, and how many of them at the end are the answer."""
        if rng.random() < 0.5:
            row = self._row(self.recipe.caption_shares, rng)
            text = caption(self.cache.samples[row // VIEWS], rng)
            prompt = PROMPTS.for_caption(self.vocab, self.tokenize, self.codes[row + int(rng.integers(VIEWS))])
            answer = [*self.tokenize(text or ""), self.vocab.eos_id]
        else:
            row = self._row(self.recipe.draw_shares, rng)
            text = request(self.cache.samples[row // VIEWS], rng)
            if text and rng.random() >= self.recipe.wordless:
                prompt = PROMPTS.for_drawing(self.vocab, self.tokenize, text)
            else:
                prompt = PROMPTS.for_any_drawing(self.vocab, self.tokenize)
            answer = [*self.vocab.codes_to_ids(self.codes[row])[1:], self.vocab.eos_id]
        ids = (prompt + answer)[:CONTEXT]
        return ids, min(len(answer), len(ids))

    def batch(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Ids and labels, both (batch, longest); labels are -100 where nothing is predicted."""
        examples = [self.example(rng) for _ in range(self.recipe.batch)]
        longest = max(len(ids) for ids, _ in examples)
        ids = torch.zeros(len(examples), longest, dtype=torch.long)
        labels = torch.full_like(ids, -100)
        for row, (example, answer) in enumerate(examples):
            ids[row, : len(example)] = torch.tensor(example)
            labels[row, len(example) - answer : len(example)] = torch.tensor(example[-answer:])
        return ids, labels


def new_llama(vocab: Vocab, recipe: LlmRecipe) -> LlamaForCausalLM:
    """A LLaMA with random weights."""
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab.size,
            hidden_size=recipe.width,
            intermediate_size=recipe.mlp,
            num_hidden_layers=recipe.depth,
            num_attention_heads=recipe.heads,
            max_position_embeddings=CONTEXT,
            rms_norm_eps=1e-6,
            attention_dropout=recipe.dropout,
            bos_token_id=vocab.bos_id,
            eos_token_id=vocab.eos_id,
            tie_word_embeddings=False,
        )
    )


def train_llm(tars: Sequence[Path], run: Path, recipe: LlmRecipe, report: Callable[[str], None]) -> None:
    """Train a language model for the image tokenizer in `run`; writes `run/llm`.

    Interrupted, the same call goes on at the last saved step.
    """
    images = load_image_tokenizer(run)
    geometry, out = images.geometry, run / LLM_FOLDER
    out.mkdir(exist_ok=True)
    cache = build_cache(tars, run / "cache", images.trunk, geometry, report)
    codes = codes_of_cache(images, cache, run / CODES_FILE)
    pieces = train_pieces(cache, recipe.text_pieces, out, recipe.seed)
    vocab = extended_vocab(pieces.get_piece_size(), geometry.codebook_size, geometry.num_queries)
    write_added_tokens(vocab, out)
    model = new_llama(vocab, recipe)
    source = ExampleSource(cache, codes, vocab, pieces.encode, recipe)

    def losses_of(step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        ids, labels = source.batch(rng)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.model(ids).last_hidden_state[:, :-1]
            wanted = labels[:, 1:]
            predicted = model.lm_head(hidden[wanted != -100]).float()
        wanted = wanted[wanted != -100]
        each = F.cross_entropy(predicted, wanted, reduction="none")
        drawn = wanted >= vocab.first_code_id
        share = drawn.float().mean()
        return {
            "caption": each[~drawn].mean() * (1 - share) if (~drawn).any() else each.new_zeros(()),
            "draw": each[drawn].mean() * share if drawn.any() else each.new_zeros(()),
        }

    def after(step: int) -> None:
        model.save_pretrained(out)

    optimizers = optimizers_for([model], recipe.weight_decay, heads=[model.lm_head])
    Loop(out, recipe.steps, recipe.seed, report).run(
        {"llm": model}, optimizers, losses_of, recipe.rate, recipe.warmup, after=after
    )
