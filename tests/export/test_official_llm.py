"""LLaMA checkpoints as they are published: sharded, pickled, in half precision; and llama.cpp's weight types."""

import json
import shutil

import numpy as np
import pytest
import torch
from helpers import write_pieces
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from seed_edge.errors import CheckpointError
from seed_edge.export.gguf import LlamaFolder, write_gguf
from seed_edge.export.gguf_quantize import DIRECT_TYPES, quantize, weight_types
from seed_edge.export.hf_weights import Shards
from seed_edge.export.llama_reference import logits
from seed_edge.runtime.language_model import LlamaCpp

PIECES, CODES = 310, 16
IDS = [1, 326, 310, 325, 311, 327, 40, 50, 60, 300]


@pytest.fixture(scope="module", params=[4, 2], ids=["MHA", "GQA"])
def folder(request, tmp_path_factory):
    """A random LLaMA with 256-wide rows, as K-quants need; large weights, so that errors show."""
    out = tmp_path_factory.mktemp("llama")
    words = "a red fox a drawing of a house the photo of a cat and a dog on green grass please draw me " * 4
    write_pieces(out / "tokenizer.model", words, PIECES)
    added = {f"<img_{code:05d}>": PIECES + code for code in range(CODES)}
    (out / "added_tokens.json").write_text(
        json.dumps(added | {"<img>": PIECES + CODES, "</img>": PIECES + CODES + 1})
    )
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=PIECES + CODES + 2, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=request.param, max_position_embeddings=128, initializer_range=0.1, rms_norm_eps=1e-5,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(out)
    return out


def logits_of(path):
    model = LlamaCpp(path, 64, precise=True)
    try:
        return np.stack([model.prefill(IDS[:1], room=0), *(model.step(i) for i in IDS[1:])])
    finally:
        model.close()


def reference(folder, dtype=torch.float32):
    with torch.inference_mode():
        model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype).float()
        return model(torch.tensor([IDS])).logits[0].numpy()


def convert(folder, path, weight_type="F32"):
    opened = LlamaFolder.open(folder)
    write_gguf(opened, opened.vocab(4), path, weight_type, "random")
    return path


def reshard(folder, out, kind, dtype, files=3):
    """The same weights in another official layout, with a leftover of old checkpoints."""
    out.mkdir()
    for name in ("config.json", "tokenizer.model", "added_tokens.json"):
        shutil.copy(folder / name, out)
    state = {name: t.to(dtype) for name, t in LlamaForCausalLM.from_pretrained(folder).state_dict().items()}
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.arange(32.0)
    names = [
        f"pytorch_model-{i:05d}-of-{files:05d}.bin"
        if kind == "bin"
        else f"model-{i:05d}-of-{files:05d}.safetensors"
        for i in range(1, files + 1)
    ]
    where = {tensor: names[i % files] for i, tensor in enumerate(state)}
    for name in names:
        part = {tensor: state[tensor].clone() for tensor in state if where[tensor] == name}
        torch.save(part, out / name) if kind == "bin" else save_file(part, out / name)
    index = "pytorch_model.bin.index.json" if kind == "bin" else "model.safetensors.index.json"
    (out / index).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return out


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"]
)
def test_shards_of_any_format_and_precision_give_the_logits_of_transformers(folder, tmp_path, kind, dtype):
    sharded = reshard(folder, tmp_path / "sharded", kind, dtype)
    wanted = reference(folder) if dtype == torch.float32 else reference(sharded, dtype)
    assert np.abs(logits_of(convert(sharded, tmp_path / "llm.gguf")) - wanted).max() < 1e-3


def test_a_single_pickled_file_is_read(folder, tmp_path):
    sharded = reshard(folder, tmp_path / "one", "bin", torch.float32, files=1)
    (sharded / "pytorch_model.bin.index.json").unlink()
    (sharded / "pytorch_model-00001-of-00001.bin").rename(sharded / "pytorch_model.bin")
    a, b = convert(sharded, tmp_path / "a.gguf"), convert(folder, tmp_path / "b.gguf")
    assert a.read_bytes() == b.read_bytes()


