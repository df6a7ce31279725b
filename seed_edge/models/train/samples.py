"""Training samples: pictures with texts, read from WebDataset tars and cached as trunk features.

A sample is seen in two views: view 0 as the runtime would see it, view 1 cropped, shifted or mirrored.
"""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from seed_edge.errors import DataError
from seed_edge.models.config import PixelGeometry
from seed_edge.models.train.shards import IMAGE_TYPES, read_shard
from seed_edge.models.trunk import IMAGE_MEAN, IMAGE_STD, EfficientNetLite
from seed_edge.preprocess import Preprocessing, to_rgb

VIEWS = 2
VALIDATION_SHARE = 10
"""Every n-th labelled photo, by a hash of its key, is kept for validation."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """One picture and what is known of it."""

    key: str
    captions: tuple[str, ...] = ()
    """Whole sentences."""
    label: str | None = None
    """Name of the thing shown."""
    phrases: tuple[str, ...] = ()
    """What is shown, with article, in several ways: drawings of several things."""
    tags: tuple[str, ...] = ()
    """Keywords, drawings only."""
    synonyms: tuple[str, ...] = ()
    """What people call it, other than the label."""
    style: str | None = None
    """Design of a drawing; None for a photo."""
    colour: str | None = None
    """Colour word, where one colour dominates a drawing."""
    recoloured: bool = False
    """The drawing was given `colour` by us; its label alone would mislead."""
    held_out: bool = False
    """For validation only."""

    @classmethod
    def from_record(cls, key: str, record: dict, held_out: bool) -> Sample:
        """From the JSON beside a picture: `captions`, or `label` with `tags`, `style` and `colour`."""
        label = record.get("label") or None
        photo_of_label = label is not None and record.get("style") is None
        return cls(
            key=key,
            captions=tuple(record.get("captions", ())),
            label=label,
            phrases=tuple(record.get("phrases", ())),
            tags=tuple(record.get("tags", ())),
            synonyms=tuple(record.get("synonyms", ())),
            style=record.get("style"),
            colour=record.get("colour"),
            recoloured=bool(record.get("recoloured", False)),
            held_out=held_out
            or bool(record.get("held_out", False))
            or (photo_of_label and zlib.crc32(key.encode()) % VALIDATION_SHARE == 0),
        )


def read_samples(tars: Sequence[Path]) -> list[tuple[Sample, bytes]]:
    """All samples of the tars with their encoded pictures. A tar whose name contains `-val` is held out.

    Raises:
        DataError: a tar cannot be read, a record is no JSON object, or nothing was found.
    """
    found = []
    for tar in tars:
        for key, files in read_shard(tar):
            picture = next((files[kind] for kind in IMAGE_TYPES if kind in files), None)
            if picture is None:
                continue
            try:
                record = json.loads(files.get("json", b"{}"))
            except ValueError as error:
                raise DataError(f"{tar}: {key}.json is not JSON ({error})") from error
            found.append((Sample.from_record(key, record, held_out="-val" in tar.name), picture))
    if not found:
        raise DataError(f"no pictures in {', '.join(map(str, tars))}; give WebDataset tars with --data")
    return found


def view(image: Image.Image, size: int, rng: np.random.Generator | None, mirrored: bool = True) -> Image.Image:
    """The picture as a square RGB of `size`; with `rng`, varied.

    Args:
        mirrored: whether a variation may have left and right exchanged.
    """
    if rng is None:
        return to_rgb(image).resize((size, size), Image.Resampling.BILINEAR)
    mirrored = mirrored and rng.random() < 0.4
    if image.has_transparency_data:  # a drawing: smaller, elsewhere, tilted, sometimes on a pale colour
        side = int(size * rng.uniform(0.6, 1.0))
        drawing = image.convert("RGBA").resize((side, side), Image.Resampling.BILINEAR)
        if mirrored:
            drawing = ImageOps.mirror(drawing)
        if rng.random() < 0.4:
            drawing = drawing.rotate(rng.uniform(-15, 15), Image.Resampling.BILINEAR)
        ground = (255, 255, 255) if rng.random() < 0.5 else tuple(int(c) for c in rng.integers(150, 256, 3))
        canvas = Image.new("RGB", (size, size), ground)
        x, y = (int(v) for v in rng.integers(0, size - side + 1, 2))
        canvas.paste(drawing, (x, y), drawing)
        return _relit(canvas, rng)
    rgb = to_rgb(image)
    width, height = rgb.size
    w, h = (int(n * rng.uniform(0.75, 1.0)) for n in (width, height))
    x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
    rgb = rgb.crop((x, y, x + w, y + h)).resize((size, size), Image.Resampling.BILINEAR)
    return _relit(ImageOps.mirror(rgb) if mirrored else rgb, rng)


def _relit(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Half of the pictures a little brighter or darker, stronger or weaker in contrast and colour."""
    if rng.random() < 0.5:
        return image
    for kind in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = kind(image).enhance(rng.uniform(0.75, 1.25))
    return image


