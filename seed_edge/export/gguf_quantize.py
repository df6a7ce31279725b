"""Quantizes GGUF files with llama.cpp, to any weight type that it offers.

Embeddings and output head stay at Q8_0: the rows of the codes lie close together and are used as often as
those of any word.
"""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

from seed_edge import native
from seed_edge.errors import CheckpointError
from seed_edge.export.gguf import LlamaFolder, write_gguf
from seed_edge.vocab import Vocab

llama_cpp = native.llama_cpp()
DIRECT_TYPES = ("F32", "F16", "BF16", "Q8_0")
"""Weight types that are written by the package `gguf`, without llama.cpp."""
_NAMES = {
    match[1]: value
    for name, value in vars(llama_cpp).items()
    if (match := re.fullmatch(r"LLAMA_FTYPE_(?:MOSTLY|ALL)_([A-Z0-9_]+)", name)) and match[1] != "MXFP4_MOE"
}
EMBEDDING_TYPE = llama_cpp.GGML_TYPE_Q8_0


def weight_types() -> tuple[str, ...]:
    """Return all weight types that can be written, `DIRECT_TYPES` first."""
    return (*DIRECT_TYPES, *sorted(set(_NAMES) - set(DIRECT_TYPES)))


def bits_of(weight_type: str) -> int:
    """Return the bits per weight in a type's name: 4 for `Q4_K_M`, `IQ4_XS` and `MXFP4`."""
    return int(next(letter for letter in weight_type if letter.isdigit()))


def quantize(source: Path, path: Path, weight_type: str, threads: int) -> None:
    """Write `source`, an F32, F16 or BF16 file, as `weight_type` to `path`.

    Raises:
        CheckpointError: llama.cpp cannot write the file; the message contains its reason.
    """
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = _NAMES[weight_type], threads
    params.output_tensor_type = params.token_embedding_type = EMBEDDING_TYPE
    native.clear_llama_errors()
    if llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(path), ctypes.byref(params)):
        reason = native.last_llama_error()
        raise CheckpointError(
            f"llama.cpp cannot write {weight_type} ({reason}); choose another --weight-type"
        )


def write_as(llama: LlamaFolder, vocab: Vocab, path: Path, weight_type: str, name: str, threads: int) -> None:
    """Write a checkpoint as any weight type; types that llama.cpp writes need a temporary F16 file beside
    `path`.
    """
    if weight_type in DIRECT_TYPES:
        write_gguf(llama, vocab, path, weight_type, name)
        return
    f16_path = path.with_suffix(".f16")
    write_gguf(llama, vocab, f16_path, "F16", name)
    quantize(f16_path, path, weight_type, threads)
    f16_path.unlink()
