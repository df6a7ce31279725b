"""Pictures changed at random, with regard to how they are built, and read in every way a picture is read."""

from __future__ import annotations

import functools
import io
import random
import resource
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from odd_images import corpus, flag, saved
from PIL import Image

from seed_edge import native
from seed_edge.errors import ImageError
from seed_edge.image_files import can_read_format
from seed_edge.image_metadata import DrawnImage, Record, is_seed_edge_image, read_record, save_options
from seed_edge.preprocess import Preprocessing, open_image

MAX_PIXELS = 4_000_000
MEMORY = 1 << 30
"""Bytes of address space a process may use beyond what it starts with."""
LARGEST_SEED = 40_000
PREPROCESSING = Preprocessing(64, "bicubic", (0.5,) * 3, (0.5,) * 3)
NUMBERS = (0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)


TAGS = (254, 256, 257, 258, 259, 262, 273, 274, 277, 278, 279, 317, 322, 330, 338, 339, 700, 34675, 50706)
"""Of TIFF, those that decide how pixels are read."""


@functools.cache
def seeds() -> list[bytes]:
    """Valid and odd pictures of every format and mode that is read."""
    found = [data for data, _ in corpus().values() if len(data) < LARGEST_SEED]
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8))
    for kind in ("tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits", "jpeg", "lzma", "zstd"):
        found.append(saved(noise, "TIFF", compression=kind))
    for mode in ("1", "L", "LA", "P", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "I;16"):
        found.append(
            saved(noise.convert("L").convert("I;16") if mode == "I;16" else _as(noise, mode), "TIFF")
        )
    found += [saved(_as(noise, "1"), "TIFF", compression=kind) for kind in ("group3", "group4")]
    found += [saved(noise, "TIFF", big_tiff=True), saved(noise, "PNG", interlace=1)]
    record = Record("a fox", (DrawnImage(1, (1, 2, 3)),), "mini", "0" * 64, temperature=0.5)
    found += [saved(noise, kind, **save_options(kind, record, noise)) for kind in ("PNG", "JPEG", "WEBP")]
    if can_read_format("AVIF"):
        found += [saved(flag(), "AVIF"), saved(_as(noise, "RGBA"), "AVIF")]
    if can_read_format("HEIC"):
        import pillow_heif

        buffer = io.BytesIO()
        pillow_heif.from_pillow(flag().resize((64, 64))).save(buffer)
        found.append(buffer.getvalue())
    return found


