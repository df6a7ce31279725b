"""Commands killed at random moments, and what is found afterwards; for tests, and for `benchmarks/faults.py`."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def command(*arguments: object) -> list[str]:
    """The command line in a process of its own."""
    return [sys.executable, "-m", "seed_edge", *map(str, arguments)]


def seconds_of(words: Sequence[str], cwd: Path) -> float:
    """How long a command takes that is left alone; it has to succeed."""
    started = time.monotonic()
    subprocess.run(words, cwd=cwd, check=True, capture_output=True)
    return time.monotonic() - started


def killed(
    words: Sequence[str], cwd: Path, tries: int, longest: float, look: Callable[[], None], seed: int = 0
) -> int:
    """Start a command `tries` times and kill it after up to `longest` seconds; `look` after each. Returns how many were alive."""
    alive = 0
    for wait in np.random.default_rng(seed).uniform(0.02, longest, tries):
        process = subprocess.Popen(words, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(wait)
        alive += process.poll() is None
        process.kill()
        process.wait()
        look()
    return alive


def random_pictures(folder: Path, count: int) -> None:
    """Small PNGs of noise."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{number:03}.png")


def whole_or_absent(path: Path) -> None:
    """Fails where a picture is there that cannot be read to its end."""
    if path.exists():
        with Image.open(path) as picture:
            picture.load()
