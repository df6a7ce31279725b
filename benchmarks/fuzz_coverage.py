#!/usr/bin/env python3
"""Fuzzes the readers of GGUF and ONNX headers, manifests and image records, guided by coverage, with atheris.

    pip install atheris
    python benchmarks/fuzz_coverage.py [--seconds 60]

Each reader runs in a separate process for that many seconds. A finding is an input that causes anything but a
result or one clear error, or that takes 5 seconds or 512 MB; it ends the process and is kept in `crash-*` in
the working folder. Prints one JSON object: inputs tried and the exit code, 0 without findings.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from seed_edge.errors import SeedEdgeError

TINY = Path(__file__).parent.parent / "tests" / "fixtures" / "tiny"
KINDS = {"gguf": "llm.gguf", "onnx": "encoder.onnx", "manifest": "manifest.json", "record": None}
"""Readers, each with a file of the tiny bundle that it can read."""
LONGEST = 8192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args()
    if options.kind:
        fuzz(options.kind, rest)
        return
    found = {}
    for kind, valid in KINDS.items():
        with tempfile.TemporaryDirectory() as corpus:
            if valid is not None:
                (Path(corpus) / "valid").write_bytes((TINY / valid).read_bytes()[:LONGEST])
            limits = {
                "max_total_time": options.seconds,
                "timeout": 5,
                "rss_limit_mb": 512,
                "max_len": LONGEST,
            }
            told = [f"-{name}={value}" for name, value in (limits | {"print_final_stats": 1}).items()]
            command = [sys.executable, __file__, "--kind", kind, corpus, *told]
            result = subprocess.run(command, capture_output=True, text=True)
        tried = re.search(r"number_of_executed_units:\s*(\d+)", result.stderr)
        found[kind] = {"inputs": int(tried[1]) if tried else 0, "exit_code": result.returncode}
        if result.returncode:
            print(result.stderr[-3000:], file=sys.stderr)
    print(json.dumps(found, indent=2))


def fuzz(kind: str, rest: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=["seed_edge"]):
        from seed_edge import gguf_header, image_metadata, manifest, onnx_header

    folder = Path(tempfile.mkdtemp())

    def on_file(read: Callable[[Path], object]) -> Callable[[bytes], object]:
        def of(data: bytes) -> object:
            path = folder / "input"
            path.write_bytes(data)
            return read(path)

        return of

    readers: dict[str, Callable[[bytes], object]] = {
        "gguf": on_file(gguf_header.GgufHeader.read),
        "onnx": on_file(lambda path: onnx_header.OnnxHeader.read(path).check_bundle_rules(path)),
        "manifest": lambda data: manifest.Manifest.from_json(data.decode("utf-8", "replace")),
        "record": lambda data: image_metadata.record_from_image(noted(data), "input"),
    }

    def noted(data: bytes) -> Image.Image:
        """A picture whose metadata is `data`, in the marks that records stand between."""
        image = Image.new("RGB", (1, 1))
        image.info["xmp"] = b"<seed:record>" + data + b"</seed:record>"
        return image

    def one(data: bytes) -> None:
        try:
            readers[kind](data)
        except SeedEdgeError as error:
            assert str(error) and "\n" not in str(error), error

    atheris.Setup([sys.argv[0], *rest], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
