#!/usr/bin/env python3
"""Measures time and peak memory of whole commands, compared with those of a bare Python process.

    python benchmarks/timing.py [--runs 5]

Prints one JSON object: medians of wall time in seconds and the largest resident set in MB.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from process import measured

EXAMPLE = Path(__file__).parent.parent / "examples" / "coffee.jpg"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    tool = [sys.executable, "-m", "seed_edge"]
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "import onnxruntime, llama_cpp": [sys.executable, "-c", "import onnxruntime, llama_cpp"],
            "--help": [*tool, "--help"],
            "caption": [*tool, "caption", str(EXAMPLE)],
            "draw": [*tool, "draw", "a red fox", "-o", f"{folder}/fox.png", "--seed", "7"],
        }
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(runs + 1):  # alternating, the first round only warms up
            for name, command in commands.items():
                taken[name].append(measured(command, subprocess.DEVNULL, subprocess.DEVNULL))
    rows = {
        name: {
            "seconds": round(statistics.median(t for t, _ in of[1:]), 3),
            "peak_mb": round(max(m for _, m in of[1:]) / 2**20),
        }
        for name, of in taken.items()
    }
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
