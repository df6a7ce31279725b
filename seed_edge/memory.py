"""How much memory can be used without swapping, and how much this process took."""

from __future__ import annotations

import re
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""Written to `CLEAR`, makes the peak what is taken now (Linux, proc_pid_clear_refs(5))."""


def available_memory() -> int | None:
    """Bytes that the system can give away now; None where it does not say."""
    return _kilobytes(MEMINFO, "MemAvailable")


def peak_memory() -> int | None:
    """Most bytes this process held in memory since `reset_peak`, or since it began; None where the system does not say."""
    return _kilobytes(STATUS, "VmHWM")


def reset_peak() -> None:
    """Let `peak_memory` begin anew, where the system allows it."""
    try:
        CLEAR.write_text(RESET_PEAK)
    except OSError:  # no Linux, or not allowed
        return


def _kilobytes(path: Path, name: str) -> int | None:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB$", path.read_text(), re.MULTILINE)
    except OSError:  # no Linux
        return None
    return int(found[1]) * 1024 if found else None
