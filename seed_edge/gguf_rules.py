"""Rules for the language model of a bundle: exactly the keys, tensors and vocabulary that `export` writes.

llama.cpp supports many architectures and aborts the process if their parameters are inconsistent. Therefore a
file is accepted only if every parameter that llama.cpp uses is known and consistent with the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from seed_edge.errors import BundleError
from seed_edge.gguf_header import TENSOR_TYPES, GgufHeader, Items, TensorInfo
from seed_edge.vocab import Vocab

ARCHITECTURE = "llama"
MODEL, TOKENS, SCORES, TYPES = (
    f"tokenizer.ggml.{name}" for name in ("model", "tokens", "scores", "token_type")
)
MAX_LAYERS, MAX_HEADS, MAX_WIDTH, MAX_CONTEXT = 512, 512, 1 << 16, 1 << 20
MAX_PIECE = 1024
"""Maximum UTF-8 bytes of a token."""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of tokens."""
BYTE_PIECES = frozenset(f"<0x{byte:02X}>" for byte in range(256))
MATRIX_TYPES = frozenset(name for name, *_ in TENSOR_TYPES.values()) - {"F64", "I8", "I16", "I32", "I64"}
"""Tensor types of matrices; norms are F32."""


def _int_between(minimum: int, maximum: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and minimum <= value <= maximum


def _float_between(minimum: float, maximum: float) -> Callable[[Any], bool]:
    return lambda value: type(value) is float and minimum <= value <= maximum  # False for NaN


def _equals(expected: Any) -> Callable[[Any], bool]:
    return lambda value: type(value) is type(expected) and value == expected


def _is_short_string(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_PIECE


def _is_array(value: Any) -> bool:
    return isinstance(value, Items)


KEYS: dict[str, tuple[bool, Callable[[Any], bool]]] = {
    "general.architecture": (True, _equals(ARCHITECTURE)),
    "general.name": (False, _is_short_string),
    "general.file_type": (True, _int_between(0, 64)),
    "general.quantization_version": (True, _equals(2)),
    "llama.context_length": (True, _int_between(1, MAX_CONTEXT)),
    "llama.embedding_length": (True, _int_between(2, MAX_WIDTH)),
    "llama.block_count": (True, _int_between(1, MAX_LAYERS)),
    "llama.feed_forward_length": (True, _int_between(1, 8 * MAX_WIDTH)),
    "llama.attention.head_count": (True, _int_between(1, MAX_HEADS)),
    "llama.attention.head_count_kv": (True, _int_between(1, MAX_HEADS)),
    "llama.attention.layer_norm_rms_epsilon": (True, _float_between(1e-12, 0.1)),
    "llama.rope.freq_base": (True, _float_between(1.0, 1e9)),
    "llama.rope.dimension_count": (True, _int_between(2, MAX_WIDTH)),
    "llama.vocab_size": (True, _int_between(1, 1 << 22)),
    MODEL: (True, _equals("llama")),
    TOKENS: (True, _is_array),
    SCORES: (True, _is_array),
    TYPES: (True, _is_array),
    "tokenizer.ggml.bos_token_id": (True, _int_between(0, 1 << 22)),
    "tokenizer.ggml.eos_token_id": (True, _int_between(0, 1 << 22)),
    "tokenizer.ggml.unknown_token_id": (True, _int_between(0, 1 << 22)),
    "tokenizer.ggml.add_bos_token": (True, _equals(False)),
    "tokenizer.ggml.add_eos_token": (True, _equals(False)),
    "tokenizer.ggml.add_space_prefix": (True, _equals(True)),
    "seed.first_code_id": (True, _int_between(0, 1 << 22)),
    "seed.codebook_size": (True, _int_between(1, 1 << 22)),
    "seed.codes_per_image": (True, _int_between(1, 1 << 16)),
    "seed.boi_id": (True, _int_between(0, 1 << 22)),
    "seed.eoi_id": (True, _int_between(0, 1 << 22)),
}
"""Rules of the keys: whether a key is required, and which values are allowed."""


def check_language_model(path: Path, vocab: Vocab) -> None:
    """Check that a GGUF file is the LLaMA that a manifest describes, before llama.cpp reads it.

    Args:
        vocab: vocabulary of the manifest.

    Raises:
        BundleError: a key, tensor or token is missing, unknown or wrong; the message names the first.
    """
    header = GgufHeader.read(path, whole=frozenset((TOKENS, SCORES, TYPES)))
    problem = next(_problems(header, vocab), None)
    if problem is not None:
        raise BundleError(
            f"{path} is not the language model that the manifest describes: {problem}; export it again"
        )


def _problems(header: GgufHeader, vocab: Vocab) -> Iterator[str]:
    yield from _key_problems(header.values)
    yield from _geometry_problems(header, vocab)
    yield from _tensor_problems(header)
    yield from _vocabulary_problems(header.values, vocab)


def _key_problems(values: dict[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        if key not in KEYS:
            yield f"it has the unknown key {key[:80]!r}"
        elif not KEYS[key][1](value):
            yield f"{key} is {str(value)[:60]!r}"
    for key, (required, _) in KEYS.items():
        if required and key not in values:
            yield f"it lacks the key {key}"


def _geometry_problems(header: GgufHeader, vocab: Vocab) -> Iterator[str]:
    if header.version != 3:
        yield f"it has GGUF version {header.version}; bundles have 3"
    width, heads, kv_heads = (header.number(key) for key in _GEOMETRY)
    if width % heads or (width // heads) % 2:
        yield f"embedding_length {width} cannot be divided into {heads} heads of an even width"
    if heads % kv_heads:
        yield f"head_count {heads} is not a multiple of head_count_kv {kv_heads}"
    if header.number("rope.dimension_count") != width // heads:
        yield (
            f"rope.dimension_count is {header.number('rope.dimension_count')}, but the width of heads is "
            f"{width // heads}"
        )
    if header.number("vocab_size") != vocab.size:
        yield f"it has {header.number('vocab_size')} ids, the manifest says {vocab.size}"
    expected = {
        "tokenizer.ggml.bos_token_id": vocab.bos_id,
        "tokenizer.ggml.eos_token_id": vocab.eos_id,
        "seed.first_code_id": vocab.first_code_id,
        "seed.codebook_size": vocab.codebook_size,
        "seed.codes_per_image": vocab.codes_per_image,
        "seed.boi_id": vocab.boi_id,
        "seed.eoi_id": vocab.eoi_id,
    }
    for key, value in expected.items():
        if header.values[key] != value:
            yield f"{key} is {header.values[key]}, the manifest says {value}"


_GEOMETRY = ("embedding_length", "attention.head_count", "attention.head_count_kv")


def expected_shapes(header: GgufHeader) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor, fastest axis first, of a LLaMA with the geometry in `header`."""
    width, heads, kv_heads = (header.number(key) for key in _GEOMETRY)
    mlp, size = header.number("feed_forward_length"), header.number("vocab_size")
    kv_width = width // heads * kv_heads
    layer = {
        "attn_q": (width, width),
        "attn_k": (width, kv_width),
        "attn_v": (width, kv_width),
        "attn_output": (width, width),
        "ffn_gate": (width, mlp),
        "ffn_up": (width, mlp),
        "ffn_down": (mlp, width),
        "attn_norm": (width,),
        "ffn_norm": (width,),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (width, size),
        "output_norm.weight": (width,),
        "output.weight": (width, size),
    }
    for number in range(header.number("block_count")):
        shapes |= {f"blk.{number}.{name}.weight": shape for name, shape in layer.items()}
    return shapes


def _tensor_problems(header: GgufHeader) -> Iterator[str]:
    expected = expected_shapes(header)
    for name in sorted(set(expected) ^ set(header.tensors)):
        yield (
            f"it lacks the tensor {name}" if name in expected else f"it has the unknown tensor {name[:80]!r}"
        )
    for name, tensor in header.tensors.items():
        yield from _problems_of_tensor(tensor, expected[name])


def _problems_of_tensor(tensor: TensorInfo, shape: tuple[int, ...]) -> Iterator[str]:
    if tensor.shape != shape:
        yield f"the tensor {tensor.name} has shape {tensor.shape}; expected {shape}"
    allowed = MATRIX_TYPES if len(shape) == 2 else frozenset(("F32",))
    if tensor.kind not in allowed:
        yield f"the tensor {tensor.name} has type {tensor.kind}; expected {', '.join(sorted(allowed))}"


def _vocabulary_problems(values: dict[str, Any], vocab: Vocab) -> Iterator[str]:
    tokens, scores, types = (values[key] for key in (TOKENS, SCORES, TYPES))
    for key, items, kind in ((TOKENS, tokens, str), (SCORES, scores, float), (TYPES, types, int)):
        if items.count != vocab.size or not all(type(item) is kind for item in items.first):
            yield f"{key} is not a list of {vocab.size} values of type {kind.__name__}"
    yield from _token_text_problems(tokens.first)
    if not all(map(math.isfinite, scores.first)):
        yield f"{SCORES} has a value that is not finite"
    yield from _token_type_problems(
        tokens.first, types.first, values["tokenizer.ggml.unknown_token_id"], vocab
    )


def _token_text_problems(pieces: tuple[str, ...]) -> Iterator[str]:
    if len(set(pieces)) != len(pieces):
        yield "its vocabulary has a duplicate token"
    if not all(0 < len(piece.encode()) <= MAX_PIECE and "\0" not in piece for piece in pieces):
        yield "a token of its vocabulary is empty, contains NUL or is too long"


def _token_type_problems(
    pieces: tuple[str, ...], types: tuple[int, ...], unknown: int, vocab: Vocab
) -> Iterator[str]:
    if not all(NORMAL <= kind <= BYTE for kind in types):
        yield f"{TYPES} has a value outside {NORMAL} to {BYTE}"
    bytes_ = {piece for piece, kind in zip(pieces, types, strict=True) if kind == BYTE}
    if bytes_ != BYTE_PIECES:  # llama.cpp aborts the process if text needs a missing byte
        wrong = min(bytes_ ^ BYTE_PIECES)
        problem = "is not a byte" if wrong in bytes_ else "is missing"
        yield f"its byte tokens are not the 256 bytes ({wrong[:20]!r} {problem})"
    if unknown >= vocab.size or types[unknown] != UNKNOWN:
        yield f"token {unknown} is not the unknown token"
    codes = range(vocab.first_code_id, vocab.first_code_id + vocab.codebook_size)
    for token in (*codes, vocab.boi_id, vocab.eoi_id, vocab.bos_id, vocab.eos_id):
        if types[token] != CONTROL:
            yield f"token {token} is a code or special token, but not a control token"
            return
