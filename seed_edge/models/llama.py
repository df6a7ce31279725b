"""Files of a LLaMA with codes in its vocabulary, in Hugging Face's layout: what is not weights."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sentencepiece

from seed_edge.errors import CheckpointError
from seed_edge.vocab import Vocab

LLM_FOLDER = "llm"
"""In the folder of a run: its language model."""
PIECES_FILE, ADDED_TOKENS_FILE, CONFIG_FILE = "tokenizer.model", "added_tokens.json", "config.json"
TEMPLATE = "seed_template"
"""In a configuration: the family of prompts that the model was trained on."""
CODE_TOKEN = "<img_{:05d}>"
CODE_PATTERN = re.compile(r"<img_(\d+)>")
BOI_TOKEN, EOI_TOKEN = "<img>", "</img>"


def read_json(path: Path) -> Any:
    """A JSON file of a checkpoint.

    Raises:
        CheckpointError: it is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error})") from error


def read_pieces(folder: Path) -> sentencepiece.SentencePieceProcessor:
    """The text pieces in `folder`.

    Raises:
        CheckpointError: the file is missing or is no SentencePiece model.
    """
    model = folder / PIECES_FILE
    if not model.is_file():
        raise CheckpointError(f"{model} is missing; it holds the language model's text pieces")
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(model))
    except RuntimeError as error:
        raise CheckpointError(f"{model} is no SentencePiece model ({error})") from error


def extended_vocab(pieces: sentencepiece.SentencePieceProcessor, codebook_size: int, codes_per_image: int) -> Vocab:
    """Codes after the text pieces, then BOI and EOI: the order of SEED-LLaMA."""
    first = pieces.get_piece_size()
    return Vocab(
        size=first + codebook_size + 2,
        first_code_id=first,
        codebook_size=codebook_size,
        codes_per_image=codes_per_image,
        bos_id=pieces.bos_id(),
        eos_id=pieces.eos_id(),
        boi_id=first + codebook_size,
        eoi_id=first + codebook_size + 1,
    )


def write_added_tokens(vocab: Vocab, folder: Path) -> None:
    """`added_tokens.json`, as SEED-LLaMA's tokenizer has it."""
    tokens = {CODE_TOKEN.format(code): vocab.first_code_id + code for code in range(vocab.codebook_size)}
    tokens |= {BOI_TOKEN: vocab.boi_id, EOI_TOKEN: vocab.eoi_id}
    (folder / ADDED_TOKENS_FILE).write_text(json.dumps(tokens) + "\n")


def vocab_of(
    added: Mapping[str, int],
    pieces: sentencepiece.SentencePieceProcessor,
    size: int,
    codes_per_image: int,
    where: Path,
) -> Vocab:
    """Where the codes live, as `added_tokens.json` says.

    Args:
        added: contents of that file.
        size: number of ids that `config.json` tells.
        where: folder of that file, for errors.

    Raises:
        CheckpointError: codes are not contiguous, BOI or EOI is missing, ids overlap or leave gaps.
    """
    file = where / ADDED_TOKENS_FILE
    codes = {int(match[1]): token_id for token, token_id in added.items() if (match := CODE_PATTERN.fullmatch(token))}
    if not codes:
        raise CheckpointError(f"{file} names no codes (<img_00000> ...)")
    first = codes.get(0, -1)
    for code in range(len(codes)):
        if codes.get(code) != first + code:
            raise CheckpointError(f"{file}: code {code} should have id {first + code}, has {codes.get(code)}")
    for token in (BOI_TOKEN, EOI_TOKEN):
        if token not in added:
            raise CheckpointError(f"{file} does not name {token}")
    text = pieces.get_piece_size()
    if sorted(added.values()) != list(range(text, size)):
        raise CheckpointError(
            f"{file}: added ids must be {text} to {size - 1}, all of them once: {text} text pieces come before, "
            f"{CONFIG_FILE} says {size} ids in all"
        )
    return Vocab(
        size=size,
        first_code_id=first,
        codebook_size=len(codes),
        codes_per_image=codes_per_image,
        bos_id=pieces.bos_id(),
        eos_id=pieces.eos_id(),
        boi_id=added[BOI_TOKEN],
        eoi_id=added[EOI_TOKEN],
    )
