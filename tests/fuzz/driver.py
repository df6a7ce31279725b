"""Runs a fuzzer in child processes, which stand for the user's: a crash, a traceback or a hang of theirs is what is looked for.

    python tests/fuzz/driver.py KIND COUNT [--seed 0] [--keep FOLDER]

Prints one JSON object. A kind is a module with `seeds() -> list[bytes]`, `mutate(data, rng) -> bytes` and
`check(data, folder) -> bool`; `check` raises nothing but faults. `prepare()`, where there is one, is called first in each child.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import json
import os
import random
import resource
import selectors
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import IO

TESTS = Path(__file__).parent.parent
KINDS = ("gguf", "onnx", "manifest", "image", "text")
"""Fuzzers; each is a module `KIND_files`."""
IN_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Folder for files that live a moment."""
SECONDS = 120.0
"""A file that takes longer hangs."""


@dataclass
class Figures:
    """What came out of a run."""

    kind: str
    tried: int = 0
    passed: int = 0
    refused: int = 0
    crashes: list[str] = field(default_factory=list)
    """Signal or exit code, and the number of the file."""
    tracebacks: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    peak_bytes: int = 0
    """Largest resident memory of a process that stands for the user's."""
    peak_bytes_isolated: int = 0
    """Largest resident memory of the processes that it started to try bundles in."""
    slowest_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not (self.crashes or self.tracebacks or self.hangs)


def run(kind: str, count: int, seed: int, keep: Path | None = None, first: int = 0) -> Figures:
    """Try `count` files; those at which something was found are kept in a folder, if one is given."""
    figures, started = Figures(kind), time.monotonic()
    at, end = first, first + count
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        while at < end:
            at = _until_it_dies(figures, kind, seed, at, end, Path(folder), keep)
    figures.seconds = round(time.monotonic() - started, 1)
    return figures


def _until_it_dies(
    figures: Figures, kind: str, seed: int, at: int, end: int, folder: Path, keep: Path | None
) -> int:
    """Let one child try files; return the number of the next one."""
    command = [
        sys.executable,
        __file__,
        kind,
        str(end - at),
        "--seed",
        str(seed),
        "--child",
        str(at),
        "--folder",
        str(folder),
    ]
    environment = os.environ | {"SEED_EDGE_HOME": str(folder / "home"), "OMP_WAIT_POLICY": "passive"}
    with (
        tempfile.TemporaryFile() as errors,  # a pipe that nobody reads would fill up
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment) as child,
    ):
        assert child.stdout is not None
        lines = _Lines(child.stdout)
        while (line := lines.next(SECONDS)) is not None:
            record = json.loads(line)
            at = record["number"] + 1
            figures.tried += 1
            figures.passed += record["outcome"] == "passed"
            figures.refused += record["outcome"] == "refused"
            figures.peak_bytes = max(figures.peak_bytes, record["peak"])
            figures.peak_bytes_isolated = max(figures.peak_bytes_isolated, record["isolated"])
            figures.slowest_seconds = max(figures.slowest_seconds, record["seconds"])
            if record["outcome"] not in ("passed", "refused"):
                figures.tracebacks.append(f"{record['number']}: {record['outcome']}")
                _keep(kind, seed, record["number"], keep)
        if at >= end:
            child.wait()
            return at
        hung = child.poll() is None and lines.timed_out
        child.kill()
        code = child.wait()
        errors.seek(0)
        said = errors.read().decode("utf-8", "replace").strip()[-300:]
        (figures.hangs if hung else figures.crashes).append(f"{at}: exit {code} {said}")
        _keep(kind, seed, at, keep)
        figures.tried += 1
        return at + 1


class _Lines:
    """Lines of a pipe, each waited for only so long."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self.pipe, self.buffer, self.timed_out = pipe, b"", False
        self.selector = selectors.DefaultSelector()
        self.selector.register(pipe, selectors.EVENT_READ)

    def next(self, seconds: float) -> bytes | None:
        """The next line; None at the end, or when it takes too long."""
        while b"\n" not in self.buffer:
            if not self.selector.select(seconds):
                self.timed_out = True
                return None
            data = os.read(self.pipe.fileno(), 65536)
            if not data:
                return None
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line


def fuzzer(kind: str) -> ModuleType:
    """The module of a kind."""
    return importlib.import_module(f"{kind}_files")


def made(kind: str, seed: int, number: int) -> bytes:
    """File number `number`: the same for the same seed."""
    module = fuzzer(kind)
    rng = random.Random(f"{kind} {seed} {number}")
    return bytes(module.mutate(rng.choice(module.seeds()), rng))


def _keep(kind: str, seed: int, number: int, folder: Path | None) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{kind}-{seed}-{number}").write_bytes(made(kind, seed, number))


def largest_memory() -> int:
    """Largest resident memory of this process since its program began, in bytes.

    `ru_maxrss` would count the program that the process was forked from.
    """
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def child(kind: str, seed: int, first: int, count: int, folder: Path) -> None:
    """Try files, a line of JSON for each."""
    module = fuzzer(kind)
    module.seeds()
    getattr(module, "prepare", lambda: None)()
    for number in range(first, first + count):
        data, started = made(kind, seed, number), time.monotonic()
        try:
            outcome = "passed" if module.check(data, folder) else "refused"
        except Exception:  # a fault, whatever it is
            outcome = traceback.format_exc()[-1500:]
        record = {
            "number": number,
            "outcome": outcome,
            "seconds": round(time.monotonic() - started, 2),
            "peak": largest_memory(),
            "isolated": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
        }
        print(json.dumps(record), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", help=f"one of {', '.join(KINDS)}")
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for files at which something was found")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        child(options.kind, options.seed, options.child, options.count, options.folder)
        return
    figures = run(options.kind, options.count, options.seed, options.keep)
    print(json.dumps(dataclasses.asdict(figures), indent=2))
    sys.exit(not figures.clean)


sys.path.insert(0, str(TESTS))
if __name__ == "__main__":
    main()
