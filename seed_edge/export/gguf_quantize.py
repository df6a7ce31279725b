"""Smaller weight types of a GGUF file, made by llama.cpp itself; every type it offers.

Embeddings and output stay at Q8_0: the rows of the codes lie close together and are read as often as any
word.
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
DIRECT = ("F32", "F16", "BF16", "Q8_0")
"""Written without llama.cpp, by `gguf`."""
_NAMES = {
    match[1]: value
    for name, value in vars(llama_cpp).items()
    if (match := re.fullmatch(r"LLAMA_FTYPE_(?:MOSTLY|ALL)_([A-Z0-9_]+)", name)) and match[1] != "MXFP4_MOE"
}
KEPT = llama_cpp.GGML_TYPE_Q8_0


def weight_types() -> tuple[str, ...]:
    """Every weight type this llama.cpp can write, plain ones first."""
    return (*DIRECT, *sorted(set(_NAMES) - set(DIRECT)))


def bits_of(weight_type: str) -> int:
    """Bits per weight, as a type's name says: 4 for `Q4_K_M`, `IQ4_XS` and `MXFP4`."""
    return int(next(letter for letter in weight_type if letter.isdigit()))


def quantize(source: Path, path: Path, weight_type: str, threads: int) -> None:
    """Write `source`, an F32, F16 or BF16 file, as `weight_type` to `path`.

    Raises:
        CheckpointError: llama.cpp refuses; its reason is given.
    """
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = _NAMES[weight_type], threads
    params.output_tensor_type = params.token_embedding_type = KEPT
    native.forget_llama_errors()
    if llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(path), ctypes.byref(params)):
        reason = native.last_llama_error()
        raise CheckpointError(
            f"llama.cpp cannot write {weight_type} ({reason}); choose another --weight-type"
        )


def write_as(llama: LlamaFolder, vocab: Vocab, path: Path, weight_type: str, name: str, threads: int) -> None:
    """Write a checkpoint as any weight type; one that llama.cpp must make goes over an F16 file beside
    `path`.
    """
    if weight_type in DIRECT:
        write_gguf(llama, vocab, path, weight_type, name)
        return
    plain = path.with_suffix(".f16")
    write_gguf(llama, vocab, plain, "F16", name)
    quantize(plain, path, weight_type, threads)
    plain.unlink()
