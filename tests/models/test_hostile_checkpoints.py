"""Checkpoint folders that nobody made in good faith: one line that names file and key, before memory is
taken.
"""

import json
import os
import resource
import runpy
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from seed_edge.errors import CheckpointError
from seed_edge.export.export_bundle import read_sources
from seed_edge.export.gguf import LlamaFolder, write_gguf
from seed_edge.export.hf_weights import Shards
from seed_edge.export.lora import Lora
from seed_edge.models.checkpoints import load_image_tokenizer, load_seed_tokenizer, read_state
from seed_edge.models.config import load_geometry
from seed_edge.train.language.checkpoints import open_llama
from seed_edge.vocab import CodeSpace

SPACE = CodeSpace(8, 4)


@pytest.fixture(scope="module")
def good(tiny, tmp_path_factory):
    """The language model of `tests/fixtures/tiny`, as a checkpoint."""
    folder = tmp_path_factory.mktemp("llama")
    runpy.run_path(str(tiny.parent / "make_tiny_bundle.py"))["llama"](folder, seed=1)
    return folder


@pytest.fixture
def llama(good, tmp_path):
    return shutil.copytree(good, tmp_path / "llama")


def refused(call, *words):
    with pytest.raises(CheckpointError) as caught:
        call()
    text = str(caught.value)
    assert len(text.splitlines()) == 1 and len(text) < 1500 and all(word in text for word in words), text


def convert(folder):
    opened = LlamaFolder.open(folder)
    write_gguf(opened, opened.vocab(4), folder / "llm.gguf", "F32", "x")


def test_the_good_one_is_read(llama):
    convert(llama)
    open_llama(llama, SPACE)


# ---- config.json
# ------------------------------------------------------------------------------------------------

NUMBERS = {
    "num_hidden_layers": [0, -1, 513, 10**7, 2**40, 2**62, 1.5, "2", [2], {}, True, None],
    "num_attention_heads": [0, -4, 5, 10**9, "4", 4.5, [4], False, None],
    "num_key_value_heads": [0, -1, 3, 8, 10**9, "4", [4], True],
    "hidden_size": [0, -32, 31, 33, 2**40, "32", 0.5, None],
    "intermediate_size": [0, -1, 2**40, "64", [], None],
    "vocab_size": [0, -1, 2**40, 2**62, "310", 310.5, None],
    "max_position_embeddings": [0, -1, 2**40, "96", None],
    "rms_norm_eps": [0, -1e-6, 1.0, 1e300, "1e-6", [1e-6], True, None],
    "rope_theta": [0, -1, 0.5, 1e300, "10000", [], True],
    "rope_scaling": [
        {"type": "linear", "factor": 2.0},
        {"rope_type": "yarn"},
        {"rope_type": []},
        3,
        "linear",
        [1],
        True,
    ],
    "head_dim": [0, 4, 10**9, "8", 8.5],
    "hidden_act": ["gelu", 3, []],
    "attention_bias": [True, 1, "no"],
    "model_type": ["llava", 3, []],
    "quantization_config": [{"bits": 4}, 3],
    "bos_token_id": ["1", 2**40, {}],
    "seed_template": [3, ["own"], {"a": 1}, True],
    "initializer_range": [1e30],
    "something": [list(range(5000)), {"deep": [2**60]}],
}
CASES = [(key, value) for key, values in NUMBERS.items() for value in values]


def test_there_are_many_cases():
    assert len(CASES) > 90


