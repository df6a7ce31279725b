"""Time and memory of a whole process, for the other benchmarks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import IO

import seed_edge  # noqa: F401  (turns telemetry off, for the processes that are measured too)


def measured(
    command: list[str], stdout: IO[str] | int = sys.stderr, stderr: int | None = None
) -> tuple[float, float]:
    """Wall time in seconds and peak resident set in bytes of one run; ends the benchmark if it fails."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=stdout, stderr=stderr)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} failed")
    return time.perf_counter() - started, usage.ru_maxrss * 1024


def cost(command: list[str]) -> dict[str, float]:
    """Seconds and peak memory (GB) of a process, for printing."""
    seconds, peak = measured(command)
    return {"seconds": round(seconds, 1), "peak_gb": round(peak / 1e9, 2)}
