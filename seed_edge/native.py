"""Process-wide settings: environment variables, log callbacks, log severities, warnings. No other module
changes them.

`configure` runs when `seed_edge` is imported, before any native library is loaded: in the command line,
`load`, export, training, evaluation, helper processes and benchmarks. `configure_cli_process` is only for
seed-edge's own programs, never for a host program.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

log = logging.getLogger("seed_edge")

TELEMETRY_OFF = {
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime: no machine id on disk, no DNS query for its collector
    "ORT_TELEMETRY_DISABLED": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, also for transformers, diffusers, accelerate, peft
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Variables that turn the telemetry of libraries off. They are set in every process and override the
environment.
"""
HUB_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}
"""Variables that keep huggingface_hub offline. Set for seed-edge's own programs, training and export, not for
a host program that only runs bundles.
"""
DEFAULTS = {
    # libgomp's threads sleep while they wait; spinning threads slow a busy machine a hundredfold
    "OMP_WAIT_POLICY": "passive",
}
"""Defaults of variables, used where the environment does not set them."""
LIBRARIES = ("onnxruntime", "onnxruntime-gpu", "llama-cpp-python")
"""Package names of the native libraries."""
ORT_FATAL = 4
"""ONNX Runtime's log severity "fatal"; other errors are raised as exceptions."""
LLAMA_ERROR = 3
"""llama.cpp's log level of errors."""
MAX_LOG_LINES = 20
_llama_errors: list[str] = []
_is_cli_process = False
"""Whether this process runs only seed-edge's command line; set by `configure_cli_process`."""


def configure() -> None:
    """Set the environment of this process and its children. Called once, when `seed_edge` is imported.

    If the host program imported ONNX Runtime before, its telemetry has started; it is stopped, with a
    warning.
    """
    too_late = "onnxruntime" in sys.modules and os.environ.get("ORT_DISABLE_TELEMETRY") != "1"
    os.environ.update(TELEMETRY_OFF)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    if too_late:
        onnxruntime()
        log.warning(
            "onnxruntime was imported before seed_edge and its telemetry was on; "
            "import seed_edge first, or set ORT_DISABLE_TELEMETRY=1"
        )


def telemetry_off() -> bool:
    """Whether the environment keeps every library's telemetry off."""
    return all(os.environ.get(name) == value for name, value in TELEMETRY_OFF.items())


@functools.cache
def onnxruntime() -> ModuleType:
    """Import ONNX Runtime, with telemetry off and only fatal errors logged. No other module imports it."""
    import onnxruntime as ort

    ort.disable_telemetry_events()  # event tracing on Windows ignores the variables
    ort.set_default_logger_severity(ORT_FATAL)
    module: ModuleType = ort
    return module


@functools.cache
def llama_cpp() -> ModuleType:
    """Import the bindings of llama.cpp; its messages go to `last_llama_error`, not to stderr. No other module
    imports them.
    """
    import ctypes

    import llama_cpp

    llama_cpp.llama_log_set(_llama_callback(), ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    module: ModuleType = llama_cpp
    return module


@functools.cache
def _llama_callback() -> Any:
    import llama_cpp

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def on_log(level: int, text: bytes, _: Any) -> None:
        if level == LLAMA_ERROR:
            _llama_errors.append(text.decode("utf-8", "replace").strip())
            del _llama_errors[:-MAX_LOG_LINES]

    return on_log


@functools.cache
def configure_hub_offline() -> None:
    """Set huggingface_hub to offline mode, and import urllib3 without its socket.

    urllib3, which huggingface_hub uses, binds a socket at import to test IPv6. Called by the packages that
    need PyTorch, before transformers, diffusers or accelerate are imported.
    """
    import importlib.util
    import socket

    os.environ.update(HUB_OFFLINE)
    if "urllib3" in sys.modules or importlib.util.find_spec("urllib3") is None:
        return
    has_ipv6, socket.has_ipv6 = socket.has_ipv6, False
    try:
        from urllib3.util import connection
    finally:
        socket.has_ipv6 = has_ipv6
    connection.HAS_IPV6 = has_ipv6


def _open_standard_streams() -> None:
    """Connect closed standard streams to the null device.

    Otherwise the next opened file gets their descriptor, and messages of native libraries are written into
    it.
    """
    while True:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor > 2:
            os.close(descriptor)
            break
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, stream)


@functools.cache
def installed_version(library: str) -> str:
    """Version of an installed library, without loading it; an empty string if it is not installed."""
    import importlib.metadata

    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return ""


def clear_llama_errors() -> None:
    """Clear the messages of `last_llama_error`; call it before a call whose errors are reported."""
    _llama_errors.clear()


def last_llama_error() -> str:
    """Last error message of llama.cpp, from any thread."""
    return _llama_errors[-1] if _llama_errors else "no reason given"


def libtiff() -> ctypes.CDLL | None:
    """The libtiff library that Pillow has loaded; None if it is unknown, or linked statically."""
    import PIL

    maps = Path("/proc/self/maps")
    if maps.exists():
        names = {line.split(maxsplit=5)[-1] for line in maps.read_text(errors="surrogateescape").splitlines()}
    else:  # macOS: in Pillow's wheel
        names = {str(path) for path in Path(PIL.__file__).parent.glob(".dylibs/libtiff*")}
    name = next((name for name in sorted(names) if Path(name).name.startswith("libtiff")), None)
    return None if name is None else ctypes.CDLL(name)


@functools.cache
def silence_libtiff() -> None:
    """Stop libtiff from printing to stderr; Pillow raises the same errors. Only in seed-edge's processes."""
    library = libtiff() if _is_cli_process else None
    if library is not None:
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            getattr(library, name)(ctypes.c_void_p(None))


def configure_cli_process() -> None:
    """Configure a process that runs only seed-edge's command line.

    Characters that the encoding of stdout lacks are escaped; warnings of libraries become debug messages.
    """
    os.environ.update(HUB_OFFLINE)
    _open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Callable[..., None] | None = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")

    def log_warning(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        log.debug("%s: %s", category.__name__, message)

    warnings.showwarning = log_warning
    global _is_cli_process
    _is_cli_process = True
