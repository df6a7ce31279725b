"""Opens ONNX graphs as sessions on the requested device, and checks their inputs and outputs."""

from __future__ import annotations

import ctypes.util
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seed_edge import native
from seed_edge.errors import BundleError, DeviceError, MemoryShortError
from seed_edge.graphs import GraphSpec
from seed_edge.memory import trim_heap
from seed_edge.runtime.threads import available_cores

ort = native.onnxruntime()
DEVICES = ("auto", "cpu", "cuda")
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
DRIVER_FILES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64"}
NO_MEMORY = re.compile("bad_alloc|bad allocation|[Ff]ailed to allocate")
"""Messages of ONNX Runtime and the C++ library when memory runs out."""


@dataclass(frozen=True)
class Device:
    """Where graphs run, and the reason."""

    name: str
    """`cpu` or `cuda`."""
    reason: str
    required: bool = False
    """Whether the user requested this device, so that there is no fallback."""


def cuda_problem() -> str | None:
    """The reason why CUDA cannot be used, checked without opening a graph; None if there is none."""
    if CUDA not in ort.get_available_providers():
        return "this ONNX Runtime is built without CUDA; replace it by onnxruntime-gpu"
    if sys.platform == "win32":
        return None if ctypes.util.find_library("nvcuda") else "no NVIDIA driver found"
    return None if any(path.exists() for path in DRIVER_FILES) else "no NVIDIA driver found"


def choose_device(requested: str) -> Device:
    """Resolve `auto`, `cpu` or `cuda`.

    Raises:
        DeviceError: unknown name, or `cuda` where it cannot work.
    """
    if requested not in DEVICES:
        raise DeviceError(f"device {requested!r} is unknown; choose one of {', '.join(DEVICES)}")
    if requested == "cpu":
        return Device("cpu", "requested", required=True)
    problem = cuda_problem()
    if requested == "cuda":
        if problem:
            raise DeviceError(f"--device cuda cannot be used: {problem}; use --device cpu")
        return Device("cuda", "requested", required=True)
    return Device("cpu", problem) if problem else Device("cuda", "NVIDIA driver found")


def session_options() -> Any:
    """Session options: threads on all available cores, which sleep while they wait."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = available_cores()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = native.ORT_FATAL
    return options


def open_on_cpu(path: Path) -> Any:
    """An ONNX Runtime session of a graph on the CPU, without any check."""
    return ort.InferenceSession(path, session_options(), providers=[CPU])


class Session:
    """One opened graph."""

    def __init__(self, path: Path, spec: GraphSpec, device: Device, arena: bool = True) -> None:
        """Open and check a graph.

        Args:
            arena: keep the memory of a run for the next one.

        Raises:
            BundleError: the file is not an ONNX graph, or has other inputs or outputs.
            DeviceError: the user requested the device and the graph cannot run there.
        """
        options = session_options()
        options.enable_cpu_mem_arena = arena
        providers = [CPU]
        if device.name == "cuda":
            ort.preload_dlls()
            providers = [CUDA, CPU]
        try:
            self._session = ort.InferenceSession(path, options, providers=providers)
        except (ort.capi.onnxruntime_pybind11_state.RuntimeException, *_LOAD_ERRORS) as error:
            raise BundleError(
                f"{path} cannot be opened as an ONNX graph ({_first_line(error)}); export again"
            ) from error
        if device.required and self._session.get_providers()[0] != providers[0]:
            raise DeviceError(
                "--device cuda cannot be used: ONNX Runtime did not load its CUDA libraries; "
                'install them with: pip install "onnxruntime-gpu[cuda,cudnn]", or use --device cpu'
            )
        self._path = path
        self._check(path, spec)
        self._inputs = [tensor.name for tensor in spec.inputs]
        self._outputs = [tensor.name for tensor in spec.outputs]

    @property
    def device(self) -> str:
        """Device that the graph actually runs on: `cpu` or `cuda`."""
        return "cuda" if self._session.get_providers()[0] == CUDA else "cpu"

    def close(self) -> None:
        """Free the graph; it cannot be run afterwards."""
        del self._session
        trim_heap()

    def _check(self, path: Path, spec: GraphSpec) -> None:
        pairs = ((spec.inputs, self._session.get_inputs()), (spec.outputs, self._session.get_outputs()))
        for declared, tensors in pairs:
            expected = [
                (t.name, t.dtype, tuple(n if isinstance(n, int) else None for n in t.shape)) for t in declared
            ]
            actual = [
                (
                    t.name,
                    DTYPES.get(t.type, t.type),
                    tuple(n if isinstance(n, int) else None for n in t.shape),
                )
                for t in tensors
            ]
            if expected != actual:
                raise BundleError(f"{path} has inputs or outputs {actual}; expected {expected}; export again")

    @staticmethod
    def operators(path: Path, inputs: Sequence[NDArray[np.generic]]) -> list[dict[str, Any]]:
        """Operators of one run of a graph on the CPU, each with `op_name` and the shapes of its `inputs` and
        `outputs`.
        """
        options = ort.SessionOptions()
        options.enable_profiling, options.log_severity_level = True, native.ORT_FATAL
        # a higher level pads channels
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        with tempfile.TemporaryDirectory() as folder:
            options.profile_file_prefix = str(Path(folder) / "run")
            session = ort.InferenceSession(path, options, providers=[CPU])
            session.run(
                None, dict(zip((tensor.name for tensor in session.get_inputs()), inputs, strict=True))
            )
            events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
        kernels = [event["args"] for event in events if event["name"].endswith("_kernel_time")]
        return [
            {
                "op_name": kernel["op_name"],
                "inputs": [shape for tensor in kernel["input_type_shape"] for shape in tensor.values()],
                "outputs": [shape for tensor in kernel["output_type_shape"] for shape in tensor.values()],
            }
            for kernel in kernels
        ]

    def __call__(self, *inputs: NDArray[np.generic]) -> list[NDArray[np.generic]]:
        """Run the graph; inputs and outputs are in declared order.

        Raises:
            MemoryShortError: ONNX Runtime ran out of memory.
            BundleError: it failed for another reason.
        """
        try:
            outputs: list[NDArray[np.generic]] = self._session.run(
                self._outputs, dict(zip(self._inputs, inputs, strict=True))
            )
        except (_state.RuntimeException, _state.Fail) as error:
            if NO_MEMORY.search(str(error)):
                raise MemoryShortError(
                    f"{self._path} ran out of memory; close other programs, or try --low-memory"
                ) from error
            raise BundleError(f"{self._path} failed ({_first_line(error)}); export again") from error
        return outputs


_state = ort.capi.onnxruntime_pybind11_state
_LOAD_ERRORS = (
    _state.Fail,
    _state.InvalidGraph,
    _state.InvalidProtobuf,
    _state.InvalidArgument,
    _state.NotImplemented,
)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200]
