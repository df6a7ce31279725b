"""LLaMA checkpoints as they are published: sharded, pickled, in half precision; and llama.cpp's weight types."""

import json
import shutil

import numpy as np
import pytest
import sentencepiece
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from seed_edge.errors import CheckpointError
from seed_edge.export.gguf import LlamaFolder, write_gguf
from seed_edge.export.quantize import DIRECT, quantize, weight_types
from seed_edge.export.shards import Shards
from seed_edge.runtime.language_model import LlamaCpp

PIECES, CODES = 310, 16
IDS = [1, 326, 310, 325, 311, 327, 40, 50, 60, 300]


@pytest.fixture(scope="module", params=[4, 2], ids=["MHA", "GQA"])
def folder(request, tmp_path_factory):
    """A random LLaMA with 256-wide rows, as K-quants need; large weights, so that errors show."""
    out = tmp_path_factory.mktemp("llama")
    words = "a red fox a drawing of a house the photo of a cat and a dog on green grass please draw me " * 4
    with open(out / "tokenizer.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([words]), model_writer=file, model_type="bpe", vocab_size=PIECES, byte_fallback=True,
            normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
        )  # fmt: skip
    added = {f"<img_{code:05d}>": PIECES + code for code in range(CODES)}
    (out / "added_tokens.json").write_text(json.dumps(added | {"<img>": PIECES + CODES, "</img>": PIECES + CODES + 1}))
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
        return np.stack([model.start(IDS[:1], room=0), *(model.step(i) for i in IDS[1:])])
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
        f"pytorch_model-{i:05d}-of-{files:05d}.bin" if kind == "bin" else f"model-{i:05d}-of-{files:05d}.safetensors"
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
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
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


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": 3}', "{}"])
def test_a_broken_index_is_named(folder, tmp_path, text):
    sharded = reshard(folder, tmp_path / "sharded", "bin", torch.float32)
    (sharded / "pytorch_model.bin.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json is no index of shards"):
        Shards.open(sharded)


def test_an_index_cannot_name_a_file_elsewhere(folder, tmp_path):
    sharded = reshard(folder, tmp_path / "sharded", "bin", torch.float32)
    index = sharded / "pytorch_model.bin.index.json"
    index.write_text(index.read_text().replace("pytorch_model-00001", "../../pytorch_model-00001"))
    assert Shards.open(sharded).files["lm_head.weight"].parent == sharded


@pytest.mark.parametrize(
    ("weight_type", "least"),
    # random weights have no slack to lose; the lowest measured: 0.9993, 0.996, 0.986, 0.951, 0.927, 0.947, 0.859, 0.694
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
    assert set(DIRECT) | {"Q4_K_M", "Q4_0", "Q5_1", "IQ4_NL", "TQ1_0"} <= set(weight_types())
    source = convert(folder, tmp_path / "f16.gguf", "F16")
    with pytest.raises(CheckpointError, match="cannot write IQ1_S"):
        quantize(source, tmp_path / "llm.gguf", "IQ1_S", threads=1)
