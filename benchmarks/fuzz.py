#!/usr/bin/env python3
"""Fuzzes bundles, images, settings and records with random mutations, loaded in child processes, for hours.

    python benchmarks/fuzz.py [--gguf 20000] [--onnx 5000] [--manifest 5000] [--image 100000] [--text 10000]
    [--seed 0]

Prints one JSON object for each kind: files tried, accepted and rejected; crashes, tracebacks and hangs of the
process that represents the user's; the peak memory of that process and of its child processes. Files with a
finding are kept in `--keep`. Needs the `dev` extra.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / "tests" / folder) for folder in ("fuzz", ".")]

from driver import KINDS, run  # noqa: E402

COUNTS = {"gguf": 20_000, "onnx": 5_000, "manifest": 5_000, "image": 100_000, "text": 10_000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for kind in KINDS:
        parser.add_argument(f"--{kind}", type=int, default=COUNTS[kind], help="number of files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"))
    options = parser.parse_args()
    clean = True
    for kind in KINDS:
        if getattr(options, kind):
            figures = run(kind, getattr(options, kind), options.seed, options.keep)
            print(json.dumps(dataclasses.asdict(figures)), flush=True)
            clean = clean and figures.clean
    sys.exit(not clean)


if __name__ == "__main__":
    main()
