"""Captions of many image files: threads read files ahead, images are encoded in batches, bad files are
skipped.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from PIL import Image

from seed_edge.errors import ImageError
from seed_edge.image_files import MAX_PIXELS
from seed_edge.image_formats import IMAGE_EXTENSIONS
from seed_edge.inputs import special_file_type
from seed_edge.preprocess import open_image
from seed_edge.runtime.pipeline import SeedEdge
from seed_edge.runtime.threads import available_cores

LINKS, NO_ENDING = "links to folders", "no ending"
"""Keys of skipped files that are not counted by their extension."""
BATCH_SIZE = 16
"""Number of images that are encoded together."""


@dataclass(frozen=True)
class Captioned:
    """The result of one file: its caption or the error."""

    path: Path
    caption: str | None
    error: str | None = None


def find_images(folder: Path, failed: list[tuple[Path, str]], skipped: Counter[str]) -> Iterator[Path]:
    """Image files of a folder and its subfolders, in order; hidden files and links to folders are skipped.

    Args:
        failed: receives folders that cannot be read and images that are not regular files, with the reason.
        skipped: receives the number of files without an image extension, by extension, and of links to
            folders.
    """

    def fail(error: OSError) -> None:
        failed.append(
            (Path(error.filename), f"{error.filename}: the folder cannot be read ({error.strerror})")
        )

    for parent, folders, files in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        skipped[LINKS] += sum(os.path.islink(os.path.join(parent, name)) for name in folders)
        for name in sorted(files):
            path = Path(parent, name)
            if name.startswith("."):
                continue
            if path.suffix.lower() not in IMAGE_EXTENSIONS:
                skipped[path.suffix.lower() or NO_ENDING] += 1
            elif kind := special_file_type(path):
                failed.append((path, f"{path}: {kind}, not a regular file"))
            else:
                yield path


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
        paths: may be infinite; only some files are opened ahead.
    """
    remaining = iter(paths)
    pending: deque[Captioned] = deque()
    """Files that were opened but not yet yielded: with an error, or still without a caption."""

    with ThreadPoolExecutor(available_cores()) as pool:

        def opened() -> list[tuple[Path, Future[Image.Image]]]:
            return [
                (path, pool.submit(_small, edge, path, max_pixels)) for path in islice(remaining, BATCH_SIZE)
            ]

        def groups() -> Iterator[list[Image.Image]]:
            upcoming = opened()
            while upcoming:
                current, upcoming = upcoming, opened()
                images = []
                for path, image in current:
                    try:
                        images.append(image.result())
                        pending.append(Captioned(path, None))
                    except ImageError as error:
                        pending.append(Captioned(path, None, str(error)))
                if images:
                    yield images

        def failed() -> Iterator[Captioned]:
            while pending and pending[0].error is not None:
                yield pending.popleft()

        for caption in edge.captions_of_groups(groups(), temperature=temperature, seed=seed, beams=beams):
            yield from failed()
            yield dataclasses.replace(pending.popleft(), caption=caption)
        yield from failed()


def _small(edge: SeedEdge, path: Path, max_pixels: int) -> Image.Image:
    """The image of a file, reduced to the encoder's input size to save memory."""
    return edge.bundle.manifest.preprocessing.square(open_image(path, max_pixels))
