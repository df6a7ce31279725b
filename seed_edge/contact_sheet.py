"""Contact sheets: several images of one size in rows and columns, as one image. No module of PyTorch is needed."""

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
"""Height of a line of text in pixels, lines of a text, and characters of a line on an image of 128 pixels."""
JPEG_QUALITY = 88


def columns_and_rows(count: int) -> tuple[int, int]:
    """Number of columns and rows of a sheet of `count` images that is as nearly square as possible."""
    columns = math.ceil(math.sqrt(count))
    return columns, math.ceil(count / columns)


def contact_sheet(images: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """Place images of one size side by side, row after row; places that stay empty are white.

    Args:
        images: at least one; all have the size of the first.
        columns: images per row; by default the sheet is as nearly square as possible.

    Raises:
        ValueError: there is no image, or images differ in size.
    """
    if not images:
        raise ValueError("a contact sheet needs at least one image")
    width, height = images[0].size
    if any(image.size != (width, height) for image in images):
        raise ValueError("the images of a contact sheet must have one size")
    columns = columns or columns_and_rows(len(images))[0]
    sheet = Image.new("RGB", (columns * width, -(-len(images) // columns) * height), "white")
    for number, image in enumerate(images):
        sheet.paste(image, (number % columns * width, number // columns * height))
    return sheet


def captioned(image: Image.Image, text: str) -> Image.Image:
    """An image with a white margin and up to `MAX_LINES` lines of `text` below it."""
    width, height = image.size
    cell = Image.new("RGB", (width + 2 * MARGIN, height + 2 * MARGIN + LINE_HEIGHT * MAX_LINES), "white")
    cell.paste(image, (MARGIN, MARGIN - 2))
    lines = textwrap.wrap(text, max(1, LINE_CHARACTERS * width // 128))[:MAX_LINES]
    ImageDraw.Draw(cell).multiline_text((MARGIN, MARGIN + height), "\n".join(lines), fill="black", spacing=1)
    return cell


def save_contact_sheet(path: Path, sheet: Image.Image) -> None:
    """Write a sheet as JPEG (`.jpg`) or PNG (any other name); folders are created, and the file appears when complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        sheet.save(partial, "JPEG" if path.suffix == ".jpg" else "PNG", quality=JPEG_QUALITY)