def test_a_missing_shard_or_a_tensor_gone_from_one_is_named(folder, tmp_path):
    sharded = reshard(folder, tmp_path / "sharded", "bin", torch.float32)
    lost = sharded / "pytorch_model-00002-of-00003.bin"
    part = torch.load(lost, weights_only=True)
    name = next(iter(part))
    torch.save({k: v for k, v in part.items() if k != name}, lost)
    with pytest.raises(CheckpointError, match=f"{lost.name}: tensor {name} is missing"):
        Shards.open(sharded)
    lost.unlink()
    with pytest.raises(CheckpointError, match=f"{lost.name} is missing"):
        Shards.open(sharded)


def test_the_reference_run_layer_by_layer_is_transformers(folder):
    assert np.abs(logits(LlamaFolder.open(folder), IDS) - reference(folder)).max() < 1e-4


ALPHA, RANK = 32, 4
ADAPTED = [
    f"model.layers.{i}.{name}"
    for i in range(2)
    for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj")
]


def adapter(folder, out, suffix="", whole="", **settings):
    """An adapter as PEFT writes it, and the state of the model it makes; embeddings and norms are trained
    whole.
    """
    rng = torch.Generator().manual_seed(3)
    state = LlamaForCausalLM.from_pretrained(folder).state_dict()
    tensors = {}
    for module in ADAPTED:
        rows, columns = state[f"{module}.weight"].shape
        a, b = torch.randn(RANK, columns, generator=rng) * 0.05, torch.randn(rows, RANK, generator=rng) * 0.05
        tensors[f"base_model.model.{module}.lora_A{suffix}.weight"] = a
        tensors[f"base_model.model.{module}.lora_B{suffix}.weight"] = b
        state[f"{module}.weight"] += ALPHA / (RANK**0.5 if settings.get("use_rslora") else RANK) * b @ a
    for module in ("model.embed_tokens", "lm_head", "model.norm"):
        state[f"{module}.weight"] = state[f"{module}.weight"] + 0.1
        tensors[f"base_model.model.{module}{whole}.weight"] = state[f"{module}.weight"].clone()
    out.mkdir()
    save_file(tensors, out / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": ALPHA,
        "bias": "none",
        "use_dora": False,
        "alpha_pattern": {},
    }
    (out / "adapter_config.json").write_text(json.dumps(config | settings))
    return state


def logits_of_state(folder, state):
    model = LlamaForCausalLM.from_pretrained(folder)
    model.load_state_dict(state)
    with torch.inference_mode():
        return model(torch.tensor([IDS])).logits[0].numpy()


@pytest.mark.parametrize(
    ("suffix", "whole", "settings"),
    [("", "", {}), (".default", ".modules_to_save.default", {"use_rslora": True})],
)
def test_an_adapter_is_merged(folder, tmp_path, suffix, whole, settings):
    state = adapter(folder, tmp_path / "lora", suffix, whole, **settings)
    opened = LlamaFolder.open(folder, lora=tmp_path / "lora")
    write_gguf(opened, opened.vocab(4), tmp_path / "llm.gguf", "F32", "merged")
    found, wanted = logits_of(tmp_path / "llm.gguf"), logits_of_state(folder, state)
    assert np.abs(found - wanted).max() < 1e-3
    assert np.abs(wanted - reference(folder)).max() > 0.1


