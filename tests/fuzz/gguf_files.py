"""GGUF files changed at random, with regard to how they are built, and loaded as the language model of a bundle."""

from __future__ import annotations

import functools
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from bundle_files import TINY, loaded, make_tiny, place
from gguf_bytes import ARRAY, KINDS, STRING, File

import seed_edge

NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    31,
    64,
    255,
    256,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63,
    2**64 - 1,
    -1,
    -(2**31),
)
FLOATS = (0.0, -0.0, 1e-45, -1.0, 1.0, 1e30, float("inf"), float("-inf"), float("nan"))
ARCHITECTURES = (
    "smallthinker",
    "llada-moe",
    "qwen2",
    "bert",
    "mamba",
    "t5",
    "gemma3",
    "deepseek2",
    "rwkv7",
    "clip",
    "",
    "llama\0",
)
TOKENIZERS = ("bert", "none", "no_vocab", "gpt2", "t5", "rwkv", "plamo2", "")
FOREIGN = [
    "expert_count",
    "expert_used_count",
    "expert_shared_count",
    "nextn_predict_layers",
    "rope.scaling.type",
    "rope.scaling.factor",
    "attention.key_length",
    "attention.value_length",
    "attention.sliding_window",
    "attention.causal",
    "pooling_type",
    "vocab_only",
    "ssm.state_size",
    "leading_dense_block_count",
    "attention.clamp_kqv",
    "logit_scale",
    "attention.layer_norm_epsilon",
]
OTHERS = [
    "tokenizer.ggml.pre",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.precompiled_charsmap",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.fim_pre_token_id",
    "tokenizer.chat_template",
    "general.alignment",
    "split.count",
    "adapter.type",
]


@functools.cache
def seeds() -> list[bytes]:
    """The tiny language model as it is, and with its matrices in other types."""
    from seed_edge.export.gguf_quantize import write_as

    found = [(TINY / "llm.gguf").read_bytes()]
    with tempfile.TemporaryDirectory() as folder:
        source = make_tiny()["llama"](Path(folder))
        vocab = source.vocab(4)
        for kind in ("Q8_0", "BF16", "Q4_0", "Q5_1", "IQ4_NL"):
            write_as(source, vocab, Path(folder) / "x.gguf", kind, "tiny", 1)
            found.append((Path(folder) / "x.gguf").read_bytes())
    return found


