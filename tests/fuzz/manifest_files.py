"""Manifests and arrays of bundles changed at random, and the bundles used."""

from __future__ import annotations

import functools
import io
import json
import random
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from bundle_files import loaded, originals, place
from PIL import Image

import seed_edge
from seed_edge.manifest import MANIFEST

VALUES = (
    None, True, False, 0, 1, -1, 2, 255, 4096, 2**31, 2**32, 2**63, 10**30, -(10**18), 0.5, 1e300, 1e-300, "", "x", "pixels", "unclip",
    "llm.gguf", "../../etc/passwd", "encoder.onnx", "\x1b[31m", "{images}" * 50, "{text}" * 500, "\ud800", [], {}, [[]], [0] * 9,
)  # fmt: skip
RAW = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "9" * 5000,
    "[" * 3000,
    '"\\ud800"',
    "{",
    "--5",
    '{"a":1,"a":2}',
)
TINY, UNCLIP, NOISE = 0, 1, 2


@functools.cache
def seeds() -> list[bytes]:
    """Each begins with a byte that tells what it is: a manifest of the tiny bundle, of a diffusion, or a diffusion's arrays."""
    with tempfile.TemporaryDirectory() as folder:
        tiny, unclip = (
            json.loads((place(Path(folder), {}, base=base) / MANIFEST).read_text())
            for base in ("tiny", "unclip")
        )
    tiny["language"]["sampling"] |= {"guidance": 1.5, "best_of": 2}
    tiny["language"] |= {"caption_beams": 2, "caption_views": 2}
    texts = [bytes([kind]) + json.dumps(told).encode() for kind, told in ((TINY, tiny), (UNCLIP, unclip))]
    return [*texts, *texts, bytes([NOISE]) + originals("unclip")["image_noise.npz"]]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """The file with one to three changes."""
    kind, content = data[:1], data[1:]
    if kind[0] == NOISE:
        return kind + _arrays(content, rng)
    told = json.loads(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        _change(told, rng)
    text = json.dumps(told)
    if rng.random() < 0.1:  # what `json.dumps` does not write
        at = rng.choice([i for i, letter in enumerate(text) if letter in "0123456789"])
        text = text[:at] + rng.choice(RAW) + text[at + 1 :]
    raw = bytearray(text.encode("utf-8", "surrogatepass"))
    if rng.random() < 0.1:
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    return kind + bytes(raw[: rng.randrange(len(raw))] if rng.random() < 0.03 else raw)


def _change(told: Any, rng: random.Random) -> None:
    """Change a value anywhere below, or a key."""
    place: Any = told
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(place[key], (dict, list)) and place[key] and rng.random() < 0.85:
            place = place[key]
            continue
        break
    how = rng.randrange(8)
    if how == 0 and isinstance(place, dict):
        del place[key]
    elif how == 1 and isinstance(place, dict):
        place[rng.choice(("x", "format", "", "\x1b", key))] = rng.choice(VALUES)
    elif how == 2 and type(place[key]) in (int, float):
        place[key] = place[key] * rng.choice((2, -1, 0, 10, 1000)) + rng.choice((0, 1, -1))
    else:
        place[key] = rng.choice(VALUES)


def _arrays(data: bytes, rng: random.Random) -> bytes:
    """An .npz file with members changed, packed otherwise, missing, or damaged as bytes."""
    if rng.random() < 0.3:
        raw = bytearray(data)
        for _ in range(rng.randint(1, 6)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        return bytes(raw)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(list(members))
    arrays: list[Any] = [
        np.zeros(0), np.float64(1), np.zeros((2, 2)), np.zeros(4, "c16"), np.array(["x"]), np.full(4, np.nan, "f4"), np.zeros(10**6),
        np.zeros(4, "i8"), np.zeros(4, "f4"), np.ones(3, "f4"), np.array([("a", 1)], "U1,i4"),
    ]  # fmt: skip
    how, packing = rng.randrange(4), zipfile.ZIP_STORED
    if how == 0:
        del members[name]
    elif how == 1:
        buffer = io.BytesIO()
        np.save(buffer, rng.choice(arrays))
        members[name] = buffer.getvalue()
    elif how == 2:
        members["../" + name] = members[name]
    else:
        packing = rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", packing) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return out.getvalue()


def check(data: bytes, folder: Path) -> bool:
    """Use a bundle with this manifest, or with these arrays: all that it can do; whether that went well."""
    kind, content = data[0], data[1:]
    if kind == NOISE:
        bundle = place(folder, {"image_noise.npz": content}, base="unclip")
    else:
        bundle = place(folder, {}, content, base="tiny" if kind == TINY else "unclip")

    def use(edge: seed_edge.SeedEdge) -> None:
        image = Image.new("RGB", (20, 20), "red")
        codes = edge.encode([image])[0]
        if edge.bundle.manifest.language is not None:
            edge.caption(image)
            edge.draw("a house", seed=1)
        elif edge.bundle.manifest.kind == "pixels" or edge.bundle.manifest.diffusion is not None:
            edge.decode(codes)

    return loaded(bundle, use)
