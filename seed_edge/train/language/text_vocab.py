"""Trains the text tokenizer of a new language model: BPE with byte fallback, as LLaMA's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from seed_edge.atomic import replacing
from seed_edge.data.phrasing import caption, request
from seed_edge.data.samples import Sample
from seed_edge.errors import DataError
from seed_edge.models.llama_files import PIECES_FILE

BOS_ID, EOS_ID = 1, 2


def train_pieces(
    samples: Sequence[Sample], count: int, folder: Path, seed: int
) -> sentencepiece.SentencePieceProcessor:
    """Train `folder/tokenizer.model` on captions and requests; a finished tokenizer there is opened instead.

    Args:
        count: size of the vocabulary.

    Raises:
        DataError: the texts are too few for this vocabulary.
    """
    path = folder / PIECES_FILE
    if not path.exists():
        rng = np.random.default_rng(seed)
        training = [sample for sample in samples if not sample.held_out]
        texts = [text.lower() for sample in training for text in sample.captions]
        for sample in training:
            texts += [
                text for text in (caption(sample, rng), request(sample, rng), request(sample, rng)) if text
            ]
        _train(texts, count, path)
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def _train(texts: Sequence[str], count: int, path: Path) -> None:
    with replacing(path) as partial, open(partial, "wb") as file:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=file,
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
            raise DataError(
                f"{len(texts):,} texts are too few for {count} pieces ({reason}); lower model.text_vocab_size"
            ) from error
