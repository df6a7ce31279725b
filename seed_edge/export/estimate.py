"""Estimates of size, memory and time of an export, reported before any work; a full disk is an error here."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from seed_edge.errors import CheckpointError
from seed_edge.export.diffusion import TRACED, weight_file
from seed_edge.export.gguf import LlamaFolder
from seed_edge.export.gguf_quantize import bits_of
from seed_edge.export.hf_weights import shapes_in
from seed_edge.memory import available_memory
from seed_edge.models.config import PixelGeometry, SeedGeometry
from seed_edge.models.image_tokenizer import PixelTokenizer, SeedTokenizer

GIGA, MEGA = 1e9, 1e6
STORED_BYTES = {"fp32": 4.0, "fp16": 2.0, "int8": 1.01}
"""Bytes per weight of a graph."""
TRACED_BYTES = 4
"""Bytes per weight of a graph as it is traced, before it is rewritten."""
BASE_MEMORY = 0.7e9
"""Memory of the exporting process itself, in bytes."""
TOKENIZER_MEMORY, DIFFUSION_MEMORY = 2.1, 3.8
"""Peak memory of tracing and comparing graphs, on top, in multiples of the fp32 weights of the largest
(`benchmarks/full_size.py`: 9.8 GB, `benchmarks/full_diffusion.py`: 13.8 GB)."""
LAYER_MEMORY = 2.5
"""Peak memory of converting and comparing a language model, in multiples of its largest matrix in fp32
(`benchmarks/streaming.py`: 1.4 GB, 2.0 with an adapter), not counting the finished file, which llama.cpp
maps.
"""
BYTES_PER_SECOND = 50e6
"""Of weights read, written or traced, all in all, on two cores and a slow disk (the same benchmarks: 43 to
73).
"""


@dataclass(frozen=True)
class Need:
    """Estimate of one part of an export."""

    part: str
    sources: list[Path]
    parameters: int
    written: float
    """Approximate size of the result, in bytes."""
    scratch: float
    """Temporary disk space, in bytes."""
    memory: float
    """Peak memory, in bytes."""

    def line(self) -> str:
        """The estimate as a line of text."""
        found = ", ".join(map(str, self.sources))
        return (
            f"{self.part}: {self.parameters / MEGA:,.1f} M parameters in {found}; "
            f"{size(self.written)} to write"
        )


def size(count: float) -> str:
    """A number of bytes with a unit."""
    return f"{count / GIGA:.1f} GB" if count >= 0.1 * GIGA else f"{count / MEGA:.1f} MB"


def of_tokenizer(geometry: PixelGeometry | SeedGeometry, sources: list[Path], storage: str) -> Need:
    """An image tokenizer: two graphs, traced one after the other."""
    with torch.device("meta"):
        model = PixelTokenizer(geometry) if isinstance(geometry, PixelGeometry) else SeedTokenizer(geometry)
    count = sum(p.numel() for p in model.parameters())
    return of_graphs("image tokenizer", sources, count, count, storage, TOKENIZER_MEMORY)


def of_copies(files: list[Path]) -> Need:
    """Estimate of copying the graphs of a bundle."""
    return Need(
        "image tokenizer",
        [files[0].parent],
        0,
        float(sum(file.stat().st_size for file in files)),
        0.0,
        BASE_MEMORY,
    )


def of_diffusion(folder: Path, storage: str) -> Need:
    """A diffusion: UNet and VAE."""
    files = [weight_file(folder / part) for part in TRACED]
    counts = [sum(prod(shape) for shape in shapes_in(file).values()) for file in files]
    return of_graphs("diffusion", files, sum(counts), max(counts), storage, DIFFUSION_MEMORY)


def of_graphs(part: str, sources: list[Path], count: int, largest: int, storage: str, memory: float) -> Need:
    """Graphs with `count` weights in all, `largest` in the largest of them, whose size `memory`
    multiplies.
    """
    traced = TRACED_BYTES * largest
    return Need(part, sources, count, STORED_BYTES[storage] * count, traced, memory * traced)


def of_language(llama: LlamaFolder, weight_type: str) -> Need:
    """A language model, converted tensor by tensor; types that llama.cpp makes go over an F16 file."""
    counts = [prod(shape) for shape in llama.shapes().values()]
    plain = {"F32": 4.0, "F16": 2.0, "BF16": 2.0, "Q8_0": 1.07}
    each = (
        plain[weight_type] if weight_type in plain else (bits_of(weight_type) + 1) / 8
    )  # Q4_K_M takes 4.9, others less
    scratch = 0.0 if weight_type in plain else 2.0 * sum(counts)
    return Need(
        "language model",
        [llama.weights_path],
        sum(counts),
        each * sum(counts),
        scratch,
        LAYER_MEMORY * 4 * max(counts),
    )


def announce(needs: list[Need], out: Path, kept: int, report: Callable[[str], None]) -> None:
    """Report the estimates.

    Args:
        kept: bytes that an interrupted run has written already.

    Raises:
        CheckpointError: the disk at `out` is too small.
    """
    for need in needs:
        report(f"plan: {need.line()}")
    disk = sum(need.written for need in needs) + max(need.scratch for need in needs)
    memory, free, there = (
        BASE_MEMORY + max(need.memory for need in needs),
        available_memory(),
        existing(out.absolute().parent),
    )
    free_disk = shutil.disk_usage(there).free
    work = sum(need.written + 2 * need.scratch + 4 * need.parameters for need in needs)
    minutes = max(1, round(work / BYTES_PER_SECOND / 60))
    having = "" if free is None else f" ({size(free)} free)"
    report(
        f"plan: takes {size(disk)} of disk in {there} ({size(free_disk)} free), "
        f"about {size(memory)} of memory{having} and {minutes} {'minute' if minutes == 1 else 'minutes'}"
    )
    if free_disk + kept < disk:
        raise CheckpointError(
            f"{there} has {size(free_disk)} free, the export takes {size(disk)}; choose another --output"
        )
    if free is not None and free < memory:
        report(
            "plan: memory is short; the system may slow down or end the export, which then goes on where "
            "it was"
        )


def existing(path: Path) -> Path:
    """The nearest folder at or above `path` that exists."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())
