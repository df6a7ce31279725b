"""Benchmark of a bundle: the time of each stage, and its lower bound on this machine.

The lower bound of a stage is the larger of two times: its floating-point operations at the measured rate of a
large matrix product, and its weights at the measured memory bandwidth. No program can be faster with the same
weights and precision, unless the weights fit into the processor's cache.
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

MATRIX_SIDE, READ_BYTES, MACHINE_REPEATS = 1536, 256 << 20, 5
"""Side of the matrices, size of the matrix that is read, and repetitions for `Machine.measure`."""
BATCH = 16
PROMPT_IDS, GENERATED_IDS = 64, 32
PROMPT = "a red fox"
MAX_REPEATED_SECONDS = 3.0
"""A stage that takes this many seconds or more is timed only once."""
EMBEDDINGS_PER_LABEL = 2
"""Width of the class labels of a diffusion, in image embeddings."""


@dataclass(frozen=True)
class Machine:
    """Peak rates of this machine, with all cores."""

    cores: int
    read_rate: float
    """Bytes per second read from memory."""
    multiply_rate: float
    """Floating-point operations per second, in fp32."""

    @classmethod
    def measure(cls) -> Machine:
        """Measure the fastest of several matrix products, and of several matrix-vector products that read a
        large matrix once.
        """
        free = available_memory() or READ_BYTES
        rows = max(1, min(READ_BYTES, free // 8) // (4 * 4096))
        matrix, vector = np.ones((rows, 4096), np.float32), np.ones(4096, np.float32)
        read_seconds = min(_time_runs(lambda: matrix @ vector, MACHINE_REPEATS))
        square = np.ones((MATRIX_SIDE, MATRIX_SIDE), np.float32)
        multiply_seconds = min(_time_runs(lambda: square @ square, MACHINE_REPEATS))
        return cls(available_cores(), matrix.nbytes / read_seconds, 2 * MATRIX_SIDE**3 / multiply_seconds)

    def floor(self, work: Work) -> float:
        """Return the lower bound of the time for some work, in seconds."""
        return max(work.bytes_read / self.read_rate, work.operations / self.multiply_rate)


@dataclass(frozen=True)
class Work:
    """The work of a stage that any implementation must do."""

    operations: float
    """Floating-point operations; a multiply-add counts as two."""
    bytes_read: float
    """Bytes of weights that are read."""

    def batched(self, size: int) -> Work:
        """Return the work of a batch, for which weights are read once."""
        return Work(self.operations * size, self.bytes_read)

    def repeated(self, times: int) -> Work:
        """Return the work of sequential repetitions, for each of which weights are read."""
        return Work(self.operations * times, self.bytes_read * times)


@dataclass(frozen=True)
class Stage:
    """One line of the report."""

    name: str
    seconds: float
    """Median time in seconds."""
    floor: float | None
    """Lower bound in seconds; None if it is unknown."""
    peak: int | None
    """Peak memory of the process in bytes; None if the system does not report it."""
    rate: str = ""
    """The rate, such as `310 ids/s`."""

    def record(self) -> dict[str, Any]:
        """Return the stage as a JSON object."""
        return {
            "stage": self.name,
            "seconds": _round(self.seconds),
            "floor_seconds": None if self.floor is None else _round(self.floor),
            "times_floor": None if not self.floor else round(self.seconds / self.floor, 2),
            "peak_mb": None if self.peak is None else round(self.peak / 2**20, 1),
        } | ({"rate": self.rate} if self.rate else {})


def _round(seconds: float) -> float:
    return float(f"{seconds:.4g}")


def _time_runs(action: Callable[[], object], repeats: int) -> list[float]:
    """Return the seconds of each run, after a warm-up run. An action that takes `MAX_REPEATED_SECONDS` is
    timed only once.
    """

    def time_run() -> float:
        started = time.perf_counter()
        action()
        return time.perf_counter() - started

    return [time_run() for _ in range(repeats if time_run() < MAX_REPEATED_SECONDS else 1)]


def bench(path: Path | None, device: Device, repeats: int, report: Callable[[str], None]) -> dict[str, Any]:
    """Time every stage of a bundle.

    Args:
        path: folder or name of the bundle; None for the embedded one.
        repeats: runs of each stage; the median is reported.
        report: called with the name of each stage before it runs.

    Returns:
        `bundle`, `device`, `machine` and `stages`, ready for JSON.

    Raises:
        BundleError: the bundle is damaged.
    """
    bundle = Bundle.open(path)
    # processes first, as a child process inherits the peak memory of its parent
    processes = time_processes(bundle, path, repeats, report)
    report("machine")
    machine = Machine.measure()
    run = _Run(bundle, device, machine, repeats, report)
    run.time_images()
    run.time_language()
    run.time_calls()
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
    bundle: Bundle, path: Path | None, repeats: int, report: Callable[[str], None]
) -> list[Stage]:
    """Time whole processes, as a shell starts them."""
    if bundle.manifest.language is None:
        return []
    stages, bundle_option = [], [] if path is None else ["--bundle", str(path)]
    program = [sys.executable, "-m", "seed_edge"]
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "photo.png"
        noise_images(bundle, 1)[0].save(photo)
        commands = {"caption, a process": [*program, "caption", str(photo), *bundle_option]}
        if not DECODERS[bundle.manifest.kind].uses_diffusion:
            commands["draw, a process"] = [
                *program,
                "draw",
                PROMPT,
                "-o",
                f"{folder}/drawn.png",
                "--seed",
                "1",
                *bundle_option,
            ]
        for name, command in commands.items():
            report(name)
            runs = [_run_process(command) for _ in range(repeats + 1)][1:]
            seconds = statistics.median(run_seconds for run_seconds, _ in runs)
            peaks = [peak for _, peak in runs if peak is not None]
            stages.append(Stage(name, seconds, None, max(peaks, default=None)))
    return stages


def noise_images(bundle: Bundle, count: int) -> list[Image.Image]:
    """Return images of noise, of the encoder's input size."""
    side, rng = bundle.manifest.preprocessing.image_size, np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)) for _ in range(count)]


