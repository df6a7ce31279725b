"""What a language model of a bundle may be: what the exporter writes, and nothing that llama.cpp could stumble over."""

import os
import struct

import pytest
from gguf_bytes import ARRAY, STRING, File

from seed_edge.bundle import EMBEDDED, Bundle
from seed_edge.errors import BundleError
from seed_edge.gguf_rules import KEYS, check_language_model

U32, F32, BOOL = 4, 6, 7


@pytest.fixture(scope="module")
def bundle(tiny):
    return Bundle.open(tiny)


@pytest.fixture
def refused(bundle, tmp_path):
    """Change the tiny language model; it must be refused in one line, which is given."""

    def call(change):
        file = File.parse(bundle.language_model.read_bytes())
        change(file)
        path = tmp_path / "x.gguf"
        path.write_bytes(file.bytes())
        with pytest.raises(BundleError) as error:
            check_language_model(path, bundle.language.vocab)
        assert "\n" not in str(error.value) and "x.gguf" in str(error.value)
        return str(error.value)

    return call


def put(key, kind, value):
    def change(file):
        file.values = [each for each in file.values if each[0] != key.encode()] + [
            (key.encode(), kind, value)
        ]

    return change


def items(key, at, value):
    def change(file):
        for name, _, (_, found) in [each for each in file.values if each[1] == ARRAY]:
            if name.decode() == f"tokenizer.ggml.{key}":
                found[at] = value

    return change


@pytest.mark.parametrize("path", [EMBEDDED, None])
def test_what_the_exporter_writes_passes(tiny, path):
    opened = Bundle.open(path or tiny)
    check_language_model(opened.language_model, opened.language.vocab)


@pytest.mark.parametrize("key", [key for key, (required, _) in KEYS.items() if required])
def test_every_key_must_be_there(refused, key):
    def change(file):
        file.values = [each for each in file.values if each[0] != key.encode()]

    assert "lacks" in refused(change) or "has no key" in refused(change)


@pytest.mark.parametrize(
    "key",
    [
        "llama.expert_count",
        "llama.nextn_predict_layers",
        "llama.rope.scaling.factor",
        "llama.attention.key_length",
        "general.alignment",
        "tokenizer.ggml.merges",
        "tokenizer.ggml.pre",
        "tokenizer.chat_template",
        "seed.\x1b[31m",
        "x",
    ],
)
def test_keys_that_no_bundle_has_are_refused(refused, key):
    said = refused(put(key, U32, 32))
    assert "the unknown key" in said and "\x1b" not in said


@pytest.mark.parametrize(
    ("key", "kind", "value"),
    [
        ("general.architecture", STRING, b"smallthinker"),
        ("general.architecture", STRING, b"llada-moe"),
        ("llama.block_count", U32, 0),
        ("llama.block_count", U32, 65536),
        ("llama.block_count", U32, 2**32 - 1),
        ("llama.block_count", F32, 2.0),
        ("llama.attention.head_count", U32, 3),
        ("llama.attention.head_count", U32, 0),
        ("llama.attention.head_count_kv", U32, 3),
        ("llama.attention.layer_norm_rms_epsilon", F32, float("nan")),
        ("llama.attention.layer_norm_rms_epsilon", F32, -1.0),
        ("llama.attention.layer_norm_rms_epsilon", F32, float("inf")),
        ("llama.rope.freq_base", F32, 0.0),
        ("llama.rope.freq_base", F32, float("nan")),
        ("llama.rope.dimension_count", U32, 6),
        ("llama.vocab_size", U32, 309),
        ("llama.context_length", U32, 0),
        ("llama.embedding_length", U32, 64),
        ("llama.feed_forward_length", U32, 32),
        ("tokenizer.ggml.model", STRING, b"bert"),
        ("tokenizer.ggml.model", STRING, b"none"),
        ("tokenizer.ggml.model", STRING, b"no_vocab"),
        ("tokenizer.ggml.tokens", ARRAY, (STRING, [b"a"])),
        ("tokenizer.ggml.tokens", U32, 7),
        ("tokenizer.ggml.scores", ARRAY, (STRING, [b"a"] * 310)),
        ("tokenizer.ggml.token_type", ARRAY, (F32, [1.0] * 310)),
        ("tokenizer.ggml.bos_token_id", U32, 2),
        ("tokenizer.ggml.eos_token_id", U32, 2**31),
        ("tokenizer.ggml.unknown_token_id", U32, 310),
        ("tokenizer.ggml.add_bos_token", BOOL, True),
        ("tokenizer.ggml.add_space_prefix", BOOL, False),
        ("seed.first_code_id", U32, 301),
    ],
)
def test_values_outside_their_field_or_against_the_manifest_are_refused(refused, key, kind, value):
    refused(put(key, kind, value))


@pytest.mark.parametrize(
    ("key", "at", "value"),
    [
        ("tokens", 5, b"</s>"),
        ("tokens", 260, b""),
        ("tokens", 260, b"a\0b"),
        ("tokens", 260, b"x" * 5000),
        ("tokens", 68, b"<0x4>"),
        ("token_type", 68, 1),
        ("token_type", 270, 6),
        ("token_type", 270, 0),
        ("token_type", 270, 9),
        ("token_type", 0, 1),
        ("token_type", 303, 1),
        ("token_type", 308, 4),
        ("token_type", 1, 1),
        ("scores", 9, float("nan")),
        ("scores", 9, float("inf")),
    ],
)
def test_a_vocabulary_that_contradicts_itself_is_refused(refused, key, at, value):
    refused(items(key, at, value))


@pytest.mark.parametrize(
    "change",
    [
        lambda name, shape, kind, offset: None,
        lambda name, shape, kind, offset: (b"rope_freqs.weight", shape, kind, offset),
        lambda name, shape, kind, offset: (name, shape, 24, offset),
        lambda name, shape, kind, offset: (name, shape, 30 if len(shape) == 1 else 27, offset),
        lambda name, shape, kind, offset: (
            name,
            shape[::-1] if len(set(shape)) > 1 else [*shape, 1],
            kind,
            offset,
        ),
        lambda name, shape, kind, offset: (name, [*shape[:-1], shape[-1] // 2], kind, offset),
    ],
)
@pytest.mark.parametrize(
    "name", [b"token_embd.weight", b"output_norm.weight", b"blk.1.attn_v.weight", b"blk.0.ffn_norm.weight"]
)
def test_tensors_that_a_llama_cannot_have_are_refused(refused, name, change):
    def changed(file):
        found = [change(*tensor) if tensor[0] == name else tensor for tensor in file.tensors]
        file.tensors = [tensor for tensor in found if tensor is not None]

    refused(changed)


def test_a_tensor_too_many_and_an_older_version_are_refused(refused):
    refused(lambda file: file.tensors.append((b"blk.2.attn_q.weight", [32, 32], 1, 0)))
    assert "version 2" in refused(lambda file: setattr(file, "version", 2))


def test_a_pipe_is_not_waited_for(tmp_path, bundle):
    os.mkfifo(tmp_path / "x.gguf")
    with pytest.raises(BundleError, match="named pipe"):
        check_language_model(tmp_path / "x.gguf", bundle.language.vocab)


def test_parts_put_together_are_the_file_they_came_from(bundle):
    raw = bundle.language_model.read_bytes()
    assert File.parse(raw).bytes() == raw and struct.unpack_from("<I", raw, 4) == (3,)
