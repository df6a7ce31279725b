"""Reads and writes the files of a LLaMA in Hugging Face's layout, except its weights; its vocabulary has
codes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sentencepiece

from seed_edge.display import printable, shown
from seed_edge.errors import CheckpointError
from seed_edge.inputs import read_bytes
from seed_edge.models.fields import Fields, read_checked_json
from seed_edge.vocab import Vocab

LLM_FOLDER = "llm"
"""Folder of the language model within a run."""
PIECES_FILE, ADDED_TOKENS_FILE, CONFIG_FILE = "tokenizer.model", "added_tokens.json", "config.json"
TEMPLATE = "seed_template"
"""Key of `config.json`: name of the prompt template that the model was trained with."""
CODE_TOKEN = "<img_{:05d}>"
CODE_PATTERN = re.compile(r"<img_([0-9]{1,9})>")
BOI_TOKEN, EOI_TOKEN = "<img>", "</img>"


MAX_PIECES = 64 << 20
"""Maximum size of `tokenizer.model`, in bytes."""
MAX_IDS = 1 << 22
MAX_LAYERS, MAX_WIDTH, MAX_HEADS, MAX_CONTEXT = 512, 1 << 16, 1 << 10, 1 << 24
MIN_EPSILON, MAX_EPSILON, MAX_ROPE_BASE = 1e-12, 1e-1, 1e12


def read_json(path: Path) -> Any:
    """Return the value of a JSON file of a checkpoint.

    Raises:
        CheckpointError: it is missing or is not JSON.
    """
    return read_checked_json(path)


def read_config(folder: Path) -> dict[str, Any]:
    """Read `config.json` of a LLaMA, and check type and range of every key that is used.

    Raises:
        CheckpointError: the file is missing or damaged, or a key, which is named, is not that of a LLaMA.
    """
    fields = Fields.read(folder / CONFIG_FILE)
    fields.check_magnitudes("rope_theta")
    heads = fields.integer("num_attention_heads", 1, MAX_HEADS)
    width = fields.integer("hidden_size", 1, MAX_WIDTH)
    config = dict(fields.values) | {
        "num_attention_heads": heads,
        "num_key_value_heads": fields.integer("num_key_value_heads", 1, heads, default=heads),
        "num_hidden_layers": fields.integer("num_hidden_layers", 1, MAX_LAYERS),
        "hidden_size": width,
        "intermediate_size": fields.integer("intermediate_size", 1, 8 * MAX_WIDTH),
        "vocab_size": fields.integer("vocab_size", 1, MAX_IDS),
        "max_position_embeddings": fields.integer("max_position_embeddings", 1, MAX_CONTEXT),
        "rms_norm_eps": fields.number("rms_norm_eps", MIN_EPSILON, MAX_EPSILON),
        "rope_theta": fields.number("rope_theta", 1.0, MAX_ROPE_BASE, default=10000.0),
    }
    if width % heads or width // heads % 2:
        raise CheckpointError(
            f"{fields.where}: num_attention_heads is {heads}; hidden_size {width} must be an even "
            "multiple of it"
        )
    if heads % config["num_key_value_heads"]:
        raise CheckpointError(
            f"{fields.where}: num_key_value_heads {config['num_key_value_heads']} does not divide "
            f"num_attention_heads {heads}"
        )
    fields.check_value("head_dim", width // heads)
    fields.check_value("model_type", "llama")
    fields.check_value("hidden_act", "silu")
    fields.check_value("attention_bias", False)
    fields.check_value("mlp_bias", False)
    fields.check_value("quantization_config")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if not isinstance(fields.values.get(name), list):
            fields.integer(name, -1, MAX_IDS, default=0)
    _check_rope(fields)
    fields.text(TEMPLATE, default="")
    return config


def _check_rope(fields: Fields) -> None:
    """Check that positions are not scaled, since the exported GGUF file would not contain the scaling."""
    scaling = fields.values.get("rope_scaling")
    if scaling is None:
        return
    unscaled = isinstance(scaling, dict) and all(
        scaling.get(name) in (None, "default") for name in ("rope_type", "type")
    )
    if not unscaled:
        raise CheckpointError(
            f"{fields.where}: rope_scaling is {shown(scaling)}; only models without it can be converted"
        )


def read_added_tokens(folder: Path) -> dict[str, int]:
    """Read `added_tokens.json`: token -> id.

    Raises:
        CheckpointError: it is missing, or is not an object of distinct texts and integers.
    """
    path = folder / ADDED_TOKENS_FILE
    fields = Fields.read(path)
    if len(fields.values) > MAX_IDS:
        raise CheckpointError(f"{path}: {len(fields.values):,} tokens; a model has at most {MAX_IDS:,}")
    added = {token: fields.integer(token, 0, MAX_IDS) for token in fields.values}
    invalid = next((token for token in added if not token or not _is_utf8(token)), None)
    if invalid is not None:
        raise CheckpointError(f"{path}: the token {shown(invalid)} is empty or not valid text")
    return added


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def read_pieces(folder: Path) -> sentencepiece.SentencePieceProcessor:
    """Read the SentencePiece model in `folder`.

    Raises:
        CheckpointError: the file is missing or is not a SentencePiece model.
    """
    model = folder / PIECES_FILE
    if not model.exists():
        raise CheckpointError(f"{model} is missing; it contains the language model's text pieces")
    data = read_bytes(model, MAX_PIECES, CheckpointError)
    if not data:
        raise CheckpointError(f"{model} is not a SentencePiece model (it is empty)")
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_proto=data)
    except RuntimeError as error:
        raise CheckpointError(f"{model} is not a SentencePiece model ({printable(str(error))})") from error
    if not 0 < pieces.get_piece_size() <= MAX_IDS:
        raise CheckpointError(f"{model} is not a SentencePiece model (it contains no pieces)")
    if min(pieces.bos_id(), pieces.eos_id(), pieces.unk_id()) < 0:
        raise CheckpointError(
            f"{model}: BOS, EOS or the unknown piece is missing; it is not the tokenizer of a LLaMA"
        )
    return pieces


def extended_vocab(
    pieces: sentencepiece.SentencePieceProcessor, codebook_size: int, codes_per_image: int
) -> Vocab:
    """Return the vocabulary with codes after the text pieces, then BOI and EOI: the order of SEED-LLaMA."""
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
    """Write `added_tokens.json` in the format of SEED-LLaMA's tokenizer."""
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
    """Return the vocabulary of a checkpoint: which ids are text, codes, BOI and EOI.

    Args:
        added: content of `added_tokens.json`.
        size: `vocab_size` of `config.json`.
        where: folder of `added_tokens.json`, for errors.

    Raises:
        CheckpointError: codes are not contiguous, BOI or EOI is missing, ids overlap or leave gaps.
    """
    file = where / ADDED_TOKENS_FILE
    codes = {
        int(match[1]): token_id
        for token, token_id in added.items()
        if (match := CODE_PATTERN.fullmatch(token))
    }
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
    if len(added) != size - text or sorted(added.values()) != list(range(text, size)):
        raise CheckpointError(
            f"{file}: added ids must be {text} to {size - 1}, each once: {text} text pieces come before "
            f"them, and {CONFIG_FILE} gives {size} ids in total"
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
