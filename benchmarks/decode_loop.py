#!/usr/bin/env python3
"""Compares the generation loop with a bare loop of `llama_decode`, and measures the reuse of prompts.

    python benchmarks/decode_loop.py --work FOLDER [--rounds 7]

Makes a LLaMA of 0.5 billion random weights with SEED-LLaMA's 40,194 rows (1 GB of disk, and 0.3 GB as
Q4_K_M), then lets the loops take turns. Prints one JSON object: milliseconds per id (medians), how fast ours
is, as a share of the bare one, and how many times sooner another question about the same three pictures is
read than the first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import llama_cpp
import numpy as np
import torch
from random_llama import LLAMA_HALF_B, make

from seed_edge.export.gguf import LlamaFolder
from seed_edge.export.gguf_quantize import write_as
from seed_edge.manifest import Sampling
from seed_edge.runtime.generation import generate_text, sample_codes
from seed_edge.runtime.language_model import LlamaCpp
from seed_edge.runtime.threads import available_cores
from seed_edge.vocab import Vocab

CODES, CONTEXT = 32, 256
REFERENCE = Sampling(1.0, 0, 0.5)
"""Sampling of codes in SEED-LLaMA."""


def bare(model: LlamaCpp, prompt: list[int]) -> float:
    """Return the seconds per id of `llama_decode` alone, on the context of `model`."""
    model.prefill(prompt, room=CODES)
    token = (llama_cpp.llama_token * 1)(5)
    started = time.perf_counter()
    for _ in range(CODES):
        llama_cpp.llama_decode(model._context, llama_cpp.llama_batch_get_one(token, 1))
        llama_cpp.llama_get_logits_ith(model._context, -1)  # waits for the result
    seconds = (time.perf_counter() - started) / CODES
    model.prefill(prompt[:1], room=0)
    return seconds


def text(model: LlamaCpp, vocab: Vocab, prompt: list[int], sampling: Sampling) -> float:
    model.prefill(prompt, room=CODES)  # read before the clock starts; writing finds it there
    started = time.perf_counter()
    ids = generate_text(model, vocab, prompt, sampling, 0, CODES)
    return (time.perf_counter() - started) / max(1, len(ids))


def codes(model: LlamaCpp, vocab: Vocab, prompt: list[int], sampling: Sampling) -> float:
    model.prefill(prompt, room=CODES)
    started = time.perf_counter()
    sample_codes(model, vocab, prompt, sampling, 0)
    return (time.perf_counter() - started) / CODES


def question(model: LlamaCpp, vocab: Vocab, seen_before: bool) -> float:
    """Return the seconds of prefill of a question of 12 ids about three images, after another question about
    the same images or about others.
    """
    rng = np.random.default_rng(0)
    pictures, others = (
        [i for _ in range(3) for i in vocab.codes_to_ids(rng.integers(0, vocab.codebook_size, CODES))]
        for _ in range(2)
    )
    first, second = rng.integers(3, 32000, (2, 12)).tolist()
    model.prefill([vocab.bos_id, *(pictures if seen_before else others), *first], room=CODES)
    started = time.perf_counter()
    model.prefill([vocab.bos_id, *pictures, *second], room=CODES)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    folder, path = args.work / "llama-0.5b", args.work / "llama-0.5b-Q4_K_M.gguf"
    make(folder, LLAMA_HALF_B, torch.bfloat16)
    llama = LlamaFolder.open(folder)
    vocab = llama.vocab(CODES)
    if not path.exists():
        write_as(llama, vocab, path, "Q4_K_M", "random", available_cores())
    model = LlamaCpp(path, CONTEXT)
    prompt = [vocab.bos_id, *np.random.default_rng(0).integers(3, 32000, 30).tolist()]
    greedy, warm = Sampling(0.0, 0, 1.0), Sampling(0.7, 0, 0.9)
    loops: dict[str, Callable[[], float]] = {
        "bare": lambda: bare(model, prompt),
        "text, top_k_top_p": lambda: text(model, vocab, prompt, greedy),
        "text, drawn": lambda: text(model, vocab, prompt, warm),
        "codes, top_k_top_p": lambda: codes(model, vocab, prompt, greedy),
        "codes, drawn": lambda: codes(model, vocab, prompt, REFERENCE),
    }
    asked = {
        "pictures": lambda: question(model, vocab, False),
        "pictures seen before": lambda: question(model, vocab, True),
    }
    taken: dict[str, list[float]] = {name: [] for name in (*loops, *asked)}
    for _ in range(args.rounds + 1):  # taking turns, the first round only warms up
        for name, loop in (*loops.items(), *asked.items()):
            taken[name].append(loop())
    medians = {name: statistics.median(of[1:]) for name, of in taken.items()}
    found = {
        "ms_per_id": {name: round(1e3 * medians[name], 2) for name in loops},
        "share_of_bare": {
            name: round(medians["bare"] / medians[name], 3) for name in loops if name != "bare"
        },
        "ms_to_read_a_question": {name: round(1e3 * medians[name], 1) for name in asked},
        "times_sooner": round(medians["pictures"] / medians["pictures seen before"], 1),
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