def mutate(data: bytes, rng: random.Random) -> bytes:
    """The file with one to three changes."""
    if rng.random() < 0.15:
        return _raw(data, rng)
    file = File.parse(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        change = rng.choice(CHANGES)
        try:
            change(file, rng)
        except (TypeError, IndexError, ValueError, OverflowError):
            continue  # an earlier change left nothing that this one could be applied to
    return file.bytes()


def _raw(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(min(len(changed), rng.choice((400, 9000, len(changed)))))] = rng.randrange(256)
    return bytes(changed[: rng.randrange(len(changed))]) if rng.random() < 0.2 else bytes(changed)


def _item(kind: int, old: Any, rng: random.Random) -> Any:
    """Another value of a type."""
    if kind == STRING:
        choices = [b"", old[: len(old) // 2], old + b"\0", b"\xff\xfe", b"<0x41>", b"</s>", b"a" * 5000]
        return rng.choice(choices + [word.encode() for word in ARCHITECTURES + TOKENIZERS])
    if kind == ARRAY:
        inner, items = old
        return rng.choice(
            ((inner, items[:-1]), (inner, items * 2), (inner, []), (4, [1, 2]), (STRING, [b"x"]))
        )
    if kind == 7:
        return rng.random() < 0.5
    if kind in (6, 12):
        return rng.choice((*FLOATS, rng.uniform(-1e3, 1e3)))
    return rng.choice((*NUMBERS, int(old) + rng.choice((-1, 1, 2, 8)), rng.randrange(2**16)))


def _change_value(file: File, rng: random.Random) -> None:
    at = rng.randrange(len(file.values))
    key, kind, value = file.values[at]
    file.values[at] = (key, kind, _item(kind, value, rng))


def _change_kind(file: File, rng: random.Random) -> None:
    at = rng.randrange(len(file.values))
    kind = rng.choice(list(KINDS))
    file.values[at] = (file.values[at][0], kind, rng.choice(FLOATS if kind in (6, 12) else NUMBERS))


def _change_keys(file: File, rng: random.Random) -> None:
    at = rng.randrange(len(file.values))
    how = rng.randrange(4)
    if how == 0:
        del file.values[at]
    elif how == 1:
        file.values.insert(at, rng.choice(file.values))
    elif how == 2:
        file.values[at] = (rng.choice(file.values)[0], *file.values[at][1:])
    else:
        key = rng.choice([f"llama.{name}" for name in FOREIGN] + list(OTHERS))
        kind = rng.choice((4, 6, 7, STRING))
        value = {4: rng.choice(NUMBERS), 6: rng.choice(FLOATS), 7: True, STRING: b"linear"}[kind]
        file.values.append((key.encode(), kind, value))


def _change_architecture(file: File, rng: random.Random) -> None:
    name = rng.choice(ARCHITECTURES).encode()
    file.values = [
        (key.replace(b"llama.", name + b".", 1), kind, name if key == b"general.architecture" else value)
        for key, kind, value in file.values
    ]


def _change_items(file: File, rng: random.Random) -> None:
    arrays = [at for at, (_, kind, _) in enumerate(file.values) if kind == ARRAY and file.values[at][2][1]]
    if not arrays:
        return
    at = rng.choice(arrays)
    key, kind, (inner, items) = file.values[at]
    items = list(items)
    for _ in range(rng.choice((1, 3, 40))):
        where = rng.randrange(len(items))
        items[where] = rng.choice(items) if rng.random() < 0.5 else _item(inner, items[where], rng)
    file.values[at] = (key, kind, (inner, items))


def _change_tensor(file: File, rng: random.Random) -> None:
    at = rng.randrange(len(file.tensors))
    name, shape, kind, offset = file.tensors[at]
    how = rng.randrange(6)
    if how == 0:
        kind = rng.choice((*range(42), 255, 2**32 - 1))
    elif how == 1:
        shape = [rng.choice((*NUMBERS, n, n * 2, n // 2)) for n in shape]
    elif how == 2:
        shape = shape[::-1] if rng.random() < 0.5 else [*shape, 1]
    elif how == 3:
        offset = rng.choice((*NUMBERS, offset + 32, offset ^ 32))
    elif how == 4:
        name = rng.choice(
            [other for other, *_ in file.tensors]
            + [b"", b"rope_freqs.weight", b"blk.0.attn_q.bias", name + b"\0"]
        )
    else:
        del file.tensors[at]
        return
    file.tensors[at] = (name, shape, kind, offset)


def _change_geometry(file: File, rng: random.Random) -> None:
    """Other numbers that still fit the size of the file, as a patient attacker would choose them."""
    pairs = rng.choice(
        (
            (b"head_count", 2),
            (b"head_count", 8),
            (b"head_count", 1),
            (b"head_count_kv", 2),
            (b"block_count", 1),
        )
    )
    for at, (key, kind, _) in enumerate(file.values):
        if key.endswith(pairs[0]):
            file.values[at] = (key, kind, pairs[1])


def _change_weights(file: File, rng: random.Random) -> None:
    """Weights that are not numbers, huge, or noise."""
    data = bytearray(file.data)
    length = min(len(data), rng.choice((2, 64, 4096)))
    at = rng.randrange(len(data) - length + 1)
    noise = rng.choice(
        (b"\xff" * length, b"\x00\x7c" * (length // 2), rng.randbytes(length), b"\x7f" * length)
    )
    data[at : at + length] = noise
    file.data = bytes(data)


def _change_harmless(file: File, rng: random.Random) -> None:
    """What the rules let through: another name, another base of rotation, other scores."""
    for at, (key, kind, value) in enumerate(file.values):
        if key == b"llama.rope.freq_base":
            file.values[at] = (key, kind, rng.choice((1.0, 5e5, 1e9)))
        elif key == b"tokenizer.ggml.scores":
            scores = (
                np.random.default_rng(rng.randrange(2**32))
                .normal(0, rng.choice((1, 1e30)), len(value[1]))
                .tolist()
            )
            file.values[at] = (key, kind, (value[0], scores))


CHANGES = (
    _change_value, _change_value, _change_value, _change_kind, _change_keys, _change_keys, _change_architecture, _change_items,
    _change_items, _change_tensor, _change_tensor, _change_tensor, _change_geometry, _change_weights, _change_harmless,
)  # fmt: skip


def check(data: bytes, folder: Path) -> bool:
    """Load the file as a language model, caption and draw; whether that went well."""
    bundle = place(folder, {"llm.gguf": data})

    def use(edge: seed_edge.SeedEdge) -> None:
        edge.caption_codes([0, 1, 2, 3])
        edge.draw_codes("a house \x00 </s>", seed=1)

    return loaded(bundle, use)
