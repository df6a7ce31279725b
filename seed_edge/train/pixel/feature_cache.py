"""Trunk features of all training images, computed once: the trunk is frozen, and running it takes most of the
time.

Each sample has two views: view 0 is preprocessed as in the runtime; view 1 is augmented with random crops,
shifts, rotations, colour changes and mirroring.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from math import prod
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from seed_edge.atomic import replacing
from seed_edge.data.samples import MAX_FILE_BYTES, Picture, Sample, load_picture, read_samples
from seed_edge.errors import DataError
from seed_edge.inputs import parse_json, read_text
from seed_edge.memory import available_memory
from seed_edge.models.config import PixelGeometry
from seed_edge.models.efficientnet import EfficientNetLite, preprocessing_of
from seed_edge.models.fields import Fields
from seed_edge.models.memory_layout import channels_last
from seed_edge.preprocess import to_rgb

VIEWS = 2
"""Rows of each sample in the cache."""
CACHE_FOLDER = "cache"
"""Folder within a run: trunk features and pixels of its images."""
SAMPLES_FILE, FEATURES_FILE, PIXELS_FILE = "samples.jsonl", "features.f16", "pixels.u8"


def view(
    image: Image.Image, size: int, rng: np.random.Generator | None, mirrored: bool = True
) -> Image.Image:
    """Return the image as a square RGB image of `size` pixels; with `rng`, an augmented view of it.

    Args:
        mirrored: whether a random view may be mirrored.
    """
    if rng is None:
        return to_rgb(image).resize((size, size), Image.Resampling.BILINEAR)
    mirrored = mirrored and rng.random() < 0.4
    if image.has_transparency_data:  # a drawing: scaled, shifted, rotated, sometimes on a pale colour
        side = int(size * rng.uniform(0.6, 1.0))
        drawing = image.convert("RGBA").resize((side, side), Image.Resampling.BILINEAR)
        if mirrored:
            drawing = ImageOps.mirror(drawing)
        if rng.random() < 0.4:
            drawing = drawing.rotate(rng.uniform(-15, 15), Image.Resampling.BILINEAR)
        background = (
            (255, 255, 255) if rng.random() < 0.5 else tuple(int(c) for c in rng.integers(150, 256, 3))
        )
        canvas = Image.new("RGB", (size, size), background)
        x, y = (int(v) for v in rng.integers(0, size - side + 1, 2))
        canvas.paste(drawing, (x, y), drawing)
        return _jitter_colours(canvas, rng)
    rgb = to_rgb(image)
    width, height = rgb.size
    w, h = (int(n * rng.uniform(0.75, 1.0)) for n in (width, height))
    x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
    rgb = rgb.crop((x, y, x + w, y + h)).resize((size, size), Image.Resampling.BILINEAR)
    return _jitter_colours(ImageOps.mirror(rgb) if mirrored else rgb, rng)


def _jitter_colours(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Change brightness, contrast and colour of half of the images at random."""
    if rng.random() < 0.5:
        return image
    for kind in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = kind(image).enhance(rng.uniform(0.75, 1.25))
    return image


@dataclasses.dataclass
class Cache:
    """Trunk features and target pixels of all samples."""

    samples: list[Sample]
    features: NDArray[np.float16]
    """(samples * VIEWS, tokens, vit_width); rows of one sample are adjacent, view 0 first."""
    pixels: NDArray[np.uint8]
    """(samples * VIEWS, output_size, output_size, 3)."""

    def rows(self, held_out: bool) -> NDArray[np.int64]:
        """Return the row numbers of view 0 of the samples that are, or are not, held out."""
        return np.array([i * VIEWS for i, s in enumerate(self.samples) if s.held_out == held_out])


def build_cache(
    paths: Sequence[Path],
    folder: Path,
    trunk: EfficientNetLite,
    geometry: PixelGeometry,
    report: Callable[[str], None],
    images: Path | None = None,
    batch: int = 32,
) -> Cache:
    """Run the trunk over every image once; a finished cache in `folder` is opened instead.

    Raises:
        DataError: data cannot be read, or the disk has too little free space.
        ImageError: an image cannot be read.
    """
    if not (folder / SAMPLES_FILE).exists():
        _fill_cache(list(read_samples(paths, images)), folder, trunk, geometry, report, batch)
    return open_cache(folder, geometry)