@pytest.mark.parametrize(("key", "value"), CASES, ids=lambda part: ascii(part)[:30])
def test_a_key_of_config_json_that_cannot_be_is_named(llama, key, value):
    config = json.loads((llama / "config.json").read_text()) | {key: value}
    (llama / "config.json").write_text(json.dumps(config))
    refused(lambda: convert(llama), "config.json", key)
    refused(lambda: open_llama(llama, SPACE), "config.json", key)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", "null", '"x"', "{", "[" * 100_000, '{"a":' * 100_000, '{"rms_norm_eps": NaN}', '{"rms_norm_eps": 1e400}', '{"vocab_size": 1, "vocab_size": 2}',
     "{}", '{"vocab_size": ' + "9" * 5000 + "}", "\x00", "\x1b[31m"],
    ids=lambda text: ascii(text[:20]),
)  # fmt: skip
@pytest.mark.parametrize("file", ["config.json", "added_tokens.json"])
def test_files_that_are_no_json_object_are_named(llama, file, text):
    (llama / file).write_text(text)
    refused(lambda: convert(llama), file)
    refused(lambda: open_llama(llama, SPACE), file)


@pytest.mark.parametrize("file", ["config.json", "added_tokens.json", "tokenizer.model", "model.safetensors"])
@pytest.mark.parametrize("kind", ["missing", "pipe", "folder", "device", "huge", "binary", "empty"])
def test_files_that_are_none_are_named_and_nothing_waits(llama, file, kind):
    path = llama / file
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "huge":
        with open(path, "wb") as made:
            made.truncate(2 << 30)
    elif kind in ("binary", "empty"):
        path.write_bytes(b"\xff\x00garbage" * 100 if kind == "binary" else b"")
    refused(lambda: convert(llama), file)
    if (file, kind) != ("added_tokens.json", "missing"):  # training adds codes to a model that has none
        refused(lambda: open_llama(llama, SPACE))


ADDED = [
    lambda a: [a],
    lambda a: list(a),
    lambda a: a | {"<img>": "308"},
    lambda a: a | {"<img>": 308.5},
    lambda a: a | {"<img>": True},
    lambda a: a | {"<img>": None},
    lambda a: a | {"<img>": [1]},
    lambda a: a | {"<img>": -1},
    lambda a: a | {"<img>": 2**62},
    lambda a: a | {"": 310},
    lambda a: a | {"\ud800": 310},
    lambda a: a | {"<img_" + "9" * 5000 + ">": 310},
    lambda a: a | {"<img_٠٠٠٠٨>": 310},
    lambda a: {name: {"id": value} for name, value in a.items()},
    lambda a: {},
]


@pytest.mark.parametrize("number", range(len(ADDED)))
def test_added_tokens_of_another_shape_are_named(llama, number):
    path = llama / "added_tokens.json"
    path.write_text(json.dumps(ADDED[number](json.loads(path.read_text()))))
    refused(lambda: convert(llama), "added_tokens.json")
    refused(lambda: open_llama(llama, SPACE))


