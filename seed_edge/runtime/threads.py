"""How many threads to use, how they wait, and what the processor can do.

Both native runtimes keep threads spinning between two operations unless told otherwise; on a busy machine
that turns a millisecond into hundreds (`native` sets how they wait).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

SMALL_MODEL = 100 << 20
"""Language models up to this size, in bytes, run fastest on one thread."""

CPUINFO = Path("/proc/cpuinfo")
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "sve")
"""Processor features for which the two native libraries have faster code."""
CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def available_cores(quota: Path = CGROUP_QUOTA) -> int:
    """Cores this process may use: its affinity, capped by a container's quota. At least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if quota.is_file():
        allowed, _, period = quota.read_text().strip().partition(" ")
        if allowed.isdigit() and period.isdigit() and int(period) > 0:
            cores = min(cores, max(1, int(allowed) // int(period)))
    return cores


def cpu_flags() -> list[str]:
    """The features in `FLAGS` that the processor has; empty if the system does not report them."""
    try:
        found = re.search(r"^(?:flags|Features)\s*:(.*)$", CPUINFO.read_text(), re.MULTILINE)
    except OSError:
        return []
    has = set(found[1].split()) if found else set()
    return [flag for flag in FLAGS if flag in has]


def threads_for_language_model(size: int) -> int:
    """Threads for a GGUF file of `size` bytes."""
    return 1 if size <= SMALL_MODEL else available_cores()