def _as(image: Image.Image, mode: str) -> Image.Image:
    if mode == "LAB":
        from PIL import ImageCms

        lab = ImageCms.profileToProfile(
            image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
        assert lab is not None
        return lab
    return image.convert(mode)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A picture changed in one to three places: anywhere, or where its format has lengths, kinds and numbers."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        how: list[Callable[[bytearray, random.Random], None]] = [_flip, _number, _cut, _double]
        if changed.startswith(b"\x89PNG"):
            how += [_png] * 6
        elif changed[:2] in (b"II", b"MM"):
            how += [_tiff] * 6
        elif changed.startswith(b"\xff\xd8"):
            how += [_jpeg] * 4
        elif changed.startswith(b"RIFF"):
            how += [_riff] * 3
        else:
            how += [_early] * 3
        if changed:
            rng.choice(how)(changed, rng)
    return bytes(changed[: 4 * LARGEST_SEED])


def _flip(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] = rng.choice((rng.randrange(256), 0, 255))


def _early(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(min(64, len(data)))] = rng.randrange(256)


def _number(data: bytearray, rng: random.Random) -> None:
    at, form = rng.randrange(len(data)), rng.choice(("<H", ">H", "<I", ">I"))
    number = struct.pack(form, rng.choice(NUMBERS) & (0xFFFF if form[1] == "H" else 0xFFFFFFFF))
    data[at : at + len(number)] = number


def _cut(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    if rng.random() < 0.3:
        del data[at:]
    else:
        del data[at : at + rng.randint(1, 40)]


def _double(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    data[at:at] = data[at : at + rng.randint(1, 60)] * rng.randint(1, 4)


def _png(data: bytearray, rng: random.Random) -> None:
    """Change a chunk: its content, its kind, its place, whether it is there; sums are right afterwards."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        chunks.append([bytes(data[at + 4 : at + 8]), bytearray(data[at + 8 : at + 8 + size])])
        at += 12 + size
    if not chunks:
        return
    chunk = rng.choice(chunks)
    choice = rng.randrange(6)
    if choice == 0 and chunk[1]:
        (_number if rng.random() < 0.5 else _flip)(chunk[1], rng)
    elif choice == 1:
        chunk[0] = rng.choice(
            (
                b"acTL",
                b"fcTL",
                b"fdAT",
                b"tRNS",
                b"PLTE",
                b"iCCP",
                b"eXIf",
                b"gAMA",
                b"cHRM",
                b"sRGB",
                b"iTXt",
            )
        )
    elif choice == 2:
        chunks.insert(rng.randrange(len(chunks)), [chunk[0], bytearray(chunk[1])])
    elif choice == 3:
        chunks.remove(chunk)
    elif choice == 4:
        chunk[1] = bytearray(rng.randbytes(rng.randint(0, 40)))
    elif chunks[0][0] == b"IHDR" and len(chunks[0][1]) == 13:
        chunks[0][1][8:] = bytes(
            (rng.choice((1, 2, 4, 8, 16)), rng.choice((0, 2, 3, 4, 6)), 0, 0, rng.randint(0, 1))
        )
    made = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks]
    data[8:] = b"".join(made)


def _tiff(data: bytearray, rng: random.Random) -> None:
    """Change an entry of the first directory: its tag, type, count or value."""
    order = "<" if data[:2] == b"II" else ">"
    if len(data) < 8:
        return
    (at,) = struct.unpack_from(order + "I", data, 4)
    if at + 2 > len(data):
        return
    (count,) = struct.unpack_from(order + "H", data, at)
    entry = at + 2 + 12 * rng.randrange(max(1, min(count, 40)))
    if entry + 12 > len(data):
        return
    choice = rng.randrange(4)
    if choice == 0:
        struct.pack_into(order + "H", data, entry, rng.choice(TAGS))
    elif choice == 1:
        struct.pack_into(order + "H", data, entry + 2, rng.randrange(20))
    elif choice == 2:
        struct.pack_into(order + "I", data, entry + 4, rng.choice(NUMBERS))
    elif rng.random() < 0.5:
        struct.pack_into(order + "I", data, entry + 8, rng.choice(NUMBERS))
    else:
        struct.pack_into(order + "H", data, entry + 8, rng.choice(NUMBERS) & 0xFFFF)


def _jpeg(data: bytearray, rng: random.Random) -> None:
    """Change a byte of a segment's kind, length or beginning."""
    marks = [
        at for at in range(2, min(len(data) - 1, 4000)) if data[at] == 255 and data[at + 1] not in (0, 255)
    ]
    if marks:
        at = rng.choice(marks) + rng.randint(1, 12)
        if at < len(data):
            data[at] = rng.randrange(256)


def _riff(data: bytearray, rng: random.Random) -> None:
    """Change a chunk's name, length or beginning."""
    at, places = 12, []
    while at + 8 <= len(data):
        places.append(at)
        at += 8 + struct.unpack_from("<I", data, at + 4)[0]
    if places:
        at = rng.choice(places) + rng.randrange(20)
        if at < len(data):
            data[at] = rng.randrange(256)


def prepare() -> None:
    """Bound this process as a careful user would, and own it as the command line does."""
    native.configure_cli_process()
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))


def check(data: bytes, folder: Path) -> bool:
    """Read a file in every way a picture is read; whether it could be.

    Raises:
        Exception: anything but one line that names the file.
    """
    path = folder / "picture"
    path.write_bytes(data)
    is_seed_edge_image(path)
    _refused(read_record, path)
    return not _refused(lambda path: PREPROCESSING.views(open_image(path, MAX_PIXELS), 4), path)


def _refused(read: Callable[[Path], object], path: Path) -> bool:
    try:
        read(path)
    except ImageError as error:
        if not str(error).isprintable() or path.name not in str(error):
            raise AssertionError(f"not one line that names the file: {error!s}") from error
        return True
    return False
