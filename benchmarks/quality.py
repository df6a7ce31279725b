#!/usr/bin/env python3
"""How well a bundle sees and draws, on validation pictures only.

    python benchmarks/quality.py --data flickr8k-val.tar --data caltech101-train.tar --sheets FOLDER [--bundle B]

Prints one JSON object:

* `named`: share of labelled photos kept for validation whose caption holds the last word of the label.
* `main_thing`: share of photos with five sentences whose caption names the main thing: whichever of `THINGS` most of the
  five sentences name. Photos on which fewer than three agree are left out.
* `chance`: the same two figures when captions are shuffled between photos.

`FOLDER/drawings.jpg` shows the five prompts of the README, then random colours and names, none chosen by its result;
`FOLDER/captions.jpg` random photos with their captions (photos of others: not for publishing).
"""

from __future__ import annotations

import argparse
import io
import json
import re
import textwrap
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import seed_edge
from seed_edge.models.train.samples import Sample, read_samples
from seed_edge.models.train.texts import with_article
from seed_edge.models.train.tokenizer import STOP_WORDS

FIRST = ("a red fox", "a pizza", "a house", "a red car", "a sunflower")
NOUNS = (
    *("cat", "dog", "horse", "fish", "bird", "apple", "banana", "strawberry", "tree", "flower", "rose", "cactus", "mushroom"),
    *("bee", "butterfly", "octopus", "crab", "whale", "rabbit", "frog", "airplane", "bus", "bicycle", "boat", "rocket"),
    *("train", "hat", "shoe", "t-shirt", "umbrella", "key", "lamp", "book", "guitar", "drum", "soccer ball", "basketball"),
    *("moon", "star", "cloud", "rainbow", "heart", "crown", "burger", "hot dog", "ice cream", "cake", "bread", "cheese"),
)
THINGS = {
    "man": ("man", "men", "guy", "gentleman"),
    "woman": ("woman", "women", "lady"),
    "child": ("child", "children", "boy", "girl", "kid", "baby", "toddler"),
    "people": ("people", "person", "group", "crowd", "couple", "team"),
    "dog": ("dog", "puppy"),
    **{name: (name,) for name in ("cat", "horse", "bird", "cow", "sheep", "boat", "car", "bicycle", "motorcycle")},
}
COLOURS = ("red", "blue", "green", "yellow", "purple", "pink", "orange", "")


def words(text: str) -> set[str]:
    return {word.rstrip("s") for word in re.findall(r"[a-z]+", text.lower()) if word not in STOP_WORDS}


def things(text: str) -> set[str]:
    said = set(re.findall(r"[a-z]+", text.lower()))
    return {thing for thing, names in THINGS.items() if said & {form for name in names for form in (name, name + "s")}}


def main_thing(sentences: tuple[str, ...]) -> str | None:
    counts = Counter(thing for sentence in sentences for thing in things(sentence))
    thing, count = counts.most_common(1)[0] if counts else ("", 0)
    return thing if count >= 3 else None


READERS = {"named": words, "main_thing": things}
"""What of a caption counts for each figure."""


def hits(name: str, captions: list[str], wanted: list[str]) -> float:
    read = READERS[name]
    return round(float(np.mean([want in read(text) for text, want in zip(captions, wanted, strict=True)])), 3)


def caption_all(edge: seed_edge.runtime.pipeline.SeedEdge, pictures: list[bytes]) -> list[str]:
    return [edge.caption(Image.open(io.BytesIO(picture))) for picture in pictures]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--limit", type=int, default=500, help="photos of each kind")
    parser.add_argument("--sheets", type=Path, help="folder for contact sheets")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    kept = [(s, p) for s, p in read_samples(args.data) if s.held_out and s.style is None]
    kept = [kept[i] for i in rng.permutation(len(kept))]
    result = {}
    with seed_edge.load(args.bundle, device="cpu") as edge:
        groups: dict[str, list[tuple[Sample, bytes, str]]] = {"named": [], "main_thing": []}
        for sample, picture in kept:
            if sample.label:
                groups["named"].append((sample, picture, re.findall(r"[a-z]+", sample.label.lower())[-1].rstrip("s")))
            elif sample.captions and (thing := main_thing(sample.captions)):
                groups["main_thing"].append((sample, picture, thing))
        shown = []
        for name, group in groups.items():
            group = group[: args.limit]
            captions, wanted = caption_all(edge, [p for _, p, _ in group]), [w for _, _, w in group]
            result[name] = hits(name, captions, wanted)
            result.setdefault("chance", {})[name] = hits(name, [captions[i] for i in rng.permutation(len(captions))], wanted)
            result.setdefault("photos", {})[name] = len(group)
            shown += [(p, c) for (_, p, _), c in list(zip(group, captions, strict=True))[:24]]
        if args.sheets:
            args.sheets.mkdir(parents=True, exist_ok=True)
            prompts = [*FIRST, *(with_article(f"{rng.choice(COLOURS)} {rng.choice(NOUNS)}".strip()) for _ in range(43))]
            write_sheet(args.sheets / "drawings.jpg", [(edge.draw(p, seed=i), p) for i, p in enumerate(prompts)])
            small = [(Image.open(io.BytesIO(p)).convert("RGB").resize((128, 128)), c) for p, c in shown]
            write_sheet(args.sheets / "captions.jpg", small)
    print(json.dumps(result))


def write_sheet(path: Path, cells: list[tuple[Image.Image, str]], columns: int = 8) -> None:
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * 140, rows * 170), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (image, text) in enumerate(cells):
        x, y = i % columns * 140 + 6, i // columns * 170 + 4
        sheet.paste(image, (x, y))
        lines = textwrap.wrap(text, 21)[:3]
        pen.multiline_text((x, y + 130), "\n".join(lines), fill="black", spacing=1)
    sheet.save(path, quality=88)


if __name__ == "__main__":
    main()
