"""Number of threads to use, and features of the processor.

By default, the threads of both native runtimes spin between operations; on a busy machine this turns a
millisecond into hundreds. `native` and `onnx_session` make them sleep.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

SMALL_MODEL = 100 << 20
"""Language models up to this size in bytes run fastest with one thread."""

CPUINFO = Path("/proc/cpuinfo")
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "sve")
"""Processor features for which the two native libraries have faster code."""
CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def available_cores(quota: Path = CGROUP_QUOTA) -> int:
    """Number of cores that this process may use, by its affinity and the container's quota; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if quota.is_file():
        allowed, _, period = quota.read_text().strip().partition(" ")
        if allowed.isdigit() and period.isdigit() and int(period) > 0:
            cores = min(cores, max(1, int(allowed) // int(period)))
    return cores


def cpu_flags() -> list[str]:
    """The features in `FLAGS` that the processor has; empty if the system does not report them."""
    try:
        match = re.search(r"^(?:flags|Features)\s*:(.*)$", CPUINFO.read_text(), re.MULTILINE)
    except OSError:
        return []
    flags = set(match[1].split()) if match else set()
    return [flag for flag in FLAGS if flag in flags]


def threads_for_language_model(size: int) -> int:
    """Number of threads for a GGUF file of `size` bytes."""
    return 1 if size <= SMALL_MODEL else available_cores()
