#!/usr/bin/env python3
"""A LLaMA of 7 billion random weights to GGUF: time and memory, whatever the precision it comes in.

    python benchmarks/streaming.py --work FOLDER [--dtype bfloat16] [--weight-type Q8_0] [--lora]

Needs 14 GB of disk for bfloat16 (27 GB for float32) and 8 GB more for the result. Writes shards of 5 GB in the shape of
SEED-LLaMA-8B, one tensor at a time, converts them, and prints one JSON object: seconds and peak memory (GB) of the
conversion as a whole process. With `--lora` an adapter is merged that SEED's recipe would give: rank 16 on all projections,
embeddings and head trained whole.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import torch
from process import cost
from safetensors.torch import save_file

TOKENIZER = Path(__file__).parent.parent / "tests" / "fixtures" / "seed2" / "tokenizer.model"
TEXT_PIECES, CODES = 32000, 8192
CONFIG = {
    "vocab_size": TEXT_PIECES + CODES + 2, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SHARD = 5_000_000_000
RANK = 16
CONVERT = """
import sys
from pathlib import Path
from seed_edge.export.gguf import LlamaFolder
from seed_edge.export.quantize import write_as
folder = LlamaFolder.open(Path(sys.argv[1]), lora=Path(sys.argv[4]) if sys.argv[4] else None)
write_as(folder, folder.vocab(32), Path(sys.argv[2]), sys.argv[3], "random", 2)
"""


def tensors(config: dict) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a LLaMA."""
    width, mlp, rows = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, width)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        found |= {f"{layer}.self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
        found |= {f"{layer}.mlp.{name}_proj.weight": (mlp, width) for name in ("gate", "up")}
        found |= {f"{layer}.mlp.down_proj.weight": (width, mlp)}
        found |= {f"{layer}.{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    return found | {"model.norm.weight": (width,), "lm_head.weight": (rows, width)}


def make(folder: Path, dtype: torch.dtype) -> None:
    """Random weights in shards, with the tokenizer of the fixtures."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    shutil.copy(TOKENIZER, folder)
    added = {f"<img_{code:05d}>": TEXT_PIECES + code for code in range(CODES)}
    added |= {"<img>": TEXT_PIECES + CODES, "</img>": TEXT_PIECES + CODES + 1}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    where, part, size, number = {}, {}, 0, 1
    generator = torch.Generator().manual_seed(0)
    shapes = tensors(CONFIG)
    for name, shape in shapes.items():
        part[name] = (torch.randn(shape, generator=generator) * 0.02).to(dtype)
        where[name], size = f"model-{number:05d}.safetensors", size + part[name].nbytes
        if size > SHARD or name == list(shapes)[-1]:
            save_file(part, folder / where[name])
            part, size, number = {}, 0, number + 1
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def make_adapter(folder: Path, dtype: torch.dtype) -> None:
    """Random changes in the layout of PEFT."""
    generator, state = torch.Generator().manual_seed(1), {}
    for name, shape in tensors(CONFIG).items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        if "_proj" in name:
            state[f"{module}.lora_A.weight"] = (torch.randn(RANK, shape[1], generator=generator) * 0.02).to(dtype)
            state[f"{module}.lora_B.weight"] = (torch.randn(shape[0], RANK, generator=generator) * 0.02).to(dtype)
        elif name in ("model.embed_tokens.weight", "lm_head.weight"):
            state[f"{module}.weight"] = (torch.randn(shape, generator=generator) * 0.02).to(dtype)
    folder.mkdir(parents=True)
    save_file(state, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--weight-type", default="Q8_0")
    parser.add_argument("--lora", action="store_true")
    args = parser.parse_args()
    folder = args.work / f"llama-7b-{args.dtype}"
    if not (folder / "model.safetensors.index.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        make(folder, getattr(torch, args.dtype))
    adapter = args.work / f"lora-{args.dtype}" if args.lora else None
    if adapter is not None and not (adapter / "adapter_config.json").exists():
        shutil.rmtree(adapter, ignore_errors=True)
        make_adapter(adapter, getattr(torch, args.dtype))
    out = args.work / f"llama-7b-{args.weight_type}.gguf"
    command = [sys.executable, "-c", CONVERT, str(folder), str(out), args.weight_type, str(adapter or "")]
    spent = cost(command)
    result = {"dtype": args.dtype, "lora": args.lora, "weight_type": args.weight_type, "bytes": out.stat().st_size}
    print(json.dumps(result | spent))


if __name__ == "__main__":
    main()
