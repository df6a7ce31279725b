#!/usr/bin/env python3
"""Compares full-size graphs of a bundle with PyTorch, alternating, on the same weights, threads and inputs.

    python benchmarks/beside_torch.py encoder --work FOLDER [--rounds 5]
    python benchmarks/beside_torch.py unet --work FOLDER [--rounds 3]

FOLDER is that of `full_size.py` (`encoder`: SEED-2, one picture) or of `full_diffusion.py` (`unet`: one step
of two latents of 768 px, as guidance needs), run before with the storages to compare. Prints one JSON object
for PyTorch, eager, and for each storage: seconds (medians), how many times faster than PyTorch's fp32, and
the memory it takes in a process of its own, in GB and as a share of PyTorch's fp32. Needs 16 GB.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seed_edge.graphs import encoder_graph, unet_graph
from seed_edge.manifest import ENCODER, UNET
from seed_edge.memory import peak_memory, reset_peak, resident_memory
from seed_edge.runtime.onnx_session import Session, choose_device
from seed_edge.runtime.threads import available_cores

STORAGES = ("fp32", "fp16", "int8")
SIZE, CODES, CHANNELS, LATENTS, DIM = 224, 32, 4, 96, 1024
Run = Callable[[], object]


def pictures() -> list[NDArray[np.generic]]:
    """Return one smooth image, normalised."""
    coarse = np.random.default_rng(0).standard_normal((1, 3, 7, 7)).astype(np.float32)
    return [coarse.repeat(SIZE // 7, 2).repeat(SIZE // 7, 3)]


def noisy_latents() -> list[NDArray[np.generic]]:
    """Return two latents, a timestep and class labels."""
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((2, CHANNELS, LATENTS, LATENTS), np.float32)
    return [latents, np.full(2, 500, np.int64), rng.standard_normal((2, 2 * DIM), np.float32)]


def torch_run(what: str, work: Path, dtype: str) -> Run:
    """Return a forward pass of PyTorch, eager."""
    import torch

    torch.set_num_threads(available_cores())
    kind = getattr(torch, dtype)
    if what == "encoder":
        from seed_edge.models.checkpoints import load_seed_tokenizer

        model = load_seed_tokenizer(work / "full-7", None, lambda text: None).to(kind)
        call = model.encode
        inputs = pictures()
    else:
        from seed_edge.export.diffusion import UnclipFolder, UnetWithoutText

        folder = UnclipFolder.open(work / "diffusion")
        call = UnetWithoutText(folder.unet, folder.empty_text).to(kind)
        inputs = noisy_latents()
    given = [torch.from_numpy(array) for array in inputs]
    given = [tensor.to(kind) if tensor.is_floating_point() else tensor for tensor in given]

    def run() -> object:
        with torch.inference_mode():
            return call(*given)

    return run


def bundle_run(what: str, work: Path, storage: str) -> Run:
    """Return a run of a graph in the runtime."""
    folder = work / f"bundle-{storage}"
    if what == "encoder":
        name, spec, inputs = ENCODER, encoder_graph(SIZE, CODES), pictures()
    else:
        name, spec, inputs = UNET, unet_graph(CHANNELS, LATENTS, DIM), noisy_latents()
    session = Session(folder / name, spec, choose_device("cpu"))
    return lambda: session(*inputs)


def make(what: str, work: Path, name: str) -> Run:
    """Return the run of a row by its name: `torch DTYPE`, or a storage type."""
    return (
        torch_run(what, work, name.split()[1]) if name.startswith("torch") else bundle_run(what, work, name)
    )


def memory(what: str, work: Path, name: str) -> tuple[float, float]:
    """Return the memory in GB, beyond a process that has imported everything: held after a first run, and the
    peak of a second run.
    """
    if name.startswith("torch"):
        import torch  # noqa: F401
    before = resident_memory() or 0
    run = make(what, work, name)
    run()
    held = resident_memory() or 0
    reset_peak()
    run()
    return (held - before) / 1e9, ((peak_memory() or 0) - before) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["encoder", "unet"])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    stored = [storage for storage in STORAGES if (args.work / f"bundle-{storage}").is_dir()]
    names = ["torch float32", *(["torch bfloat16"] if args.what == "encoder" else []), *stored]
    spent = {}
    for name in names:
        with multiprocessing.get_context("spawn").Pool(1) as alone:
            spent[name] = alone.apply(memory, (args.what, args.work, name))
    runs = {name: make(args.what, args.work, name) for name in names}
    taken: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(args.rounds + 1):  # taking turns, the first round only warms up
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - started)
    seconds = {name: statistics.median(of[1:]) for name, of in taken.items()}
    first = names[0]
    for name in names:
        held, peak = spent[name]
        row = {"what": args.what, "by": name, "seconds": round(seconds[name], 3)}
        row |= {
            "times_faster": round(seconds[first] / seconds[name], 2),
            "held_gb": round(held, 2),
            "peak_gb": round(peak, 2),
        }
        print(json.dumps(row | {"share_of_memory": round(peak / spent[first][1], 2)}), flush=True)


if __name__ == "__main__":
    main()
