#!/usr/bin/env python3
"""What the two committed bundles do with fixed inputs and seeds, written down before code is moved about.

    python tests/golden/behaviour.py > tests/golden/behaviour.json

`test_behaviour.py` compares. Only a change of weights, or one that is meant to change behaviour, may write the file anew.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import seed_edge

TESTS = Path(__file__).parent.parent
PHOTOS = ("coffee.jpg", "cat.jpg")
PROMPTS = ("a red fox", "a house", "two apples", "a blue star", "Three Dogs!", "a cat next to a house")
SEEDS = (0, 7)
QUESTION, CHANGE = "what is this?", "make it blue"
BLOCKS = 8
"""A picture is written down as the mean colours of so many blocks a side."""


def bundles() -> dict[str, Path | None]:
    """Bundles by name; None is the embedded one."""
    return {"embedded": None, "tiny": TESTS / "fixtures" / "tiny"}


def patterns() -> list[Image.Image]:
    """Pictures that are computed: four quarters, a gradient, noise; one of them in grey, one with transparency."""
    y, x = np.mgrid[0:96, 0:120]
    quarters = np.stack([(x > 60) * 255, (y > 48) * 255, (x > 30) * 255], -1).astype(np.uint8)
    gradient = (x * 2).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 4), np.uint8)
    return [Image.fromarray(quarters), Image.fromarray(gradient), Image.fromarray(noise)]


def blocks(image: Image.Image) -> list[int]:
    """Mean colours of the blocks of a picture, row by row."""
    return np.asarray(image.resize((BLOCKS, BLOCKS), Image.Resampling.BOX)).reshape(-1).tolist()


def behaviour(bundle: Path | None) -> dict[str, Any]:
    """What a bundle does."""
    photos = [TESTS.parent / "examples" / name for name in PHOTOS]
    images = [*photos, *patterns()]
    with seed_edge.load(bundle, device="cpu") as edge:
        codes = edge.encode(images)
        drawn = {
            f"{prompt} {seed}": edge.draw_codes(prompt, seed=seed) for prompt in PROMPTS for seed in SEEDS
        }
        found: dict[str, Any] = {
            "encode": codes.tolist(),
            "caption": [edge.caption(image) for image in images],
            "caption_sampled": [edge.caption(images[0], temperature=1.0, seed=seed) for seed in SEEDS],
            "draw": {name: each.tolist() for name, each in drawn.items()},
            "decode": [blocks(edge.decode(each)) for each in (*codes, *drawn.values())],
        }
        if edge.bundle.language.prompts.ask:
            found["ask"] = [edge.ask([image], QUESTION) for image in images]
            found["edit"] = [edge.edit_codes(codes[0], CHANGE, seed=seed).tolist() for seed in SEEDS]
    return found


if __name__ == "__main__":
    json.dump(
        {name: behaviour(path) for name, path in bundles().items()},
        sys.stdout,
        indent=None,
        separators=(",", ":"),
    )
    print()
