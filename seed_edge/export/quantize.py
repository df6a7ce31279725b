"""Smaller weight types of a GGUF file, made by llama.cpp itself; every type it offers.

Embeddings and output stay at Q8_0: the rows of the codes lie close together and are read as often as any word.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Any

import llama_cpp

from seed_edge.errors import CheckpointError
from seed_edge.export.gguf import LlamaFolder, write_gguf
from seed_edge.vocab import Vocab

DIRECT = ("F32", "F16", "BF16", "Q8_0")
"""Written without llama.cpp, by `gguf`."""
_NAMES = {
    match[1]: value
    for name, value in vars(llama_cpp).items()
    if (match := re.fullmatch(r"LLAMA_FTYPE_(?:MOSTLY|ALL)_([A-Z0-9_]+)", name)) and match[1] != "MXFP4_MOE"
}
KEPT = llama_cpp.GGML_TYPE_Q8_0
LOG_ERROR = 3


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
    lines: list[str] = []

    @llama_cpp.llama_log_callback
    def on_log(level: int, text: bytes, _: Any) -> None:
        if level == LOG_ERROR:
            lines.append(text.decode("utf-8", "replace").strip())

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = _NAMES[weight_type], threads
    params.output_tensor_type = params.token_embedding_type = KEPT
    llama_cpp.llama_log_set(on_log, ctypes.c_void_p(0))
    try:
        status = llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(params))
    finally:
        llama_cpp.llama_log_set(llama_cpp.llama_log_callback(0), ctypes.c_void_p(0))
    if status:
        reason = lines[-1] if lines else "no reason given"
        raise CheckpointError(f"llama.cpp cannot write {weight_type} ({reason}); choose another --weight-type")


def write_as(llama: LlamaFolder, vocab: Vocab, path: Path, weight_type: str, name: str, threads: int) -> None:
    """Write a checkpoint as any weight type; one that llama.cpp must make goes over an F16 file beside `path`."""
    if weight_type in DIRECT:
        write_gguf(llama, vocab, path, weight_type, name)
        return
    plain = path.with_suffix(".f16")
    write_gguf(llama, vocab, plain, "F16", name)
    quantize(plain, path, weight_type, threads)
    plain.unlink()
