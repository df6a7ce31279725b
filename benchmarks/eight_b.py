#!/usr/bin/env python3
"""Measures the memory of captioning and drawing with SEED-LLaMA-8B (random weights) under a memory limit.

    python benchmarks/eight_b.py --work FOLDER [--limit 6G] [--steps 2]

Needs 50 GB of disk in FOLDER and 16 GB of memory for the export, which takes half an hour; reuses the files
of `full_size.py`, `full_diffusion.py` and `streaming.py` there. Prints one JSON object per command: seconds,
and the peak memory (GB) of the process, including mapped files.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from full_diffusion import make as make_diffusion
from process import cost, measured
from random_llama import LLAMA_7B, make

REFERENCE = Path(__file__).parent.parent / "tests" / "fixtures" / "seed2"
PHOTO = Path(__file__).parent.parent / "examples" / "coffee.jpg"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--limit", default="6G")
    parser.add_argument("--steps", type=int, default=2)
    args = parser.parse_args()
    tokenizer, diffusion, llama = (args.work / name for name in ("full-7", "diffusion", "llama-7b-bfloat16"))
    bundle, drawn = args.work / "bundle-8b", args.work / "8b.png"
    edge = [sys.executable, "-m", "seed_edge"]
    if not (bundle / "manifest.json").exists():
        if not (tokenizer / "geometry.json").exists():
            maker = [
                sys.executable,
                str(REFERENCE / "make_checkpoint.py"),
                "--geometry",
                "full",
                "--seed",
                "7",
            ]
            measured([*maker, "--out", str(tokenizer)])
        if not (diffusion / "scheduler").exists():
            make_diffusion(diffusion)
        make(llama, LLAMA_7B, torch.bfloat16)
        parts = [
            "--ckpt",
            str(tokenizer),
            "--diffusion",
            str(diffusion),
            "--llm",
            str(llama),
            "--out",
            str(bundle),
        ]
        kinds = ["--weight-type", "Q4_K_M", "--image-weights", "int8", "--overwrite"]
        print(json.dumps({"export": cost([*edge, "export", *parts, *kinds])}), flush=True)
    kept = ["--bundle", str(bundle), "--memory-limit", args.limit, "-v"]
    for name, command in {
        "caption": [*edge, "caption", str(PHOTO), *kept],
        "draw": [
            *edge,
            "draw",
            "a red fox",
            "--seed",
            "7",
            "--steps",
            str(args.steps),
            "-o",
            str(drawn),
            *kept,
        ],
    }.items():
        print(json.dumps({name: cost(command), "limit": args.limit}), flush=True)


if __name__ == "__main__":
    main()
