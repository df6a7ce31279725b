#!/usr/bin/env python3
"""Kills `caption DIR --resume`, `draw` and `export` at random moments, checks the files, then fills a disk.

    python benchmarks/faults.py [--tries 100]

The disk is a tmpfs of 64 kB, which only root can mount; otherwise this part is skipped, and the output says
so. Prints one JSON object. Needs the `export` extra.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parent.parent / "tests"
TINY = TESTS / "fixtures" / "tiny"
sys.path.insert(0, str(TESTS))
from faults import command, killed, random_pictures, seconds_of, whole_or_absent  # noqa: E402

from seed_edge.bundle import Bundle  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=100)
    tries = parser.parse_args().tries
    found = {}
    for task in (captions, drawings, exports):
        with tempfile.TemporaryDirectory() as folder:
            found[task.__name__] = {"tries": tries, "killed": task(Path(folder), tries)}
    with tempfile.TemporaryDirectory() as folder:
        found["full_disk"] = full_disk(Path(folder))
    print(json.dumps(found, indent=2))


def captions(folder: Path, tries: int) -> int:
    """Check that lines are only added, and that the final file equals that of an uninterrupted run."""
    random_pictures(folder / "many", 400)
    words = command("caption", "many", "--out", "cut.jsonl", "--resume", "-q", "--bundle", TINY)
    longest = seconds_of(command("caption", "many", "--out", "whole.jsonl", "-q", "--bundle", TINY), folder)
    cut, seen = folder / "cut.jsonl", [0]

    def look() -> None:
        lines = cut.read_bytes().count(b"\n") if cut.exists() else 0
        assert lines >= seen[-1], f"{seen[-1]} lines became {lines}"
        seen.append(lines)

    alive = killed(words, folder, tries, longest / 4, look)
    subprocess.run(words, cwd=folder, check=True, capture_output=True)
    assert cut.read_bytes() == (folder / "whole.jsonl").read_bytes()
    return alive


def drawings(folder: Path, tries: int) -> int:
    """Check that there is a complete image or none."""
    words = command("draw", "a house", "--bundle", TINY, "-o", "out.png", "-q")
    return killed(
        words, folder, tries, seconds_of(words, folder), lambda: whole_or_absent(folder / "out.png")
    )


def exports(folder: Path, tries: int) -> int:
    """Check that there is a complete bundle or none."""
    llama, out = folder / "llama", folder / "out"
    llama.mkdir()
    runpy.run_path(str(TINY.parent / "make_tiny_bundle.py"))["llama"](llama, seed=1)
    words = command("export", "--ckpt", TINY, "--llm", llama, "--weight-type", "F16", "--out", out, "-q")
    longest = seconds_of(words, folder)
    wanted = Bundle.open(out).manifest.files
    shutil.rmtree(out)

    def look() -> None:
        if out.exists():
            assert Bundle.open(out).manifest.files == wanted
            shutil.rmtree(out)

    alive = killed(words, folder, tries, longest, look)
    subprocess.run(words, cwd=folder, check=True, capture_output=True)
    return alive


def full_disk(folder: Path) -> str:
    """Check that a full disk is a one-line error and leaves no partial file."""
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True
        ).returncode
    ):
        return "left out: only root can mount a small tmpfs"
    try:
        (folder / "ballast").write_bytes(bytes(60_000))
        result = subprocess.run(
            command("draw", "a red fox", "-o", "out.png", "-q"), cwd=folder, capture_output=True, text=True
        )
        assert result.returncode == 1 and len(result.stderr.strip().splitlines()) == 1, result.stderr
        assert os.listdir(folder) == ["ballast"]
        return result.stderr.strip()
    finally:
        subprocess.run(["umount", folder], check=True)


if __name__ == "__main__":
    main()
