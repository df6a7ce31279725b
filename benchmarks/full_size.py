#!/usr/bin/env python3
"""Measures accuracy, time and memory of an export of SEED-2 in its official size, with random weights.

    python benchmarks/full_size.py --work FOLDER [--seed 7]

Needs 25 GB of disk in FOLDER and 16 GB of memory. Prints one JSON object per storage of the graphs: seconds
and peak memory (GB) of `seed-edge export` as a whole process, share of codes equal to the original code's
(`tests/fixtures/seed2/full-7*`, seed 7 only) on its pictures and on smooth random ones, largest difference
and cosine of image embeddings. `rewrite` is the step that makes an fp32 graph smaller, in a process of its
own.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from process import cost

from seed_edge.bundle import Bundle
from seed_edge.preprocess import open_image
from seed_edge.runtime.image_tokenizer import ImageTokenizer
from seed_edge.runtime.onnx_session import choose_device

REFERENCE = Path(__file__).parent.parent / "tests" / "fixtures" / "seed2"
REWRITE = """
import sys
from pathlib import Path
from seed_edge.export.onnx_storage import rewrite
rewrite(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
"""


def exactness(path: Path, seed: int) -> dict[str, float]:
    """Compare a bundle's codes and image embeddings with those of the original code."""
    if seed != 7:
        return {}
    images = ImageTokenizer(Bundle.open(path), choose_device("cpu"))
    stored, files = (
        np.load(REFERENCE / "full-7.npz"),
        json.loads((REFERENCE / "full-7-images.json").read_text())["images"],
    )
    sys.path.insert(0, str(REFERENCE))
    from make_checkpoint import GEOMETRIES, pixel_values

    values = pixel_values(GEOMETRIES["full"], len(stored["codes"]), int(stored["pixel_values_seed"]))
    equal = images.encode_values(values) == stored["codes"]
    pictures = [
        images.encode([open_image(REFERENCE / name)])[0] == wanted["bilinear"]["codes"]
        for name, wanted in files.items()
    ]
    given, wanted = (
        np.concatenate([stored[name], stored[f"random_{name}"]]) for name in ("codes", "image_embeds")
    )
    found = images.decoder.embed(given)
    cosine = (found * wanted).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(wanted, axis=1)
    return {
        "equal_codes_of_pictures": round(float(np.mean(pictures)), 4),
        "equal_codes_of_smooth_values": round(float(equal.mean()), 4),
        "embedding_error": float(f"{np.abs(found - wanted).max():.2g}"),
        "embedding_cosine": round(float(cosine.min()), 6),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--storage", nargs="+", default=["fp32", "fp16", "int8"])
    args = parser.parse_args()
    checkpoint = args.work / f"full-{args.seed}"
    if not (checkpoint / "geometry.json").exists():
        maker = [sys.executable, str(REFERENCE / "make_checkpoint.py"), "--geometry", "full"]
        print(
            json.dumps(
                {"making the checkpoint": cost([*maker, "--seed", str(args.seed), "--out", str(checkpoint)])}
            ),
            flush=True,
        )
    for storage in args.storage:
        out = args.work / f"bundle-{storage}"
        command = [
            sys.executable,
            "-m",
            "seed_edge",
            "export",
            "--ckpt",
            str(checkpoint),
            "--out",
            str(out),
            "--overwrite",
        ]
        photos = [
            part
            for name in ("square_rgb.png", "landscape_rgb.png")
            for part in ("--photo", str(REFERENCE / name))
        ]
        result: dict[str, object] = {
            "storage": storage,
            "export": cost([*command, "--image-weights", storage, *photos]),
        }
        result["bytes"] = sum(file.stat().st_size for file in out.iterdir())
        print(json.dumps(result | exactness(out, args.seed)), flush=True)
    plain = args.work / "bundle-fp32" / "encoder.onnx"
    if plain.exists() and "int8" in args.storage:
        scratch = args.work / "rewritten"
        scratch.mkdir(exist_ok=True)
        print(
            json.dumps(
                {
                    "rewrite as int8": cost(
                        [sys.executable, "-c", REWRITE, str(plain), str(scratch / "e.onnx"), "int8"]
                    )
                }
            )
        )


if __name__ == "__main__":
    main()
