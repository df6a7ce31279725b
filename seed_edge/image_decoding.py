"""Decodes opened image files: turned upright by their EXIF orientation, and corrected where Pillow misreads
TIFF and 16-bit PNG files. Frames and pages are counted without decoding.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageChops

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

ORIENTATION = 0x0112
PHOTOMETRIC = 262
WHITE_IS_ZERO, CIE_LAB, ICC_LAB = 0, 8, 9
"""Photometric interpretations of TIFF files."""
TRANSPOSE_BY_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The operation that turns the pixels upright, by EXIF orientation."""


def getexif_orientation_only(image: ImageFile) -> Image.Exif:
    """Replacement for Pillow's `getexif`: only the orientation, read without Pillow's warnings about other
    tags.
    """
    exif = Image.Exif()
    number = orientation(image)
    if number in TRANSPOSE_BY_ORIENTATION:
        exif[ORIENTATION] = number
    return exif


def decode_image(image: ImageFile) -> Image.Image:
    """Decode an opened image: upright, and with corrections where Pillow misreads the format."""
    make_transparent = _transparency_16_bit(image)
    image.load()
    corrected: Image.Image = image
    if image.format == "TIFF":
        corrected = _corrected_tiff(image)
    elif make_transparent is not None:
        corrected = make_transparent(image)
    # Pillow's TIFF reader turned the pixels upright while it loaded them
    method = None if image.format == "TIFF" else TRANSPOSE_BY_ORIENTATION.get(orientation(image))
    return corrected if method is None else corrected.transpose(method)


def _transparency_16_bit(image: ImageFile) -> Callable[[ImageFile], Image.Image] | None:
    """A function that makes the transparent colour of a 16-bit RGB PNG transparent; None for other images.

    Pillow keeps only the upper eight bits, which many colours share. The function decodes the lower bits too.
    """
    key, file = image.info.get("transparency"), image.fp
    if image.format != "PNG" or not isinstance(key, tuple) or not image.tile or image.tile[0][3] != "RGB;16B":
        return None

    def make_transparent(upper: ImageFile) -> Image.Image:
        assert file is not None
        file.seek(0)
        lower = type(upper)(file, "")
        lower.tile = [lower.tile[0]._replace(args="RGB;16L")]
        matches = Image.new("L", upper.size, 255)
        for value, bands in zip(key, zip(upper.split(), lower.split(), strict=True), strict=True):
            for byte, band in zip(divmod(value, 256), bands, strict=True):
                matches = ImageChops.darker(
                    matches, band.point([255 * (level == byte) for level in range(256)])
                )
        result = upper.convert("RGB")
        result.info.pop("transparency", None)
        result.putalpha(ImageChops.invert(matches))
        return result

    return make_transparent


def _corrected_tiff(image: Any) -> Image.Image:
    """A decoded TIFF image with two corrections: 16-bit grey where 0 is white is inverted, and the offset of
    a and b in ICC Lab is removed.
    """
    photometric = image.tag_v2.get(PHOTOMETRIC)
    if photometric == WHITE_IS_ZERO and image.mode.startswith("I;16"):
        return Image.fromarray(65535 - np.asarray(image))
    if photometric == ICC_LAB and image.mode == "LAB":
        signed = [level ^ 128 for level in range(256)]
        result: Image.Image = image.point([*range(256), *signed, *signed])
        return result
    return image  # type: ignore[no-any-return]


def orientation(image: Image.Image) -> int:
    """The EXIF orientation number, from EXIF or XMP; 1 for upright or unknown."""
    exif = image.info.get("exif") or _raw_profile(image.info.get("Raw profile type exif"))
    number = exif_orientation(exif) if isinstance(exif, bytes) else None
    if number is None and hasattr(image, "tag_v2"):
        number = image.tag_v2.get(ORIENTATION)
    if number is None:
        xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp") or ""
        text = xmp.decode("latin-1") if isinstance(xmp, bytes) else str(xmp)
        match = re.search(r'tiff:Orientation(?:="|>)([0-9])', text)
        number = int(match[1]) if match else None
    return number if isinstance(number, int) and number in TRANSPOSE_BY_ORIENTATION else 1


def _raw_profile(text: object) -> bytes | None:
    """EXIF data of ImageMagick's text chunk in a PNG file: three lines, then hexadecimal digits."""
    try:
        return bytes.fromhex("".join(text.split("\n")[3:])) if isinstance(text, str) else None
    except ValueError:
        return None


def exif_orientation(exif: bytes) -> int | None:
    """The orientation in EXIF data; None if it has none, or is damaged."""
    data = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 8:
        return None
    (start,) = struct.unpack_from(order + "I", data, 4)
    if start + 2 > len(data):
        return None
    (count,) = struct.unpack_from(order + "H", data, start)
    for offset in range(start + 2, min(start + 2 + 12 * count, len(data) - 11), 12):
        tag, kind, _, value = struct.unpack_from(order + "HHIH", data, offset)
        if tag == ORIENTATION and kind == 3:  # a short
            return int(value)
    return None


# ---- frames


def count_frames(image: ImageFile) -> int:
    """Number of frames or pages of an opened file, without decoding; damaged frames after the first are not
    counted.
    """
    assert image.fp is not None
    count = {"GIF": _count_gif_frames, "TIFF": _count_tiff_pages}.get(image.format or "")
    if count is None:
        return int(getattr(image, "n_frames", 1))
    position = image.fp.tell()
    try:
        return count(image.fp)
    finally:
        image.fp.seek(position)


def _count_gif_frames(file: IO[bytes]) -> int:
    file.seek(10)
    head = file.read(3)
    file.seek(_palette_size(head[0]), io.SEEK_CUR)
    frames = 0
    while (introducer := file.read(1)) in (b",", b"!"):
        if introducer == b",":
            frames += 1
            descriptor = file.read(9)
            if len(descriptor) < 9:
                break
            file.seek(_palette_size(descriptor[8]), io.SEEK_CUR)
        file.seek(1, io.SEEK_CUR)  # LZW minimum code size, or extension label
        while size := file.read(1)[:1]:
            if size == b"\0":
                break
            file.seek(size[0], io.SEEK_CUR)
    return max(1, frames)


def _palette_size(flags: int) -> int:
    """Size in bytes of a GIF colour table."""
    return 3 << (flags & 7) + 1 if flags & 128 else 0


def _count_tiff_pages(file: IO[bytes]) -> int:
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = head[2:4] in (b"+\0", b"\0+")
    count_format, entry_size, next_format = (
        (order + "Q", 20, order + "Q") if big else (order + "H", 12, order + "I")
    )
    (offset,) = struct.unpack_from(next_format, head, 8 if big else 4)
    seen: set[int] = set()
    while offset and offset not in seen and offset < 1 << 63:
        file.seek(offset)
        data = file.read(struct.calcsize(count_format))
        if len(data) < struct.calcsize(count_format):
            break
        seen.add(offset)
        file.seek(entry_size * struct.unpack(count_format, data)[0], io.SEEK_CUR)
        data = file.read(struct.calcsize(next_format))
        offset = struct.unpack(next_format, data)[0] if len(data) == struct.calcsize(next_format) else 0
    return max(1, len(seen))
