"""Rules for the language model of a bundle: exactly the keys, tensors and vocabulary that `export` writes,
and nothing else.

llama.cpp reads many architectures and ends the process where their numbers contradict each other. So a file
is let through only if every number that llama.cpp acts on is known and fits the others.
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
"""Types that `export --weight-type` stores matrices in; norms are F32."""


def _whole(least: int, most: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value <= most


def _real(least: float, most: float) -> Callable[[Any], bool]:
    return lambda value: type(value) is float and least <= value <= most  # NaN lies in no range


def _is(*values: Any) -> Callable[[Any], bool]:
    return lambda value: any(type(value) is type(each) and value == each for each in values)


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_PIECE


def _list(value: Any) -> bool:
    return isinstance(value, Items)


KEYS: dict[str, tuple[bool, Callable[[Any], bool]]] = {
    "general.architecture": (True, _is(ARCHITECTURE)),
    "general.name": (False, _text),
    "general.file_type": (True, _whole(0, 64)),
    "general.quantization_version": (True, _is(2)),
    "llama.context_length": (True, _whole(1, MAX_CONTEXT)),
    "llama.embedding_length": (True, _whole(2, MAX_WIDTH)),
    "llama.block_count": (True, _whole(1, MAX_LAYERS)),
    "llama.feed_forward_length": (True, _whole(1, 8 * MAX_WIDTH)),
    "llama.attention.head_count": (True, _whole(1, MAX_HEADS)),
    "llama.attention.head_count_kv": (True, _whole(1, MAX_HEADS)),
    "llama.attention.layer_norm_rms_epsilon": (True, _real(1e-12, 0.1)),
    "llama.rope.freq_base": (True, _real(1.0, 1e9)),
    "llama.rope.dimension_count": (True, _whole(2, MAX_WIDTH)),
    "llama.vocab_size": (True, _whole(1, 1 << 22)),
    MODEL: (True, _is("llama")),
    TOKENS: (True, _list),
    SCORES: (True, _list),
    TYPES: (True, _list),
    "tokenizer.ggml.bos_token_id": (True, _whole(0, 1 << 22)),
    "tokenizer.ggml.eos_token_id": (True, _whole(0, 1 << 22)),
    "tokenizer.ggml.unknown_token_id": (True, _whole(0, 1 << 22)),
    "tokenizer.ggml.add_bos_token": (True, _is(False)),
    "tokenizer.ggml.add_eos_token": (True, _is(False)),
    "tokenizer.ggml.add_space_prefix": (True, _is(True)),
    "seed.first_code_id": (True, _whole(0, 1 << 22)),
    "seed.codebook_size": (True, _whole(1, 1 << 22)),
    "seed.codes_per_image": (True, _whole(1, 1 << 16)),
    "seed.boi_id": (True, _whole(0, 1 << 22)),
    "seed.eoi_id": (True, _whole(0, 1 << 22)),
}
"""Rules of the keys: whether a key is required, and which values are allowed."""


def check_language_model(path: Path, vocab: Vocab) -> None:
    """Refuse a GGUF file that is not the LLaMA that a manifest describes, before llama.cpp reads it.

    Args:
        vocab: the vocabulary that the manifest states.

    Raises:
        BundleError: a key, tensor or piece is missing, unknown, or not what it must be; the first is named.
    """
    header = GgufHeader.read(path, whole=frozenset((TOKENS, SCORES, TYPES)))
    problem = next(_problems(header, vocab), None)
    if problem is not None:
        raise BundleError(
            f"{path} is not the language model that the manifest describes: {problem}; export it again"
        )


def _problems(header: GgufHeader, vocab: Vocab) -> Iterator[str]:
    yield from _wrong_keys(header.values)
    yield from _wrong_geometry(header, vocab)
    yield from _wrong_tensors(header)
    yield from _wrong_pieces(header.values, vocab)


def _wrong_keys(values: dict[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        if key not in KEYS:
            yield f"it has the key {key[:80]!r}, which no bundle has"
        elif not KEYS[key][1](value):
            yield f"{key} is {str(value)[:60]!r}"
    for key, (needed, _) in KEYS.items():
        if needed and key not in values:
            yield f"it lacks the key {key}"


def _wrong_geometry(header: GgufHeader, vocab: Vocab) -> Iterator[str]:
    if header.version != 3:
        yield f"GGUF version {header.version}, bundles have 3"
    width, heads, kept = (header.number(f"{key}") for key in _GEOMETRY)
    if width % heads or (width // heads) % 2:
        yield f"embedding_length {width} does not divide into {heads} heads of an even width"
    if heads % kept:
        yield f"head_count {heads} is no multiple of head_count_kv {kept}"
    if header.number("rope.dimension_count") != width // heads:
        yield (
            f"rope.dimension_count is {header.number('rope.dimension_count')}, heads are "
            f"{width // heads} wide"
        )
    if header.number("vocab_size") != vocab.size:
        yield f"it has {header.number('vocab_size')} ids, the manifest says {vocab.size}"
    stated = {
        "tokenizer.ggml.bos_token_id": vocab.bos_id,
        "tokenizer.ggml.eos_token_id": vocab.eos_id,
        "seed.first_code_id": vocab.first_code_id,
        "seed.codebook_size": vocab.codebook_size,
        "seed.codes_per_image": vocab.codes_per_image,
        "seed.boi_id": vocab.boi_id,
        "seed.eoi_id": vocab.eoi_id,
    }
    for key, value in stated.items():
        if header.values[key] != value:
            yield f"{key} is {header.values[key]}, the manifest says {value}"


_GEOMETRY = ("embedding_length", "attention.head_count", "attention.head_count_kv")


def expected_shapes(header: GgufHeader) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor, fastest axis first, that a LLaMA of the geometry in `header` has."""
    width, heads, kept = (header.number(key) for key in _GEOMETRY)
    mlp, size = header.number("feed_forward_length"), header.number("vocab_size")
    keys = width // heads * kept
    layer = {
        "attn_q": (width, width),
        "attn_k": (width, keys),
        "attn_v": (width, keys),
        "attn_output": (width, width),
        "ffn_gate": (width, mlp),
        "ffn_up": (width, mlp),
        "ffn_down": (mlp, width),
        "attn_norm": (width,),
        "ffn_norm": (width,),
    }
    found: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (width, size),
        "output_norm.weight": (width,),
        "output.weight": (width, size),
    }
    for number in range(header.number("block_count")):
        found |= {f"blk.{number}.{name}.weight": shape for name, shape in layer.items()}
    return found


