#!/usr/bin/env python3
"""Compares captioning 64 photos in one process with one process per photo.

    python benchmarks/batch.py [--photos 64] [--rounds 3]

Captions crops of the example photos with the embedded bundle; the two variants alternate. Prints one JSON
object: photos per second (medians), and their ratio.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from process import measured

EXAMPLES = Path(__file__).parent.parent / "examples"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    tool = [sys.executable, "-m", "seed_edge", "caption"]
    with tempfile.TemporaryDirectory() as folder:
        photos = cut(Path(folder) / "photos", args.photos)
        together, alone = [], []
        for _ in range(args.rounds):
            command = [*tool, str(photos[0].parent), "-q"]
            together.append(len(photos) / measured(command, subprocess.DEVNULL, subprocess.DEVNULL)[0])
            commands = (
                [*tool, str(photo), "-q"] for photo in photos[:8]
            )  # eight of them tell how long one takes
            seconds = [measured(each, subprocess.DEVNULL, subprocess.DEVNULL)[0] for each in commands]
            alone.append(1 / statistics.mean(seconds))
    one, many = statistics.median(alone), statistics.median(together)
    print(
        json.dumps(
            {"one_process_each": round(one, 2), "one_process": round(many, 2), "ratio": round(many / one, 1)},
            indent=2,
        )
    )


def cut(folder: Path, count: int) -> list[Path]:
    """Write random crops of the example photos, as JPEGs of about 300 pixels."""
    folder.mkdir()
    rng, found = np.random.default_rng(0), []
    sources = [Image.open(path).convert("RGB") for path in sorted(EXAMPLES.glob("*.jpg"))]
    for number in range(count):
        source = sources[number % len(sources)]
        x, y = (int(rng.integers(side // 2)) for side in source.size)
        part = source.crop((x, y, x + source.width // 2, y + source.height // 2))
        found.append(folder / f"{number:02}.jpg")
        part.save(found[-1], quality=90)
    return found


if __name__ == "__main__":
    main()
