"""Estimates of the disk space, memory and time of an export, reported before it starts; a full disk is an
error.
"""

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
"""Bytes per weight of a traced graph, before it is rewritten."""
BASE_MEMORY = 0.7e9
"""Memory of the exporting process itself, in bytes."""
TOKENIZER_MEMORY, DIFFUSION_MEMORY = 2.1, 3.8
"""Peak memory of tracing and comparing graphs beyond `BASE_MEMORY`, in multiples of the fp32 weights of the
largest graph (`benchmarks/full_size.py`: 9.8 GB, `benchmarks/full_diffusion.py`: 13.8 GB)."""
LAYER_MEMORY = 2.5
"""Peak memory of converting and comparing a language model, in multiples of its largest matrix in fp32
(`benchmarks/streaming.py`: 1.4 GB, 2.0 with an adapter), not counting the finished file, which llama.cpp
maps.
"""
BYTES_PER_SECOND = 50e6
"""Average rate at which weights are read, written and traced on two cores and a slow disk (the same
benchmarks: 43 to 73 MB/s).
"""


@dataclass(frozen=True)
class Estimate:
    """Estimate of one part of an export."""

    part: str
    sources: list[Path]
    parameters: int
    written: float
    """Size of the written files, in bytes."""
    scratch: float
    """Temporary disk space, in bytes."""
    memory: float
    """Peak memory, in bytes."""

    def line(self) -> str:
        """Return the estimate as a line of text."""
        sources = ", ".join(map(str, self.sources))
        return (
            f"{self.part}: {self.parameters / MEGA:,.1f} M parameters in {sources}; "
            f"{format_bytes(self.written)} to write"
        )


def format_bytes(count: float) -> str:
    """Return a number of bytes with a unit."""
    return f"{count / GIGA:.1f} GB" if count >= 0.1 * GIGA else f"{count / MEGA:.1f} MB"


def estimate_tokenizer(geometry: PixelGeometry | SeedGeometry, sources: list[Path], storage: str) -> Estimate:
    """Estimate the export of an image tokenizer: two graphs, traced one after the other."""
    with torch.device("meta"):
        model = PixelTokenizer(geometry) if isinstance(geometry, PixelGeometry) else SeedTokenizer(geometry)
    count = sum(p.numel() for p in model.parameters())
    return estimate_graphs("image tokenizer", sources, count, count, storage, TOKENIZER_MEMORY)


def estimate_copies(files: list[Path]) -> Estimate:
    """Estimate copying the graphs of a bundle."""
    return Estimate(
        "image tokenizer",
        [files[0].parent],
        0,
        float(sum(file.stat().st_size for file in files)),
        0.0,
        BASE_MEMORY,
    )


def estimate_diffusion(folder: Path, storage: str) -> Estimate:
    """Estimate the export of a diffusion model: UNet and VAE."""
    files = [weight_file(folder / part) for part in TRACED]
    counts = [sum(prod(shape) for shape in shapes_in(file).values()) for file in files]
    return estimate_graphs("diffusion", files, sum(counts), max(counts), storage, DIFFUSION_MEMORY)


def estimate_graphs(
    part: str, sources: list[Path], count: int, largest: int, storage: str, memory: float
) -> Estimate:
    """Estimate the export of graphs.

    Args:
        count: weights of all graphs.
        largest: weights of the largest graph.
        memory: peak memory, in multiples of the fp32 weights of the largest graph.
    """
    traced = TRACED_BYTES * largest
    return Estimate(part, sources, count, STORED_BYTES[storage] * count, traced, memory * traced)


def estimate_language(llama: LlamaFolder, weight_type: str) -> Estimate:
    """Estimate the export of a language model; types that llama.cpp writes need an F16 file first."""
    counts = [prod(shape) for shape in llama.shapes().values()]
    direct = {"F32": 4.0, "F16": 2.0, "BF16": 2.0, "Q8_0": 1.07}
    # Q4_K_M takes 4.9 bits per weight, other types less
    bytes_per_weight = direct[weight_type] if weight_type in direct else (bits_of(weight_type) + 1) / 8
    scratch = 0.0 if weight_type in direct else 2.0 * sum(counts)
    return Estimate(
        "language model",
        [llama.weights_path],
        sum(counts),
        bytes_per_weight * sum(counts),
        scratch,
        LAYER_MEMORY * 4 * max(counts),
    )


def report_estimates(
    estimates: list[Estimate], out: Path, finished_bytes: int, report: Callable[[str], None]
) -> None:
    """Report the estimates and check the free disk space.

    Args:
        finished_bytes: size of the files that an interrupted run has written.

    Raises:
        CheckpointError: the disk at `out` is too small.
    """
    for estimate in estimates:
        report(f"plan: {estimate.line()}")
    disk = sum(estimate.written for estimate in estimates) + max(estimate.scratch for estimate in estimates)
    memory = BASE_MEMORY + max(estimate.memory for estimate in estimates)
    free_memory, folder = available_memory(), nearest_existing_folder(out.absolute().parent)
    free_disk = shutil.disk_usage(folder).free
    work = sum(estimate.written + 2 * estimate.scratch + 4 * estimate.parameters for estimate in estimates)
    minutes = max(1, round(work / BYTES_PER_SECOND / 60))
    available = "" if free_memory is None else f" ({format_bytes(free_memory)} free)"
    report(
        f"plan: takes {format_bytes(disk)} of disk in {folder} ({format_bytes(free_disk)} free), "
        f"about {format_bytes(memory)} of memory{available} and {minutes} "
        f"{'minute' if minutes == 1 else 'minutes'}"
    )
    if free_disk + finished_bytes < disk:
        raise CheckpointError(
            f"{folder} has {format_bytes(free_disk)} free, the export takes {format_bytes(disk)}; "
            "choose another --output"
        )
    if free_memory is not None and free_memory < memory:
        report(
            "plan: memory is short; the system may slow down or end the export; the same command then "
            "resumes it"
        )


def nearest_existing_folder(path: Path) -> Path:
    """Return the nearest folder at or above `path` that exists."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())
