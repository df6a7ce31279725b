"""Images that only the decoder is trained on: their pixels and codes, computed once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from seed_edge.atomic import replacing
from seed_edge.data.samples import Picture, Sample, load_picture, read_samples
from seed_edge.errors import DataError
from seed_edge.models.efficientnet import preprocessing_of
from seed_edge.models.image_tokenizer import PixelTokenizer
from seed_edge.train.pixel.feature_cache import require_disk_space, view
from seed_edge.train.trainer import Report

EXTRA_FOLDER = "more-{:08x}"
"""Folder within a run, named by the checksum of the codebook that the codes belong to."""
PIXELS_FILE, CODES_FILE, KEYS_FILE = "pixels.npy", "codes.npy", "keys.txt"
BATCH = 32


@dataclass(frozen=True)
class ExtraImages:
    """Images that only the decoder is trained on."""

    samples: list[Sample]
    pixels: NDArray[np.uint8]
    """(samples, output_size, output_size, 3)."""
    codes: NDArray[np.int64]
    """(samples, codes_per_image)."""


def extra_images(
    model: PixelTokenizer, paths: Sequence[Path], folder: Path, report: Report, images: Path | None = None
) -> ExtraImages:
    """Compute pixels and codes of the images of `paths`; a finished `folder` is opened instead.

    Raises:
        DataError: data cannot be read, or the folder was made from other data.
        ImageError: an image cannot be read.
    """
    samples = list(read_samples(paths, images))
    invalid = next((sample.key for sample, pictures in samples if len(pictures) != 1), None)
    if invalid is not None:
        raise DataError(f"{invalid} has no image or invalid; a decoder is trained on single images")
    keys = [sample.key for sample, _ in samples]
    if not (folder / KEYS_FILE).exists():
        _compute(model, samples, folder, report)
    elif (folder / KEYS_FILE).read_text("utf-8").splitlines() != keys:
        raise DataError(
            f"{folder} was made from other images than --decoder-data has now; remove it, or give the same"
        )
    pixels, codes = np.load(folder / PIXELS_FILE, mmap_mode="r"), np.load(folder / CODES_FILE)
    return ExtraImages([sample for sample, _ in samples], pixels, codes)


def _compute(
    model: PixelTokenizer, samples: Sequence[tuple[Sample, tuple[Picture, ...]]], folder: Path, report: Report
) -> None:
    geometry, preprocessing = model.geometry, preprocessing_of(model.geometry)
    size = geometry.output_size
    shape = (len(samples), size, size, 3)
    require_disk_space(folder, math.prod(shape), "the extra images")
    pixels = np.lib.format.open_memmap(folder / PIXELS_FILE, "w+", np.uint8, shape)
    codes = np.empty((len(samples), geometry.num_queries), np.int64)
    for start in range(0, len(samples), BATCH):
        chunk = samples[start : start + BATCH]
        squares = [view(load_picture(picture), geometry.image_size, None) for _, (picture,) in chunk]
        targets = [square.resize((size, size), Image.Resampling.BICUBIC) for square in squares]
        pixels[start : start + len(chunk)] = np.stack([np.asarray(target) for target in targets])
        with torch.inference_mode():
            codes[start : start + len(chunk)] = model.encode(torch.from_numpy(preprocessing(squares))).numpy()
        if start // BATCH % 100 == 0:
            report(f"extra images: {start:,} of {len(samples):,}")
    pixels.flush()
    with replacing(folder / CODES_FILE) as partial, open(partial, "wb") as file:
        np.save(file, codes)
    with replacing(folder / KEYS_FILE) as partial:
        partial.write_text("".join(f"{sample.key}\n" for sample, _ in samples), "utf-8")
