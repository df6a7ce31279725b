"""Captions of many image files: read ahead by some threads, encoded together, told one by one; a bad file stops nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from seed_edge.errors import ImageError
from seed_edge.preprocess import MAX_PIXELS, open_image
from seed_edge.runtime.pipeline import SeedEdge
from seed_edge.runtime.threads import available_cores

ENDINGS = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"))
"""What is taken for an image in a folder."""
TOGETHER = 16
"""Images encoded at once."""


@dataclass(frozen=True)
class Captioned:
    """One file: its caption, or why it has none."""

    path: Path
    caption: str | None
    error: str | None = None


def images_in(folder: Path) -> Iterator[Path]:
    """Image files of a folder and those in it, in order; hidden ones and links to folders are passed over.

    Raises:
        ImageError: a folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise ImageError(f"{error.filename}: the folder cannot be read ({error.strerror})") from error

    for place, folders, files in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in ENDINGS:
                yield Path(place, name)


def caption_files(
    edge: SeedEdge,
    paths: Iterable[Path],
    *,
    temperature: float = 0.0,
    seed: int = 0,
    beams: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Captioned]:
    """Captions of files, in order; see `SeedEdge.caption`.

    Args:
        paths: may be endless; only some are opened ahead.
    """
    remaining = iter(paths)
    with ThreadPoolExecutor(available_cores()) as pool:

        def opened() -> list[tuple[Path, Future[Image.Image]]]:
            return [(path, pool.submit(_small, edge, path, max_pixels)) for path in islice(remaining, TOGETHER)]

        coming = opened()
        while coming:
            these, coming = coming, opened()
            yield from _captioned(edge, these, {"temperature": temperature, "seed": seed, "beams": beams})


def _small(edge: SeedEdge, path: Path, max_pixels: int) -> Image.Image:
    """A file's image, no larger than the encoder takes: many wait in memory."""
    return edge.bundle.manifest.preprocessing.square(open_image(path, max_pixels))


def _captioned(
    edge: SeedEdge, these: Sequence[tuple[Path, Future[Image.Image]]], options: dict[str, Any]
) -> Iterator[Captioned]:
    images, errors = [], {}
    for path, coming in these:
        try:
            images.append(coming.result())
        except ImageError as error:
            errors[path] = str(error)
    captions = iter(edge.captions(images, **options) if images else ())
    for path, _ in these:
        yield Captioned(path, None, errors[path]) if path in errors else Captioned(path, next(captions))