class _Run:
    """Times stages one after the other; later stages use the parts that earlier ones opened."""

    def __init__(
        self, bundle: Bundle, device: Device, machine: Machine, repeats: int, report: Callable[[str], None]
    ) -> None:
        self.bundle, self.device, self.machine, self.repeats, self.report = (
            bundle,
            device,
            machine,
            repeats,
            report,
        )
        self.stages: list[Stage] = []
        self.edge = SeedEdge(bundle, device)
        self.noise_images = noise_images(bundle, BATCH)

    def time(
        self,
        name: str,
        action: Callable[[], object],
        work: Work | None = None,
        items: int = 1,
        unit: str = "",
    ) -> float:
        """Time a stage; return the seconds per item.

        Args:
            work: work of the whole stage; None if it is unknown.
            items: number of items in the stage; seconds, lower bound and rate are those of one item.
            unit: unit of an item, to report the rate.
        """
        self.report(name)
        reset_peak()
        seconds = statistics.median(_time_runs(action, self.repeats)) / items
        floor = None if work is None or self.device.name != "cpu" else self.machine.floor(work) / items
        rate = f"{1 / seconds:.1f} {unit}/s" if unit else ""
        self.stages.append(Stage(name, seconds, floor, peak_memory(), rate))
        return seconds

    def time_images(self) -> None:
        """Time preprocessing, the encoder and the decoder."""
        manifest, images = self.bundle.manifest, self.edge.engine.images
        values = manifest.preprocessing(self.noise_images)
        work = self.graph_work(self.bundle.encoder, [values[:1]])
        self.time("preprocess", lambda: manifest.preprocessing(self.noise_images[:1]))
        self.time("encode", lambda: images.encode_values(values[:1]), work, unit="images")
        self.time(
            f"encode, batch of {BATCH}",
            lambda: images.encode_values(values),
            work.batched(BATCH),
            BATCH,
            "images",
        )
        codes = images.encode_values(values[:1])
        self.decoder_seconds = self.time(
            "decode", lambda: images.run_decoder(codes), self.graph_work(self.bundle.decoder, [codes])
        )
        if manifest.diffusion is not None and isinstance(images.decoder, UnclipDecoder):
            self.time_diffusion(images.decoder.unclip, images.decoder.embed(codes))

    def time_diffusion(self, unclip: Unclip, embeds: np.ndarray[Any, Any]) -> None:
        """Time one evaluation of the U-Net without guidance, and the VAE decoder."""
        latents, _ = unclip.noise(0, 1)
        labels = np.tile(embeds, (1, EMBEDDINGS_PER_LABEL)).astype(np.float32)
        timestep = np.zeros(1, np.int64)
        work = self.graph_work(self.bundle.unet, [latents, timestep, labels])
        self.unet_seconds = self.time(
            "diffusion, one evaluation", lambda: unclip.predict(latents, 0, labels), work
        )
        work = self.graph_work(self.bundle.vae, [latents])
        self.vae_seconds = self.time("latents to pixels", lambda: unclip.decode_latents(latents), work)

    def time_language(self) -> None:
        """Time the language model: prefill, text generation, sampling of codes."""
        if self.bundle.manifest.language is None:
            return
        language, path = self.bundle.language, self.bundle.language_model
        work = _language_work(GgufHeader.read(path))
        self.time("load language model", lambda: self._reload())
        model = self.edge.engine.language_model
        ids = [
            language.vocab.bos_id,
            *np.arange(3, 3 + min(PROMPT_IDS, language.context_length // 2)).tolist(),
        ]
        counter = iter(range(1 << 30))

        def prefill() -> None:  # the second id differs, so that no cached context is reused
            model.prefill([ids[0], 3 + next(counter) % 200, *ids[2:]], room=1)

        self.time("prefill", prefill, work.batched(len(ids) - 1), len(ids) - 1, "ids")

        def generate() -> None:
            model.prefill(ids[:2], room=GENERATED_IDS)
            for token_id in range(3, 3 + GENERATED_IDS):
                model.step(token_id)

        self.time("generate text", generate, work.repeated(GENERATED_IDS), GENERATED_IDS, "ids")
        count = language.vocab.codes_per_image
        passes = 1 if language.sampling.guidance == 1 else 2
        sampling = dataclasses.replace(language.sampling, best_of=1)
        self.codes_seconds = count * self.time(
            "generate codes" + (", guided" if passes > 1 else ""),
            lambda: self.edge.draw_codes(PROMPT, sampling=sampling),
            work.repeated(count * passes),
            count,
            "codes",
        )

    def _reload(self) -> None:
        self.edge.close()
        _ = self.edge.engine.language_model

    def time_calls(self) -> None:
        """Time whole calls of the API, with all parts open."""
        if self.bundle.manifest.language is None:
            return
        self.time("caption", lambda: self.edge.caption(self.noise_images[0]))
        decoder = self.edge.engine.images.decoder
        if not isinstance(decoder, UnclipDecoder):
            self.time("draw", lambda: self.edge.draw(PROMPT))
        elif self.bundle.manifest.diffusion is not None:
            for name, options in (("draw", DiffusionOptions()), ("draw --fast", FAST)):
                evaluations = decoder.unclip.evaluations(options)
                seconds = (
                    self.codes_seconds
                    + self.decoder_seconds
                    + evaluations * self.unet_seconds
                    + self.vae_seconds
                )
                self.stages.append(
                    Stage(f"{name}, estimated", seconds, None, None, f"{evaluations} evaluations")
                )
        self.edge.close()

    def graph_work(self, path: Path, inputs: Sequence[np.ndarray[Any, Any]]) -> Work:
        """Return the work of one run of a graph with these inputs."""
        weights = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
        return Work(sum(map(operations, Session.operators(path, inputs))), weights)


def operations(operator: dict[str, Any]) -> float:
    """Return the floating-point operations of an operator that ONNX Runtime ran; 0 for all but products.

    A transposed first matrix of a product is not taken into account; the graphs of bundles have none.

    Args:
        operator: `op_name`, and the shapes of `inputs` and `outputs`.
    """
    name, inputs, outputs = operator["op_name"], operator["inputs"], operator["outputs"]
    multiplications = 0
    if "Conv" in name:
        multiplications = prod(outputs[0]) * prod(inputs[1][1:])
    elif "MatMul" in name or "Gemm" in name:
        multiplications = prod(outputs[0]) * inputs[0][-1]
    elif name == "Attention" and len(inputs[0]) == 4:  # queries (batch, heads, n, width), keys, values
        multiplications = inputs[1][2] * (prod(inputs[0]) + prod(outputs[0]))
    return 2.0 * multiplications


def _language_work(header: GgufHeader) -> Work:
    """Return the work for one id: all weights except the embedding table, of which only one row is read."""
    used = [
        tensor
        for name, tensor in header.tensors.items()
        if name != "token_embd.weight" or "output.weight" not in header.tensors
    ]
    return Work(2.0 * sum(prod(tensor.shape) for tensor in used), sum(tensor.size for tensor in used))


def _run_process(command: list[str]) -> tuple[float, int | None]:
    """Run a command; return its seconds and its peak memory in bytes, None if the system does not report it.

    Raises:
        BundleError: the command failed.
    """
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    stderr = process.stderr.read().decode(errors="replace")
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
            f"`{' '.join(command[2:])}` failed in a separate process: {stderr.strip().splitlines()[-1:]}"
        )
    return time.perf_counter() - started, peak


def format_table(result: dict[str, Any]) -> str:
    """Format the result of `bench` as a table."""
    machine = result["machine"]
    lines = [
        f"{result['bundle']} on {result['device']}",
        f"{machine['cores']:.0f} cores, {machine['read_gb_s']} GB/s read, {machine['multiply_gflop_s']} "
        "GFLOP/s in fp32",
        "",
        f"{'':32}{'seconds':>10}{'floor':>10}{'times':>7}{'peak MB':>9}",
    ]
    for stage in result["stages"]:
        floor = "" if stage["floor_seconds"] is None else f"{stage['floor_seconds']:.5f}"
        times = "" if stage["times_floor"] is None else f"{stage['times_floor']:.1f}"
        peak = "" if stage["peak_mb"] is None else f"{stage['peak_mb']:.0f}"
        rate = stage.get("rate", "")
        lines.append(
            f"{stage['stage']:32}{stage['seconds']:>10.5f}{floor:>10}{times:>7}{peak:>9}  {rate}".rstrip()
        )
    return "\n".join(lines)
