"""LLaMAs with random weights and SEED-LLaMA's vocabulary, for the other benchmarks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

TOKENIZER = Path(__file__).parent.parent / "tests" / "fixtures" / "seed2" / "tokenizer.model"
TEXT_PIECES, CODES = 32000, 8192
SHARD = 5_000_000_000


def config(width: int, mlp: int, layers: int, heads: int) -> dict[str, object]:
    """Return a `config.json` with SEED-LLaMA's vocabulary."""
    return {
        "vocab_size": TEXT_PIECES + CODES + 2, "hidden_size": width, "intermediate_size": mlp,
        "num_hidden_layers": layers, "num_attention_heads": heads, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip


LLAMA_7B = config(4096, 11008, 32, 32)
LLAMA_HALF_B = config(1280, 3584, 20, 20)


def tensors(config: dict) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a LLaMA's tensors."""
    width, mlp, rows = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, width)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        found |= {f"{layer}.self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
        found |= {f"{layer}.mlp.{name}_proj.weight": (mlp, width) for name in ("gate", "up")}
        found |= {f"{layer}.mlp.down_proj.weight": (width, mlp)}
        found |= {f"{layer}.{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    return found | {"model.norm.weight": (width,), "lm_head.weight": (rows, width)}


def make(folder: Path, config: dict, dtype: torch.dtype) -> None:
    """Write random weights in shards, with the tokenizer of the fixtures; a finished folder is kept."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(TOKENIZER, folder)
    added = {f"<img_{code:05d}>": TEXT_PIECES + code for code in range(CODES)}
    added |= {"<img>": TEXT_PIECES + CODES, "</img>": TEXT_PIECES + CODES + 1}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    where, part, size, number = {}, {}, 0, 1
    generator = torch.Generator().manual_seed(0)
    shapes = tensors(config)
    for name, shape in shapes.items():
        part[name] = (torch.randn(shape, generator=generator) * 0.02).to(dtype)
        where[name], size = f"model-{number:05d}.safetensors", size + part[name].nbytes
        if size > SHARD or name == list(shapes)[-1]:
            save_file(part, folder / where[name])
            part, size, number = {}, 0, number + 1
    index.write_text(json.dumps({"weight_map": where}))