# ---- weights
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "weight_map",
    [None, 3, [], "x", {}, {"a": 3}, {"a": None}, {"a": ["x"]}, {"a": ""}, {"a": ".."}, {"a": "/etc/passwd"}, {"a": "x.safetensors\0"},
     {"a": "..\\x.safetensors"}, {"a": "no.safetensors"}, {"a": "pipe.safetensors"}, {"a": "folder.safetensors"}, {"a": "x" * 5000}, {"a": "\x1b[31m.bin"}],
    ids=ascii,
)  # fmt: skip
def test_an_index_of_another_shape_is_named(llama, weight_map):
    os.mkfifo(llama / "pipe.safetensors")
    (llama / "folder.safetensors").mkdir()
    (llama / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    refused(lambda: Shards.open(llama), ".safetensors")


def packed(path, size, kind=zipfile.ZIP_DEFLATED, name="archive/data.pkl"):
    with zipfile.ZipFile(path, "w", kind) as archive, archive.open(name, "w", force_zip64=True) as member:
        for _ in range(size >> 20):
            member.write(bytes(1 << 20))


def torch_file(value):
    return lambda path: torch.save(value, path)


BAD_FILES = {
    "bomb": lambda path: packed(path, 1 << 30),
    "bomb among tensors": lambda path: packed(path, 1 << 30, name="archive/data/0"),
    "large index": lambda path: packed(path, 70 << 20, zipfile.ZIP_STORED),
    "lzma": lambda path: packed(path, 1 << 20, zipfile.ZIP_LZMA),
    "empty archive": lambda path: zipfile.ZipFile(path, "w").close(),
    "list": torch_file([torch.zeros(2)]),
    "tensor": torch_file(torch.zeros(2)),
    "numbers": torch_file({"a": 1}),
    "nested": torch_file({"a": {"b": torch.zeros(1)}}),
    "other keys": torch_file({1: torch.zeros(1)}),
    "shown as many": torch_file({"a": torch.zeros(1).expand(10**6, 10**6)}),
    "sparse": torch_file({"a": torch.zeros(10**4, 10**4).to_sparse()}),
    "meta": torch_file({"a": torch.empty(10**6, 10**6, device="meta")}),
    "quantized": torch_file({"a": torch.quantize_per_tensor(torch.zeros(4), 0.1, 0, torch.qint8)}),
    "old format": lambda path: torch.save({"a": torch.zeros(1)}, path, _use_new_zipfile_serialization=False),
    "text": lambda path: path.write_text("none"),
    "nothing": lambda path: path.write_bytes(b""),
    "pipe": os.mkfifo,
    "folder": os.mkdir,
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_pickled_file_that_holds_no_plain_tensors_takes_no_memory(tmp_path, llama, name):
    path = tmp_path / "pytorch_model.bin"
    BAD_FILES[name](path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(lambda: read_state(path), path.name)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10
    (llama / "model.safetensors").unlink()
    path.rename(llama / path.name)
    refused(lambda: open_llama(llama, SPACE), str(llama))


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 100, 5000, -1])
@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_a_file_cut_anywhere_is_damaged(good, tmp_path, cut, kind):
    path = tmp_path / f"x.{kind}"
    state = load_file(good / "model.safetensors")
    torch.save(state, path) if kind == "bin" else save_file(state, path)
    path.write_bytes(path.read_bytes()[:cut])
    refused(lambda: read_state(path), path.name, "damaged")


def header(text, rest=b""):
    data = text.encode()
    return len(data).to_bytes(8, "little") + data + rest


@pytest.mark.parametrize(
    "data",
    [
        header("{}") + b"x", header("[]"), header('{"a": 3}'), header('{"a": {"dtype": "F32", "shape": [1000000, 1000000], "data_offsets": [0, 4]}}', bytes(4)),
        header('{"a": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}}', bytes(4)), b"\xff" * 8 + b"{}", (2**62).to_bytes(8, "little"),
        header('{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', bytes(4)), header("{" * 50_000),
    ],
    ids=range(9),
)  # fmt: skip
def test_a_safetensors_file_that_lies_is_damaged(tmp_path, data):
    (tmp_path / "model.safetensors").write_bytes(data)
    refused(lambda: read_state(tmp_path / "model.safetensors"), "model.safetensors")
    refused(lambda: Shards.open(tmp_path), "model.safetensors")


def test_no_tensors_at_all(llama):
    save_file({}, llama / "model.safetensors")
    refused(lambda: convert(llama), "missing tensors")


# ---- image tokenizers
# -------------------------------------------------------------------------------------------

GEOMETRY = [
    ("num_queries", 0), ("num_queries", 10**9), ("vit_width", 0), ("vit_width", -1), ("vit_width", "1408"), ("vit_width", 2**40), ("vit_depth", 10**7),
    ("vit_heads", 0), ("vit_heads", 7), ("qformer_depth", 10**7), ("qformer_heads", 0), ("qformer_heads", 5), ("qformer_width", 1.5), ("qformer_mlp", None),
    ("cross_attention_every", 0), ("codebook_size", 0), ("codebook_size", 2**62), ("code_dim", True), ("decoder_depth", -1), ("decoder_heads", 0),
    ("image_size", 0), ("image_size", 10**9), ("patch_size", 0), ("patch_size", 255), ("image_embed_dim", [1024]), ("image_embed_dim", {}), ("unknown", 1),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), GEOMETRY, ids=ascii)
