"""Settings of the whole process: environment variables, log callbacks, log severities, warnings. Nothing else
sets any.

`configure` runs when `seed_edge` is imported, so that it comes before the native libraries in every entry:
command line, `load`, export, training, evaluation, helper processes, benchmarks. `own_process` is for our own
programs, never for a host's.
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
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime: no machine id on disk, no look-up of its collector
    "ORT_TELEMETRY_DISABLED": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, and with it transformers, diffusers, accelerate, peft
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Environment variables that turn telemetry of libraries off. They are set in every process and override the
environment.
"""
HUB_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}
"""Variables that keep huggingface_hub off the network. Set for our own programs, training and export: a host
program that only runs bundles may download as it likes.
"""
QUIET = {
    # threads of libgomp sleep while they wait; spinning ones slow a busy machine a hundredfold
    "OMP_WAIT_POLICY": "passive",
}
"""Variables that a choice made in the environment overrides."""
LIBRARIES = ("onnxruntime", "onnxruntime-gpu", "llama-cpp-python")
"""Native libraries, by the names of their packages."""
ORT_FATAL = 4
"""ONNX Runtime's log severity for fatal errors only; failures reach us as exceptions."""
LLAMA_ERROR = 3
"""Level of llama.cpp's error messages."""
MAX_LOG_LINES = 20
_llama_errors: list[str] = []
_own = False
"""Whether this process runs nothing but seed-edge's command line; set by `own_process`."""


def configure() -> None:
    """Set the environment of this process and of those it starts. Called once, at import of `seed_edge`.

    A host program that imported ONNX Runtime before seed-edge has started its telemetry; it is stopped then,
    and a warning says what would have prevented it.
    """
    too_late = "onnxruntime" in sys.modules and os.environ.get("ORT_DISABLE_TELEMETRY") != "1"
    os.environ.update(TELEMETRY_OFF)
    for name, value in QUIET.items():
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
    """ONNX Runtime, with telemetry off and only fatal errors logged. The only import of it."""
    import onnxruntime as ort

    ort.disable_telemetry_events()  # Windows' event tracing asks for this besides the variables
    ort.set_default_logger_severity(ORT_FATAL)
    loaded: ModuleType = ort
    return loaded


@functools.cache
def llama_cpp() -> ModuleType:
    """Import the bindings of llama.cpp; its messages go to `last_llama_error`, not to stderr. No other module
    imports them.
    """
    import ctypes

    import llama_cpp

    llama_cpp.llama_log_set(_llama_callback(), ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    loaded: ModuleType = llama_cpp
    return loaded


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
def import_quietly() -> None:
    """Set huggingface_hub to offline mode, and import the modules that would open a socket at import.

    urllib3, below huggingface_hub, binds one to see whether IPv6 works. Called by the packages that need
    PyTorch, before transformers, diffusers or accelerate are imported.
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
    """Connect standard streams that were closed to the null device.

    Otherwise the next file that is opened takes their number, and what a native library prints goes into it.
    """
    while True:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor > 2:
            os.close(descriptor)
            break
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  (open as long as the process)


@functools.cache
def installed_version(library: str) -> str:
    """Version of an installed library, without loading it; an empty text where it is not installed."""
    import importlib.metadata

    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return ""


def forget_llama_errors() -> None:
    """Empty the list that `last_llama_error` looks at; before a call whose errors are wanted."""
    _llama_errors.clear()


def last_llama_error() -> str:
    """Last error message of llama.cpp, in any thread."""
    return _llama_errors[-1] if _llama_errors else "no reason given"


def libtiff() -> ctypes.CDLL | None:
    """The libtiff that Pillow has loaded; None if it is unknown, or linked into Pillow's library."""
    import PIL

    loaded = Path("/proc/self/maps")
    if loaded.exists():
        names = {
            line.split(maxsplit=5)[-1] for line in loaded.read_text(errors="surrogateescape").splitlines()
        }
    else:  # macOS: beside Pillow, in its wheel
        names = {str(path) for path in Path(PIL.__file__).parent.glob(".dylibs/libtiff*")}
    name = next((name for name in sorted(names) if Path(name).name.startswith("libtiff")), None)
    return None if name is None else ctypes.CDLL(name)


@functools.cache
def quiet_libtiff() -> None:
    """Stop libtiff from printing on stderr; Pillow raises the same errors. Only for processes that seed-edge
    started.
    """
    library = libtiff() if _own else None
    if library is not None:
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            getattr(library, name)(ctypes.c_void_p(None))


def own_process() -> None:
    """Settings for a process that runs nothing but seed-edge's command line.

    Output that stdout's encoding cannot hold is escaped instead of raising; warnings of libraries become
    debug messages.
    """
    os.environ.update(HUB_OFFLINE)
    _open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Callable[..., None] | None = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")

    def to_log(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        log.debug("%s: %s", category.__name__, message)

    warnings.showwarning = to_log
    global _own
    _own = True
