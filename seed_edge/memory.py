"""Free memory of the system and of the GPU, memory of this process, and release of freed memory."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
CGROUP = Path("/sys/fs/cgroup")
"""Files of a container's cgroup: its memory limit and its use."""
RESET_PEAK = "5"
"""Value that resets the peak when written to `CLEAR_REFS` (Linux, proc_pid_clear_refs(5))."""


def available_memory() -> int | None:
    """Memory in bytes that can be used without swapping, within the container's limit; None if unknown."""
    values = (_kilobytes(MEMINFO, "MemAvailable"), _free_in_container())
    return min((value for value in values if value is not None), default=None)


def resident_memory() -> int | None:
    """Resident memory of this process in bytes; None if the system does not report it."""
    return _kilobytes(STATUS, "VmRSS")


def peak_memory() -> int | None:
    """Peak resident memory of this process in bytes since `reset_peak`, or its start; None if unknown."""
    return _kilobytes(STATUS, "VmHWM")


def reset_peak() -> None:
    """Restart the measurement of `peak_memory`, where the system supports it."""
    try:
        CLEAR_REFS.write_text(RESET_PEAK)
    except OSError:  # not Linux, or no permission
        return


def trim_heap() -> None:
    """Return freed memory to the system; otherwise glibc keeps free blocks between used ones."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def free_gpu_memory() -> int | None:
    """Free memory in bytes of the first NVIDIA GPU, from `nvidia-smi`; None if it is unknown."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return int(output[0]) << 20 if output and output[0].isdecimal() else None


def _free_in_container() -> int | None:
    """Memory in bytes below the limit of the cgroup; None without a limit."""
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        cached = re.search(r"^inactive_file (\d+)$", (CGROUP / "memory.stat").read_text(), re.MULTILINE)
    except OSError:  # no cgroup of version 2
        return None
    if not limit.isdecimal() or not used.isdecimal():  # `max`: no limit
        return None
    return max(0, int(limit) - int(used) + (int(cached[1]) if cached else 0))


def _kilobytes(path: Path, name: str) -> int | None:
    """A value in bytes of a file of `/proc`; None if it is unknown."""
    try:
        match = re.search(rf"^{name}:\s+(\d+) kB$", path.read_text(), re.MULTILINE)
    except OSError:  # not Linux
        return None
    return int(match[1]) * 1024 if match else None