def test_an_adapter_may_bring_the_rows_of_the_codes(folder, tmp_path):
    state = adapter(folder, tmp_path / "lora")
    base = tmp_path / "base"
    shutil.copytree(folder, base)
    small = {name: t[:PIECES].clone() if len(t) == PIECES + CODES + 2 else t for name, t in state.items()}
    for name in ADAPTED:
        small[f"{name}.weight"] = (
            LlamaForCausalLM.from_pretrained(folder).state_dict()[f"{name}.weight"].clone()
        )
    save_file(small, base / "model.safetensors")
    config = json.loads((base / "config.json").read_text()) | {"vocab_size": PIECES}
    (base / "config.json").write_text(json.dumps(config))
    opened = LlamaFolder.open(base, lora=tmp_path / "lora")
    write_gguf(opened, opened.vocab(4), tmp_path / "llm.gguf", "F32", "merged")
    assert np.abs(logits_of(tmp_path / "llm.gguf") - logits_of_state(folder, state)).max() < 1e-3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_dora": True}, "use_dora True cannot be merged"),
        ({"bias": "all"}, "bias all cannot be merged"),
        ({"peft_type": "IA3"}, "is not that of a LoRA"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(folder, tmp_path, settings, words):
    adapter(folder, tmp_path / "lora", **settings)
    with pytest.raises(CheckpointError, match=words):
        LlamaFolder.open(folder, lora=tmp_path / "lora")


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        (
            "base_model.model.model.layers.7.self_attn.q_proj.weight",
            torch.zeros(256, 256),
            "layers.7.self_attn.q_proj",
        ),
        ("base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight", torch.zeros(4, 256), "two halves"),
        (
            "base_model.model.model.embed_tokens.lora_embedding_A",
            torch.zeros(4, 328),
            "not part of a plain LoRA",
        ),
        (
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
            torch.zeros(4, 128),
            "has shape",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_is_named(folder, tmp_path, name, tensor, words):
    adapter(folder, tmp_path / "lora")
    path = tmp_path / "lora" / "adapter_model.safetensors"
    save_file(load_file(path) | {name: tensor}, path)
    with pytest.raises(CheckpointError, match=words):
        opened = LlamaFolder.open(folder, lora=tmp_path / "lora")
        write_gguf(opened, opened.vocab(4), tmp_path / "llm.gguf", "F32", "merged")


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": 3}', "{}"])
def test_a_broken_index_is_named(folder, tmp_path, text):
    sharded = reshard(folder, tmp_path / "sharded", "bin", torch.float32)
    (sharded / "pytorch_model.bin.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json is not an index of shards"):
        Shards.open(sharded)


def test_an_index_cannot_name_a_file_elsewhere(folder, tmp_path):
    sharded = reshard(folder, tmp_path / "sharded", "bin", torch.float32)
    index = sharded / "pytorch_model.bin.index.json"
    index.write_text(index.read_text().replace("pytorch_model-00001", "../../pytorch_model-00001"))
    assert Shards.open(sharded).files["lm_head.weight"].parent == sharded


@pytest.mark.parametrize(
    ("weight_type", "least"),
    # random weights have no slack to lose; the lowest measured: 0.9993, 0.996, 0.986, 0.951, 0.927, 0.947,
    # 0.859, 0.694
    [
        ("Q8_0", 0.999),
        ("Q6_K", 0.99),
        ("Q5_K_S", 0.98),
        ("Q4_K_M", 0.94),
        ("Q4_0", 0.92),
        ("IQ4_XS", 0.92),
        ("Q3_K_M", 0.8),
        ("Q2_K", 0.5),
    ],
)
def test_smaller_types_load_generate_and_keep_the_rows_of_codes_at_q8(folder, tmp_path, weight_type, least):
    source = convert(folder, tmp_path / "f16.gguf", "F16")
    path = tmp_path / "llm.gguf"
    quantize(source, path, weight_type, threads=1)
    found, wanted = logits_of(path), logits_of(source)
    assert np.isfinite(found).all()
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > least, weight_type
    import gguf

    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert kinds["output.weight"] == kinds["token_embd.weight"] == "Q8_0"
    assert weight_type == "Q8_0" or path.stat().st_size < (tmp_path / "f16.gguf").stat().st_size / 1.8


def test_every_type_of_llama_cpp_is_offered_and_one_it_refuses_is_explained(folder, tmp_path):
    assert set(DIRECT_TYPES) | {"Q4_K_M", "Q4_0", "Q5_1", "IQ4_NL", "TQ1_0"} <= set(weight_types())
    source = convert(folder, tmp_path / "f16.gguf", "F16")
    with pytest.raises(CheckpointError, match="cannot write IQ1_S"):
        quantize(source, tmp_path / "llm.gguf", "IQ1_S", threads=1)
