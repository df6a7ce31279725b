"""Measures the memory that a graph needs to be opened and run once, in a separate process.

`python -m seed_edge.runtime.memory_probe GRAPH` prints the result as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from seed_edge.errors import BundleError
from seed_edge.manifest import MemoryUse
from seed_edge.memory import peak_memory, reset_peak, resident_memory
from seed_edge.runtime.onnx_session import DTYPES, open_on_cpu
from seed_edge.runtime.unclip import TILE


def measure_memory(path: Path) -> MemoryUse | None:
    """Memory of a graph on a CPU, without that of the process itself; None if the system does not report it.

    Raises:
        BundleError: the graph cannot be opened or run.
    """
    command = [sys.executable, "-m", "seed_edge.runtime.memory_probe", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BundleError(
            f"{path} cannot be run in a separate process ({done.stderr.strip().splitlines()[-1:]})"
        )
    result = json.loads(done.stdout)
    return None if result is None else MemoryUse(**result)


def measure(path: Path) -> MemoryUse | None:
    """`measure_memory` in this process, which must not have opened a graph yet; dynamic axes have the size
    `TILE`.
    """
    before = resident_memory()
    if before is None:
        return None
    reset_peak()
    session = open_on_cpu(path)
    held, opening = resident_memory() or 0, peak_memory() or 0
    reset_peak()
    shapes = [[n if isinstance(n, int) else TILE for n in tensor.shape] for tensor in session.get_inputs()]
    kinds = [DTYPES[tensor.type] for tensor in session.get_inputs()]
    names = [tensor.name for tensor in session.get_inputs()]
    session.run(
        None, {n: np.zeros([1, *shape[1:]], k) for n, shape, k in zip(names, shapes, kinds, strict=True)}
    )
    return MemoryUse(held - before, opening - before, (peak_memory() or 0) - before)


if __name__ == "__main__":
    use = measure(Path(sys.argv[1]))
    print(json.dumps(None if use is None else asdict(use)))