def test_a_geometry_that_cannot_be_is_named(seed2, tmp_path, key, value):
    folder = shutil.copytree(seed2, tmp_path / "c")
    (folder / "geometry.json").write_text(
        json.dumps(json.loads((seed2 / "geometry.json").read_text()) | {key: value})
    )
    refused(lambda: load_seed_tokenizer(folder, None, lambda text: None), "geometry.json", key)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "{", "null", "[" * 100_000, '{"image_size": NaN}', "x" * 100_000]
)
def test_a_geometry_that_is_no_object_is_named(tmp_path, text):
    (tmp_path / "geometry.json").write_text(text)
    refused(lambda: load_geometry(tmp_path), "geometry.json")
    refused(lambda: load_image_tokenizer(tmp_path), "geometry.json")


@pytest.mark.parametrize("value", [[], "x", [0], [1.5], [True], [10**9], list(range(1, 100)), 3, None])
def test_channels_of_another_shape_are_named(tmp_path, value):
    from seed_edge.models.config import PixelGeometry

    PixelGeometry().save(tmp_path)
    path = tmp_path / "geometry.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pixel_channels": value}))
    refused(lambda: load_geometry(tmp_path), "pixel_channels")


# ---- adapters and sources
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [("lora_alpha", "16"), ("lora_alpha", None), ("lora_alpha", 1e300), ("lora_alpha", [1]), ("lora_alpha", True), ("use_rslora", "yes"), ("use_rslora", 1),
     ("peft_type", None), ("peft_type", ["LORA"]), ("use_dora", [1]), ("alpha_pattern", {"\x1b[31m": 3}), ("bias", {"a": 1})],
    ids=ascii,
)  # fmt: skip
def test_an_adapters_configuration_that_cannot_be_is_named(tmp_path, key, value):
    good = {"peft_type": "LORA", "lora_alpha": 16, "use_rslora": False}
    (tmp_path / "adapter_config.json").write_text(json.dumps(good | {key: value}))
    save_file({}, tmp_path / "adapter_model.safetensors")
    refused(lambda: Lora.open(tmp_path), "adapter_config.json")


@pytest.mark.parametrize(
    ("a", "b"), [((0, 8), (8, 0)), ((4,), (8, 4)), ((), ()), ((4, 8), (8, 5)), ((4, 8, 1), (8, 4, 1))]
)
def test_halves_of_another_shape_are_refused(tmp_path, a, b):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 16}')
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    save_file(
        {name.format("A"): torch.zeros(a), name.format("B"): torch.zeros(b)},
        tmp_path / "adapter_model.safetensors",
    )
    refused(lambda: Lora.open(tmp_path), "two halves")


@pytest.mark.parametrize(
    "text",
    ["", "{}", "3", '["x"]', "[[]]", '[{"name": "a"}]', '[{"name": 1, "license": "b", "role": "c"}]', '[{"name": "a", "license": "b", "role": "c", "\\u001b": 1}]',
     '[{"name": "a", "license": null, "role": "c"}]', "[" * 100_000, "\x00"],
    ids=lambda text: ascii(text[:30]),
)  # fmt: skip
def test_sources_of_another_shape_are_named(tmp_path, text):
    (tmp_path / "s.json").write_text(text)
    refused(lambda: read_sources(tmp_path / "s.json"), "s.json must be a JSON list")


# ---- the commands
# -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"), [("rms_norm_eps", -1.0), ("num_hidden_layers", 10**7), ("num_attention_heads", 0)]
)
def test_export_says_it_in_one_line_and_lives(llama, tiny, tmp_path, key, value):
    config = json.loads((llama / "config.json").read_text()) | {key: value}
    (llama / "config.json").write_text(json.dumps(config))
    words = [
        sys.executable,
        "-m",
        "seed_edge",
        "export",
        "--ckpt",
        tiny,
        "--llm",
        llama,
        "--out",
        tmp_path / "out",
        "-q",
    ]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True)
    assert (
        done.returncode == 1
        and len(done.stderr.strip().splitlines()) == 1
        and f"config.json: {key}" in done.stderr
    )
    assert not (tmp_path / "out").exists()
