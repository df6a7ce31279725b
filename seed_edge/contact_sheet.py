"""Contact sheets: several images of one size in rows and columns, as one image."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from seed_edge.atomic import replacing

MARGIN = 6
"""Space around an image with a text below it, in pixels."""
LINE_HEIGHT, MAX_LINES, LINE_CHARACTERS = 12, 3, 21
"""Height of a text line in pixels, maximum number of lines, characters per line on an image of 128 pixels."""
JPEG_QUALITY = 88


def columns_and_rows(count: int) -> tuple[int, int]:
    """Return the columns and rows of a sheet of `count` images that is as nearly square as possible."""
    columns = math.ceil(math.sqrt(count))
    return columns, math.ceil(count / columns)


class ImageGrid:
    """A contact sheet to which images of one size are added one by one; empty cells are white."""

    def __init__(self, count: int, columns: int | None = None) -> None:
        """
        Args:
            count: maximum number of images.
            columns: images per row; by default the sheet is as nearly square as possible.
        """
        self._count, self._columns, self._added = count, columns or columns_and_rows(count)[0], 0
        self._sheet: Image.Image | None = None
        self._size = (0, 0)

    def add(self, image: Image.Image) -> None:
        """Paste the next image.

        Raises:
            ValueError: its size differs from that of the first image.
        """
        if self._sheet is None:
            rows = -(-self._count // self._columns)
            self._size = image.size
            self._sheet = Image.new("RGB", (self._columns * image.width, rows * image.height), "white")
        if image.size != self._size:
            raise ValueError("the images of a contact sheet must have the same size")
        self._sheet.paste(image, self._position(self._added))
        self._added += 1

    def image(self) -> Image.Image:
        """Return the sheet. If fewer images than `count` were added, it is laid out for these images only.

        Raises:
            ValueError: no image was added.
        """
        if self._sheet is None:
            raise ValueError("a contact sheet needs at least one image")
        if self._added == self._count:
            return self._sheet
        smaller, (width, height) = ImageGrid(self._added), self._size
        for number in range(self._added):
            x, y = self._position(number)
            smaller.add(self._sheet.crop((x, y, x + width, y + height)))
        return smaller.image()

    def _position(self, number: int) -> tuple[int, int]:
        """Return the upper left corner of an image in pixels: (x, y)."""
        width, height = self._size
        return number % self._columns * width, number // self._columns * height


def contact_sheet(images: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """Return a contact sheet of images of one size; see `ImageGrid`.

    Raises:
        ValueError: there are no images, or they differ in size.
    """
    grid = ImageGrid(max(1, len(images)), columns)
    for image in images:
        grid.add(image)
    return grid.image()


def captioned(image: Image.Image, text: str) -> Image.Image:
    """Return an image with a white margin and up to `MAX_LINES` lines of `text` below it."""
    width, height = image.size
    cell = Image.new("RGB", (width + 2 * MARGIN, height + 2 * MARGIN + LINE_HEIGHT * MAX_LINES), "white")
    cell.paste(image, (MARGIN, MARGIN - 2))
    lines = textwrap.wrap(text, max(1, LINE_CHARACTERS * width // 128))[:MAX_LINES]
    ImageDraw.Draw(cell).multiline_text((MARGIN, MARGIN + height), "\n".join(lines), fill="black", spacing=1)
    return cell


def save_contact_sheet(path: Path, sheet: Image.Image) -> None:
    """Write a sheet as JPEG (`.jpg`) or PNG (any other ending). Folders are created; the file appears only
    when it is complete.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        sheet.save(partial, "JPEG" if path.suffix == ".jpg" else "PNG", quality=JPEG_QUALITY)