@dataclasses.dataclass
class Cache:
    """Trunk features and target pixels of all samples, memory-mapped."""

    samples: list[Sample]
    features: NDArray[np.float16]
    """(samples * VIEWS, tokens, vit_width); rows of one sample stand together, view 0 first."""
    pixels: NDArray[np.uint8]
    """(samples * VIEWS, output_size, output_size, 3)."""

    def rows(self, held_out: bool) -> NDArray[np.int64]:
        """Row numbers of view 0 of the samples kept, or not kept, for validation."""
        return np.array([i * VIEWS for i, s in enumerate(self.samples) if s.held_out == held_out])


def build_cache(
    tars: Sequence[Path],
    folder: Path,
    trunk: EfficientNetLite,
    geometry: PixelGeometry,
    report: Callable[[str], None],
    batch: int = 32,
) -> Cache:
    """Run the trunk over every picture once; a finished cache in `folder` is opened instead."""
    done = folder / "samples.jsonl"
    tokens, size = (geometry.image_size // 32) ** 2, geometry.output_size
    if done.exists():
        samples = [_sample_from_json(line) for line in done.read_text().splitlines()]
        rows = len(samples) * VIEWS
        return Cache(
            samples,
            np.memmap(folder / "features.f16", np.float16, "r", shape=(rows, tokens, geometry.vit_width)),
            np.memmap(folder / "pixels.u8", np.uint8, "r", shape=(rows, size, size, 3)),
        )
    folder.mkdir(parents=True, exist_ok=True)
    found = read_samples(tars)
    rows = len(found) * VIEWS
    needed = rows * (2 * tokens * geometry.vit_width + 3 * size * size)
    free = shutil.disk_usage(folder).free
    if free < needed:  # a memory map on a full disk ends the process without a word
        raise DataError(f"{folder}: features need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; choose another --out")
    features = np.memmap(folder / "features.f16", np.float16, "w+", shape=(rows, tokens, geometry.vit_width))
    pixels = np.memmap(folder / "pixels.u8", np.uint8, "w+", shape=(rows, size, size, 3))
    preprocessing = Preprocessing(geometry.image_size, "bilinear", IMAGE_MEAN, IMAGE_STD)
    trunk = trunk.to(memory_format=torch.channels_last)
    for start in range(0, rows, batch):
        squares = []
        for row in range(start, min(start + batch, rows)):
            sample, picture = found[row // VIEWS]
            rng = np.random.default_rng(zlib.crc32(sample.key.encode())) if row % VIEWS else None
            square = view(Image.open(io.BytesIO(picture)), geometry.image_size, rng, mirrored=not sample.phrases)
            pixels[row] = np.asarray(square.resize((size, size), Image.Resampling.BICUBIC))
            squares.append(np.asarray(square))
        values = torch.from_numpy(preprocessing.normalise(np.stack(squares)))
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            vision = trunk(values.to(memory_format=torch.channels_last))
        features[start : start + len(squares)] = vision.float().numpy()
        if start // batch % 100 == 0:
            report(f"features: {start:,} of {rows:,}")
    features.flush()
    pixels.flush()
    done.write_text("".join(json.dumps(dataclasses.asdict(sample)) + "\n" for sample, _ in found))
    return build_cache(tars, folder, trunk, geometry, report)


def _sample_from_json(line: str) -> Sample:
    fields = json.loads(line)
    return Sample(**{name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()})
