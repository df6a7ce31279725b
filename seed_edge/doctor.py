"""Checks of the machine and the installation, with advice. No model is loaded."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from seed_edge import __version__, native
from seed_edge.bundle import EMBEDDED, Bundle
from seed_edge.errors import SeedEdgeError
from seed_edge.memory import available_memory, free_gpu_memory
from seed_edge.runtime.threads import cpu_flags
from seed_edge.user_dirs import HOME, bundle_names, bundles_folder, folder

SMALL_MEMORY = 1 << 30
"""Free memory in bytes below which a warning is given."""
GPU_LIBRARIES = ("nvidia-cuda-runtime", "nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-cufft", "nvidia-curand")
OK, NOTE, WARNING, BROKEN = "ok", "note", "warning", "broken"


@dataclass(frozen=True)
class Check:
    """Result of one check."""

    id: str
    """Name of the check; stable between versions."""
    state: str
    """`ok`; `note`, no action needed; `warning`, slow, or not on the GPU; `broken`."""
    found: str
    """The result."""
    advice: str = ""
    """A command or an action that solves the problem."""


def run_checks() -> list[Check]:
    """Run all checks, in a fixed order."""
    return [*_system(), *_runtimes(), *_memory(), *_bundles()]


def report(checks: list[Check]) -> dict[str, Any]:
    """Return the checks as a JSON object: `version`, `state` (the worst one) and `checks`."""
    return {
        "version": __version__,
        "state": worst_state(checks),
        "checks": [asdict(check) for check in checks],
    }


def worst_state(checks: list[Check]) -> str:
    """Return the worst state; notes count as ok."""
    states = {check.state for check in checks}
    return BROKEN if BROKEN in states else WARNING if WARNING in states else OK


def _system() -> Iterator[Check]:
    yield Check("seed-edge", OK, f"{__version__} in {Path(__file__).parent}")
    yield Check("python", OK, f"{platform.python_version()} ({sys.executable})")
    yield Check("system", OK, f"{platform.system()} {platform.release()} on {platform.machine()}")
    from seed_edge.runtime.threads import available_cores

    cores, all_cores = available_cores(), os.cpu_count() or 1
    limited = "" if cores == all_cores else f" of {all_cores}, limited by affinity or a container's quota"
    flags = cpu_flags()
    yield Check(
        "processor",
        OK,
        f"{cores} cores{limited}; {' '.join(flags) if flags else 'instruction sets unknown'}",
    )
    policy = os.environ.get("OMP_WAIT_POLICY", "")
    if policy.lower() == "active":
        yield Check(
            "threads",
            WARNING,
            "OMP_WAIT_POLICY is active: threads spin while they wait",
            "unset OMP_WAIT_POLICY",
        )
    for name in ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT"):
        value = os.environ.get(name, "")
        if value.isdecimal() and int(value) < cores:
            yield Check(f"threads {name}", NOTE, f"{name} is {value}, but {cores} cores are available")


def _runtimes() -> Iterator[Check]:
    try:
        onnxruntime = native.onnxruntime()
        from seed_edge.runtime.onnx_session import cuda_problem

        problem = cuda_problem()
        if native.telemetry_off():
            yield Check(
                "offline",
                OK,
                "telemetry of all libraries is off; no connection is opened and no machine id is stored",
            )
        else:
            names = ", ".join(native.TELEMETRY_OFF)
            yield Check(
                "offline",
                BROKEN,
                f"telemetry may be on: one of the variables {names} was changed",
                "do not set these variables in the program",
            )
        providers = ", ".join(
            name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()
        )
        yield Check("onnxruntime", OK, f"{onnxruntime.__version__}, built with {providers}")
    except (
        ImportError,
        OSError,
        AttributeError,
    ) as error:  # two builds installed over each other leave a module without attributes
        advice = "pip uninstall onnxruntime onnxruntime-gpu, then install seed-edge again"
        yield Check("onnxruntime", BROKEN, f"cannot be loaded ({error})", advice)
        return
    yield from _cuda(problem)
    try:
        from seed_edge.runtime.language_model import amx_in_use, gpu_offload

        offload = "with" if gpu_offload() else "without"
        version = importlib.metadata.version("llama-cpp-python")
        yield Check("llama.cpp", OK, f"llama-cpp-python {version}, built {offload} GPU support")
        if amx_in_use():
            yield Check(
                "amx", NOTE, "AMX kernels of llama.cpp are turned off, as they crash when built by gcc 12"
            )
        if problem is None and not gpu_offload():
            advice = (
                'CMAKE_ARGS="-DGGML_CUDA=on" '
                'pip install --force-reinstall --no-cache-dir "llama-cpp-python==0.3.36"'
            )
            yield Check(
                "llama.cpp-gpu",
                WARNING,
                "a GPU is present, but llama.cpp was built without GPU support",
                advice,
            )
    except (ImportError, OSError, RuntimeError) as error:
        yield Check(
            "llama.cpp",
            BROKEN,
            f"cannot be loaded ({error})",
            "pip install --force-reinstall llama-cpp-python",
        )


def _cuda(problem: str | None) -> Iterator[Check]:
    """Check whether ONNX graphs run on an NVIDIA GPU."""
    if problem is not None:
        yield Check("cuda", NOTE, f"not used: {problem}")
        return
    installed = {name: version for name in GPU_LIBRARIES if (version := _version(name)) is not None}
    onnxruntime = native.onnxruntime()
    required = getattr(onnxruntime, "cuda_version", "") or "13"
    free = free_gpu_memory()
    memory = f"{free / 1e9:.1f} GB free" if free is not None else "free memory unknown"
    libraries = ", ".join(f"{name} {version}" for name, version in installed.items()) or "none from PyPI"
    text = f"{memory}; CUDA {required} is required; libraries: {libraries}"
    if len(installed) < len(GPU_LIBRARIES):
        advice = (
            'pip install "onnxruntime-gpu[cuda,cudnn]", '
            "unless CUDA and cuDNN of that version are on the library path"
        )
        yield Check("cuda", WARNING, f"a driver is installed; {text}", advice)
    else:
        yield Check("cuda", OK, text)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory() -> Iterator[Check]:
    free = available_memory()
    if free is None:
        yield Check(
            "memory",
            NOTE,
            "the free memory of this system cannot be determined",
            "set --memory-limit for large bundles",
        )
    elif free < SMALL_MEMORY:
        yield Check(
            "memory", WARNING, f"{free / 1e6:.0f} MB free", "close other programs, or use --low-memory"
        )
    else:
        yield Check("memory", OK, f"{free / 1e9:.1f} GB free")
    data = folder("data")
    existing = next(path for path in (data, *data.parents) if path.exists())
    writable = os.access(existing, os.W_OK)
    text = f"{data}: {shutil.disk_usage(existing).free / 1e9:.1f} GB free on its disk"
    if writable:
        yield Check("folder", OK, text)
    else:
        yield Check("folder", WARNING, f"{text}, not writable", f"set {HOME} to a writable folder")


def _bundles() -> Iterator[Check]:
    """Check that each bundle opens; `verify` compares the hashes."""
    for name, path in [
        (EMBEDDED.name, EMBEDDED),
        *((name, bundles_folder() / name) for name in bundle_names()),
    ]:
        try:
            bundle = Bundle.open(path)
        except SeedEdgeError as error:
            yield Check(
                f"bundle {name}",
                BROKEN,
                str(error),
                f"seed-edge bundles remove {name}" if path != EMBEDDED else "",
            )
            continue
        size = sum(entry.size for entry in bundle.manifest.files.values())
        free = available_memory()
        if free is not None and size > free:
            text = f"{size / 1e9:.1f} GB, more than the free memory"
            yield Check(f"bundle {name}", WARNING, text, "use --low-memory, or export with smaller weights")
        else:
            yield Check(f"bundle {name}", OK, f"{size / 1e6:,.0f} MB, {bundle.manifest.kind}")
