#!/usr/bin/env python3
"""Measures time and memory of converting a LLaMA of 7 billion random weights to GGUF.

    python benchmarks/streaming.py --work FOLDER [--dtype bfloat16] [--weight-type Q8_0] [--lora]

Needs 14 GB of disk for bfloat16 (27 GB for float32) and 8 GB more for the result. Writes shards of 5 GB in
the shape of SEED-LLaMA-8B, one tensor at a time, converts them, and prints one JSON object: seconds and peak
memory (GB) of the conversion as a whole process. `--lora` merges an adapter like that of SEED's recipe:
rank 16 on all projections, embeddings and head trained in full.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import torch
from process import cost
from random_llama import LLAMA_7B, make, tensors
from safetensors.torch import save_file

RANK = 16
CONVERT = """
import sys
from pathlib import Path
from seed_edge.export.gguf import LlamaFolder
from seed_edge.export.gguf_quantize import write_as
folder = LlamaFolder.open(Path(sys.argv[1]), lora=Path(sys.argv[4]) if sys.argv[4] else None)
write_as(folder, folder.vocab(32), Path(sys.argv[2]), sys.argv[3], "random", 2)
"""


def make_adapter(folder: Path, dtype: torch.dtype) -> None:
    """Write a random adapter in PEFT's layout."""
    generator, state = torch.Generator().manual_seed(1), {}
    for name, shape in tensors(LLAMA_7B).items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        if "_proj" in name:
            state[f"{module}.lora_A.weight"] = (torch.randn(RANK, shape[1], generator=generator) * 0.02).to(
                dtype
            )
            state[f"{module}.lora_B.weight"] = (torch.randn(shape[0], RANK, generator=generator) * 0.02).to(
                dtype
            )
        elif name in ("model.embed_tokens.weight", "lm_head.weight"):
            state[f"{module}.weight"] = (torch.randn(shape, generator=generator) * 0.02).to(dtype)
    folder.mkdir(parents=True)
    save_file(state, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK})
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--weight-type", default="Q8_0")
    parser.add_argument("--lora", action="store_true")
    args = parser.parse_args()
    folder = args.work / f"llama-7b-{args.dtype}"
    make(folder, LLAMA_7B, getattr(torch, args.dtype))
    adapter = args.work / f"lora-{args.dtype}" if args.lora else None
    if adapter is not None and not (adapter / "adapter_config.json").exists():
        shutil.rmtree(adapter, ignore_errors=True)
        make_adapter(adapter, getattr(torch, args.dtype))
    out = args.work / f"llama-7b-{args.weight_type}.gguf"
    command = [sys.executable, "-c", CONVERT, str(folder), str(out), args.weight_type, str(adapter or "")]
    spent = cost(command)
    result = {
        "dtype": args.dtype,
        "lora": args.lora,
        "weight_type": args.weight_type,
        "bytes": out.stat().st_size,
    }
    print(json.dumps(result | spent))


if __name__ == "__main__":
    main()
