"""Benchmark of a bundle: the time of each stage, and the lower bound of this machine.

The floor of a stage is the larger of two times: its multiplications at the rate of a large matrix product
measured on the spot, and its weights at the rate of reading memory. No program can be faster with the same
weights and the same numbers, unless the weights are so few that they stay in the processor's cache.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from seed_edge.bundle import Bundle
from seed_edge.errors import BundleError
from seed_edge.gguf_header import GgufHeader
from seed_edge.memory import available_memory, peak_memory, reset_peak
from seed_edge.runtime.decoders import DECODERS, UnclipDecoder
from seed_edge.runtime.onnx_session import Device, Session
from seed_edge.runtime.pipeline import SeedEdge
from seed_edge.runtime.threads import available_cores
from seed_edge.runtime.unclip import FAST, DiffusionOptions, Unclip

MATRIX_SIDE, READ_BYTES, TRIES = 1536, 256 << 20, 5
BATCH = 16
PROMPT_IDS, WRITTEN_IDS = 64, 32
PROMPT = "a red fox"
LONG = 3.0
"""A stage that takes this many seconds or more is timed only once."""
LABELS = 2
"""Class labels of a diffusion are two image embeddings wide."""


@dataclass(frozen=True)
class Machine:
    """The best rates of this machine, with all cores."""

    cores: int
    read_rate: float
    """Bytes per second read from memory."""
    multiply_rate: float
    """Floating-point operations per second, in fp32."""

    @classmethod
    def measure(cls) -> Machine:
        """The best of several runs of a matrix product, and of a matrix-vector product that reads a large
        matrix once.
        """
        free = available_memory() or READ_BYTES
        rows = max(1, min(READ_BYTES, free // 8) // (4 * 4096))
        matrix, vector = np.ones((rows, 4096), np.float32), np.ones(4096, np.float32)
        reading = min(_seconds(lambda: matrix @ vector, TRIES))
        square = np.ones((MATRIX_SIDE, MATRIX_SIDE), np.float32)
        multiplying = min(_seconds(lambda: square @ square, TRIES))
        return cls(available_cores(), matrix.nbytes / reading, 2 * MATRIX_SIDE**3 / multiplying)

    def floor(self, work: Work) -> float:
        """Lower bound of the time for some work, in seconds."""
        return max(work.bytes_read / self.read_rate, work.operations / self.multiply_rate)


@dataclass(frozen=True)
class Work:
    """The work of a stage that no implementation can avoid."""

    operations: float
    """Floating point operations, two for each multiplication with its addition."""
    bytes_read: float
    """Bytes of weights that are read."""

    def __mul__(self, times: int) -> Work:
        return Work(self.operations * times, self.bytes_read)


@dataclass(frozen=True)
class Stage:
    """One line of the report."""

    name: str
    seconds: float
    """Median."""
    floor: float | None
    """Lower bound in seconds; None if it is unknown."""
    peak: int | None
    """Peak memory of the process in bytes; None if the system does not report it."""
    rate: str = ""
    """The rate, such as `310 ids/s`."""

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "stage": self.name,
            "seconds": _short(self.seconds),
            "floor_seconds": None if self.floor is None else _short(self.floor),
            "times_floor": None if not self.floor else round(self.seconds / self.floor, 2),
            "peak_mb": None if self.peak is None else round(self.peak / 2**20, 1),
        } | ({"rate": self.rate} if self.rate else {})


def _short(seconds: float) -> float:
    return float(f"{seconds:.4g}")


def _seconds(action: Callable[[], object], tries: int) -> list[float]:
    """Seconds of each run after a warm-up run; an action that takes `LONG` seconds is timed only once."""

    def once() -> float:
        started = time.perf_counter()
        action()
        return time.perf_counter() - started

    return [once() for _ in range(tries if once() < LONG else 1)]


def bench(path: Path | None, device: Device, tries: int, report: Callable[[str], None]) -> dict[str, Any]:
    """Time every stage of a bundle.

    Args:
        path: of the bundle; None for the embedded one.
        tries: runs of each stage; the median is reported.
        report: called with the name of the next stage.

    Returns:
        `bundle`, `device`, `machine` and `stages`, ready for JSON.

    Raises:
        BundleError: the bundle is damaged.
    """
    bundle = Bundle.open(path)
    processes = time_processes(
        bundle, path, tries, report
    )  # first: a process begins with the peak of the one that starts it
    report("machine")
    machine = Machine.measure()
    run = _Run(bundle, device, machine, tries, report)
    run.images()
    run.language()
    run.whole()
    rates = {
        "cores": machine.cores,
        "read_gb_s": machine.read_rate / 1e9,
        "multiply_gflop_s": machine.multiply_rate / 1e9,
    }
    return {
        "bundle": bundle.manifest.name,
        "device": f"{device.name} ({device.reason})",
        "machine": {name: round(value, 1) for name, value in rates.items()},
        "stages": [stage.record() for stage in [*run.stages, *processes]],
    }


def time_processes(
    bundle: Bundle, path: Path | None, tries: int, report: Callable[[str], None]
) -> list[Stage]:
    """Times of whole processes, as a shell starts them."""
    if bundle.manifest.language is None:
        return []
    stages, chosen = [], [] if path is None else ["--bundle", str(path)]
    tool = [sys.executable, "-m", "seed_edge"]
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "photo.png"
        pictures(bundle, 1)[0].save(photo)
        commands = {"caption, a process": [*tool, "caption", str(photo), *chosen]}
        if not DECODERS[bundle.manifest.kind].uses_diffusion:
            commands["draw, a process"] = [
                *tool,
                "draw",
                PROMPT,
                "-o",
                f"{folder}/drawn.png",
                "--seed",
                "1",
                *chosen,
            ]
        for name, command in commands.items():
            report(name)
            taken = [_process(command) for _ in range(tries + 1)][1:]
            peaks = [peak for _, peak in taken if peak is not None]
            stages.append(
                Stage(
                    name, statistics.median(seconds for seconds, _ in taken), None, max(peaks, default=None)
                )
            )
    return stages


def pictures(bundle: Bundle, count: int) -> list[Image.Image]:
    """Images of noise, of the encoder's input size."""
    side, rng = bundle.manifest.preprocessing.image_size, np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)) for _ in range(count)]


