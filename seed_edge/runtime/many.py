"""Captions of many image files: read ahead by some threads, encoded together, told one by one; a bad file stops nothing."""

from __future__ import annotations

import dataclasses
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

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
    begun: deque[Captioned] = deque()
    """Files that were opened and are not told of yet: with an error, or waiting for a caption."""

    with ThreadPoolExecutor(available_cores()) as pool:

        def opened() -> list[tuple[Path, Future[Image.Image]]]:
            return [(path, pool.submit(_small, edge, path, max_pixels)) for path in islice(remaining, TOGETHER)]

        def groups() -> Iterator[list[Image.Image]]:
            coming = opened()
            while coming:
                these, coming = coming, opened()
                images = []
                for path, image in these:
                    try:
                        images.append(image.result())
                        begun.append(Captioned(path, None))
                    except ImageError as error:
                        begun.append(Captioned(path, None, str(error)))
                if images:
                    yield images

        def failed() -> Iterator[Captioned]:
            while begun and begun[0].error is not None:
                yield begun.popleft()

        for caption in edge.captions_of_groups(groups(), temperature=temperature, seed=seed, beams=beams):
            yield from failed()
            yield dataclasses.replace(begun.popleft(), caption=caption)
        yield from failed()


def _small(edge: SeedEdge, path: Path, max_pixels: int) -> Image.Image:
    """A file's image, no larger than the encoder takes: many wait in memory."""
    return edge.bundle.manifest.preprocessing.square(open_image(path, max_pixels))