def _wrong_tensors(header: GgufHeader) -> Iterator[str]:
    expected = expected_shapes(header)
    for name in sorted(set(expected) ^ set(header.tensors)):
        yield (
            f"it lacks the tensor {name}"
            if name in expected
            else f"it has the tensor {name[:80]!r}, which no LLaMA has"
        )
    for name, tensor in header.tensors.items():
        yield from _wrong_tensor(tensor, expected[name])


def _wrong_tensor(tensor: TensorInfo, shape: tuple[int, ...]) -> Iterator[str]:
    if tensor.shape != shape:
        yield f"the tensor {tensor.name} has shape {tensor.shape}, the geometry asks for {shape}"
    allowed = MATRIX_TYPES if len(shape) == 2 else frozenset(("F32",))
    if tensor.kind not in allowed:
        yield f"the tensor {tensor.name} is of type {tensor.kind}, which it cannot be"


def _wrong_pieces(values: dict[str, Any], vocab: Vocab) -> Iterator[str]:
    tokens, scores, types = (values[key] for key in (TOKENS, SCORES, TYPES))
    for key, items, kind in ((TOKENS, tokens, str), (SCORES, scores, float), (TYPES, types, int)):
        if items.count != vocab.size or not all(type(item) is kind for item in items.first):
            yield f"{key} is no list of {vocab.size} values of type {kind.__name__}"
    yield from _wrong_texts(tokens.first)
    if not all(map(math.isfinite, scores.first)):
        yield f"{SCORES} has a value that is not finite"
    yield from _wrong_types(tokens.first, types.first, values["tokenizer.ggml.unknown_token_id"], vocab)


def _wrong_texts(pieces: tuple[str, ...]) -> Iterator[str]:
    if len(set(pieces)) != len(pieces):
        yield "a piece of its vocabulary stands there twice"
    if not all(0 < len(piece.encode()) <= MAX_PIECE and "\0" not in piece for piece in pieces):
        yield "a piece of its vocabulary is empty, has a NUL or is too long"


def _wrong_types(
    pieces: tuple[str, ...], types: tuple[int, ...], unknown: int, vocab: Vocab
) -> Iterator[str]:
    if not all(NORMAL <= kind <= BYTE for kind in types):
        yield f"{TYPES} has a value outside {NORMAL} to {BYTE}"
    bytes_ = {piece for piece, kind in zip(pieces, types, strict=True) if kind == BYTE}
    if bytes_ != BYTE_PIECES:  # llama.cpp ends the process where text needs a byte that is missing
        wrong = min(bytes_ ^ BYTE_PIECES)
        yield (
            f"its byte pieces are not the 256 bytes ({wrong[:20]!r} is "
            f"{'no byte' if wrong in bytes_ else 'missing'})"
        )
    if unknown >= vocab.size or types[unknown] != UNKNOWN:
        yield f"token {unknown} is not the unknown token"
    codes = range(vocab.first_code_id, vocab.first_code_id + vocab.codebook_size)
    for token in (*codes, vocab.boi_id, vocab.eoi_id, vocab.bos_id, vocab.eos_id):
        if types[token] != CONTROL:
            yield f"token {token} is a code or a mark, and no control token"
            return