class _Run:
    """Times stages one after the other; later stages use the parts that earlier ones opened."""

    def __init__(
        self, bundle: Bundle, device: Device, machine: Machine, tries: int, report: Callable[[str], None]
    ) -> None:
        self.bundle, self.device, self.machine, self.tries, self.report = (
            bundle,
            device,
            machine,
            tries,
            report,
        )
        self.stages: list[Stage] = []
        self.edge = SeedEdge(bundle, device)
        self.pictures = pictures(bundle, BATCH)

    def time(
        self, name: str, action: Callable[[], object], work: Work | None = None, each: int = 1, rate: str = ""
    ) -> float:
        """Time a stage.

        Args:
            work: the unavoidable work of the whole stage.
            each: number of items in the stage; seconds, lower bound and rate are those of one item.
            rate: unit of an item, to report the rate.
        """
        self.report(name)
        reset_peak()
        seconds = statistics.median(_seconds(action, self.tries)) / each
        floor = None if work is None or self.device.name != "cpu" else self.machine.floor(work) / each
        told = f"{1 / seconds:.1f} {rate}/s" if rate else ""
        self.stages.append(Stage(name, seconds, floor, peak_memory(), told))
        return seconds

    def images(self) -> None:
        """Time the encoder and the decoder."""
        manifest, images = self.bundle.manifest, self.edge.engine.images
        values = manifest.preprocessing(self.pictures)
        one = self.work(self.bundle.encoder, [values[:1]])
        self.time("preprocess", lambda: manifest.preprocessing(self.pictures[:1]))
        self.time("encode", lambda: images.encode_values(values[:1]), one, rate="pictures")
        self.time(
            f"encode, {BATCH} at once", lambda: images.encode_values(values), one * BATCH, BATCH, "pictures"
        )
        codes = images.encode_values(values[:1])
        self.decoding = self.time(
            "decode", lambda: images.decoded(codes), self.work(self.bundle.decoder, [codes])
        )
        if manifest.diffusion is not None and isinstance(images.decoder, UnclipDecoder):
            self.diffusion(images.decoder.unclip, images.decoder.embed(codes))

    def diffusion(self, unclip: Unclip, embeds: np.ndarray[Any, Any]) -> None:
        """Time one evaluation of the U-Net without guidance, and the VAE."""
        latents, _ = unclip.noise(0, 1)
        labels = np.tile(embeds, (1, LABELS)).astype(np.float32)
        moment = np.zeros(1, np.int64)
        step = self.work(self.bundle.unet, [latents, moment, labels])
        self.evaluation = self.time(
            "diffusion, one evaluation", lambda: unclip.predict(latents, 0, labels), step
        )
        last = self.work(self.bundle.vae, [latents])
        self.developing = self.time("latents to pixels", lambda: unclip.decode_latents(latents), last)

    def language(self) -> None:
        """Time the language model: reading a prompt, generating text, sampling codes."""
        if self.bundle.manifest.language is None:
            return
        language, path = self.bundle.language, self.bundle.language_model
        once = _language_work(GgufHeader.read(path))
        self.time("load language model", lambda: self._reload())
        model = self.edge.engine.language_model
        ids = [
            language.vocab.bos_id,
            *np.arange(3, 3 + min(PROMPT_IDS, language.context_length // 2)).tolist(),
        ]
        turns = iter(range(1 << 30))

        def read() -> None:
            model.prefill([ids[0], 3 + next(turns) % 200, *ids[2:]], room=1)

        self.time("read a prompt", read, once * (len(ids) - 1), len(ids) - 1, "ids")

        def write() -> None:
            model.prefill(ids[:2], room=WRITTEN_IDS)
            for token_id in range(3, 3 + WRITTEN_IDS):
                model.step(token_id)

        self.time("write text", write, _repeated(once, WRITTEN_IDS), WRITTEN_IDS, "ids")
        count = language.vocab.codes_per_image
        guided = 1 if language.sampling.guidance == 1 else 2
        one = dataclasses.replace(language.sampling, best_of=1)
        self.coding = count * self.time(
            "write codes" + (", guided" if guided > 1 else ""),
            lambda: self.edge.draw_codes(PROMPT, sampling=one),
            _repeated(once, count * guided),
            count,
            "codes",
        )

    def _reload(self) -> None:
        self.edge.close()
        _ = self.edge.engine.language_model

    def whole(self) -> None:
        """Time whole calls of the API, with all parts open."""
        if self.bundle.manifest.language is None:
            return
        self.time("caption", lambda: self.edge.caption(self.pictures[0]))
        decoder = self.edge.engine.images.decoder
        if not isinstance(decoder, UnclipDecoder):
            self.time("draw", lambda: self.edge.draw(PROMPT))
        elif self.bundle.manifest.diffusion is not None:
            for name, options in (("draw", DiffusionOptions()), ("draw --fast", FAST)):
                evaluations = decoder.unclip.evaluations(options)
                seconds = self.coding + self.decoding + evaluations * self.evaluation + self.developing
                self.stages.append(
                    Stage(f"{name}, reckoned", seconds, None, None, f"{evaluations} evaluations")
                )
        self.edge.close()

    def work(self, path: Path, inputs: Sequence[np.ndarray[Any, Any]]) -> Work:
        """Work of one run of a graph with these inputs."""
        weights = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
        return Work(sum(map(operations, Session.operators(path, inputs))), weights)


def _repeated(work: Work, times: int) -> Work:
    """Work repeated `times` times one after the other: weights are read each time."""
    return Work(work.operations * times, work.bytes_read * times)


def operations(operator: dict[str, Any]) -> float:
    """Floating point operations of an operator that ONNX Runtime ran, from its name and shapes; 0 for all but
    products.

    Products over a transposed first matrix are counted as if it were not; the graphs in bundles have none.
    """
    name, inputs, outputs = operator["op_name"], operator["inputs"], operator["outputs"]
    found = 0.0
    if "Conv" in name:
        found = 2.0 * prod(outputs[0]) * prod(inputs[1][1:])
    elif "MatMul" in name or "Gemm" in name:
        found = 2.0 * prod(outputs[0]) * inputs[0][-1]
    elif name == "Attention" and len(inputs[0]) == 4:  # queries (batch, heads, n, width), keys, values
        found = 2.0 * inputs[1][2] * (prod(inputs[0]) + prod(outputs[0]))
    return found


def _language_work(header: GgufHeader) -> Work:
    """Work for one id: all weights except the embedding table, of which one row is read."""
    used = [
        tensor
        for name, tensor in header.tensors.items()
        if name != "token_embd.weight" or "output.weight" not in header.tensors
    ]
    return Work(2.0 * sum(prod(tensor.shape) for tensor in used), sum(tensor.size for tensor in used))


def _process(command: list[str]) -> tuple[float, int | None]:
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read().decode(errors="replace")
    if hasattr(os, "wait4"):
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode, peak = (
            os.waitstatus_to_exitcode(status),
            usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        )
    else:
        process.wait()
        peak = None
    if process.returncode:
        raise BundleError(
            f"`{' '.join(command[2:])}` failed in a process of its own: {said.strip().splitlines()[-1:]}"
        )
    return time.perf_counter() - started, peak


def format_table(found: dict[str, Any]) -> str:
    """The result of `bench` as a table for people."""
    machine = found["machine"]
    lines = [
        f"{found['bundle']} on {found['device']}",
        f"{machine['cores']:.0f} cores, {machine['read_gb_s']} GB/s read, {machine['multiply_gflop_s']} "
        "GFLOP/s in fp32",
        "",
        f"{'':32}{'seconds':>10}{'floor':>10}{'times':>7}{'peak MB':>9}",
    ]
    for stage in found["stages"]:
        floor = "" if stage["floor_seconds"] is None else f"{stage['floor_seconds']:.5f}"
        times = "" if stage["times_floor"] is None else f"{stage['times_floor']:.1f}"
        peak = "" if stage["peak_mb"] is None else f"{stage['peak_mb']:.0f}"
        rate = stage.get("rate", "")
        lines.append(
            f"{stage['stage']:32}{stage['seconds']:>10.5f}{floor:>10}{times:>7}{peak:>9}  {rate}".rstrip()
        )
    return "\n".join(lines)