def open_cache(folder: Path, geometry: PixelGeometry) -> Cache:
    """Open a finished cache.

    Raises:
        DataError: `folder` has no finished cache.
    """
    if not (folder / SAMPLES_FILE).exists():
        raise DataError(f"{folder} contains no finished features; `seed-edge train tokenizer` computes them")
    samples = [
        _parse_sample(f"{folder / SAMPLES_FILE}: line {number}", line)
        for number, line in _lines(folder / SAMPLES_FILE)
    ]
    features, pixels = _shapes(len(samples), geometry)
    return Cache(
        samples,
        _open_array(folder / FEATURES_FILE, np.float16, features),
        _open_array(folder / PIXELS_FILE, np.uint8, pixels),
    )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text file with their numbers."""
    yield from enumerate(filter(None, read_text(path, MAX_FILE_BYTES, DataError).split("\n")), 1)


def _parse_sample(where: str, line: str) -> Sample:
    record = dict(Fields.of(parse_json(line, where, DataError), where, DataError).values)
    key = record.pop("key", None)
    if not isinstance(key, str):
        raise DataError(f"{where}: key is missing; remove the folder and start again")
    return Sample.from_saved(key, record)


def require_disk_space(folder: Path, needed: int, what: str) -> None:
    """Create a folder for memory-mapped files; on a full disk these would crash the process.

    Raises:
        DataError: fewer than `needed` bytes are free there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"{folder}: {what} need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; choose another "
            "--output"
        )


def _shapes(samples: int, geometry: PixelGeometry) -> tuple[tuple[int, ...], tuple[int, ...]]:
    rows, tokens, size = samples * VIEWS, (geometry.image_size // 32) ** 2, geometry.output_size
    return (rows, tokens, geometry.vit_width), (rows, size, size, 3)


def _open_array(path: Path, kind: type[np.generic], shape: tuple[int, ...]) -> NDArray:
    """Open the array of a file, in memory if it fits, since random access to a memory-mapped file can be
    slow.
    """
    if prod(shape) * np.dtype(kind).itemsize > path.stat().st_size:
        raise DataError(f"{path} is shorter than its samples need; remove {path.parent} and start again")
    if path.stat().st_size > 0.7 * (available_memory() or 0):
        return np.memmap(path, kind, "r", shape=shape)
    return np.fromfile(path, kind, prod(shape)).reshape(shape)


def _fill_cache(
    samples: Sequence[tuple[Sample, tuple[Picture, ...]]],
    folder: Path,
    trunk: EfficientNetLite,
    geometry: PixelGeometry,
    report: Callable[[str], None],
    batch: int,
) -> None:
    invalid = next((sample.key for sample, pictures in samples if len(pictures) != 1), None)
    if invalid is not None:
        raise DataError(f"{invalid} has no image or several; an image tokenizer is trained on single images")
    shapes = _shapes(len(samples), geometry)
    require_disk_space(folder, 2 * prod(shapes[0]) + prod(shapes[1]), "features")
    features = np.memmap(folder / FEATURES_FILE, np.float16, "w+", shape=shapes[0])
    pixels = np.memmap(folder / PIXELS_FILE, np.uint8, "w+", shape=shapes[1])
    preprocessing = preprocessing_of(geometry)
    trunk = channels_last(trunk)
    rows, size = len(pixels), geometry.output_size
    for start in range(0, rows, batch):
        squares = []
        for row in range(start, min(start + batch, rows)):
            sample, (picture,) = samples[row // VIEWS]
            rng = np.random.default_rng(zlib.crc32(sample.key.encode())) if row % VIEWS else None
            square = view(load_picture(picture), geometry.image_size, rng, mirrored=not sample.phrases)
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
    with replacing(folder / SAMPLES_FILE) as partial:
        lines = (json.dumps({"key": sample.key} | sample.to_record()) for sample, _ in samples)
        partial.write_text("".join(line + "\n" for line in lines), "utf-8")
