"""How much memory can be used without swapping, how much this process took, and how to give some back."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
CGROUP = Path("/sys/fs/cgroup")
"""Files of a container's cgroup: its memory limit and its use."""
RESET_PEAK = "5"
"""Written to `CLEAR`, makes the peak what is taken now (Linux, proc_pid_clear_refs(5))."""


def available_memory() -> int | None:
    """Free memory in bytes, at most what the container may still take; None if the system does
    not report it.
    """
    found = [free for free in (_kilobytes(MEMINFO, "MemAvailable"), _left_in_container()) if free is not None]
    return min(found, default=None)


def held_memory() -> int | None:
    """Bytes this process holds in memory now; None where the system does not say."""
    return _kilobytes(STATUS, "VmRSS")


def peak_memory() -> int | None:
    """Most bytes this process held in memory since `reset_peak`, or since it began; None where the system
    does not say.
    """
    return _kilobytes(STATUS, "VmHWM")


def reset_peak() -> None:
    """Let `peak_memory` begin anew, where the system allows it."""
    try:
        CLEAR.write_text(RESET_PEAK)
    except OSError:  # no Linux, or not allowed
        return


def give_back() -> None:
    """Return freed memory to the system; glibc keeps what lies between blocks in use otherwise."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def free_gpu_memory() -> int | None:
    """Free memory in bytes of the first NVIDIA GPU, from `nvidia-smi`; None if it is unknown."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    question = [tool, "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(question, capture_output=True, text=True, timeout=20, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return int(told[0]) << 20 if told and told[0].isdecimal() else None


def _left_in_container() -> int | None:
    try:
        allowed, taken = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        cached = re.search(r"^inactive_file (\d+)$", (CGROUP / "memory.stat").read_text(), re.MULTILINE)
    except OSError:  # no container, or one of another kind
        return None
    if not allowed.isdecimal() or not taken.isdecimal():  # `max`: no limit
        return None
    return max(0, int(allowed) - int(taken) + (int(cached[1]) if cached else 0))


def _kilobytes(path: Path, name: str) -> int | None:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB$", path.read_text(), re.MULTILINE)
    except OSError:  # no Linux
        return None
    return int(found[1]) * 1024 if found else None
