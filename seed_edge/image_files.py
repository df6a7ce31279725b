"""Reads untrusted image files: the format is detected by content, Pillow's readers open it, and errors become
one line.

No process-wide setting of Pillow or `warnings` is read or changed, so that a host program may set them and
threads may read in parallel.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import logging
import os
import re
import struct
import sys
import types
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageChops

from seed_edge import native
from seed_edge.display import printable
from seed_edge.errors import ImageError, SeedEdgeError
from seed_edge.inputs import open_regular

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

log = logging.getLogger("seed_edge")

IMAGE_ENDINGS_BY_FORMAT = {
    "JPEG": ".jpg .jpeg .jpe .jfif .jif .mpo",
    "PNG": ".png .apng",
    "WebP": ".webp",
    "GIF": ".gif",
    "BMP": ".bmp .dib",
    "TIFF": ".tif .tiff",
    "HEIC": ".heic .heics .heif .heifs .hif",
    "AVIF": ".avif .avifs",
    "others": ".jxl .jp2 .j2k .jpf .jpx .jxr .wdp .psd .psb .svg .svgz .tga .ico .exr .hdr .qoi .ppm "
    ".pgm .pbm .pnm",
    "RAW": ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .iiq .kdc .mef .mos .mrw .nef .nrw"
    " .orf .pef .raf .raw .rw2 .rwl .sr2 .srw .x3f",
}
"""Lower-case endings of image files, by format. The last two rows cannot be read; such files
raise an error.
"""
IMAGE_ENDINGS = frozenset(ending for row in IMAGE_ENDINGS_BY_FORMAT.values() for ending in row.split())
"""Lower-case endings, with the dot, of files in a folder that are opened as images. The content decides the
format.
"""

MAX_PIXELS = 200_000_000
"""Default limit on width x height, checked in the header before anything is decoded."""
MAX_STREAM = 1 << 30
"""Maximum number of bytes read from a file object that cannot seek."""
HEAD = 1024
"""Number of bytes by which the format is detected."""
MAX_REASON = 200

READERS = {
    "JPEG": ("PIL.JpegImagePlugin", "JpegImageFile"),  # of a Multi-Picture file the first, which is the photo
    "PNG": ("PIL.PngImagePlugin", "PngImageFile"),
    "WEBP": ("PIL.WebPImagePlugin", "WebPImageFile"),
    "GIF": ("PIL.GifImagePlugin", "GifImageFile"),
    "BMP": ("PIL.BmpImagePlugin", "BmpImageFile"),
    "TIFF": ("PIL.TiffImagePlugin", "TiffImageFile"),
    "AVIF": ("PIL.AvifImagePlugin", "AvifImageFile"),
    "HEIC": ("pillow_heif", "HeifImageFile"),
}
"""Module and class that read a format; the last two are there in some installations only."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats that every installation reads; Pillow's other readers are never reached."""
MISSING = {
    "HEIC": 'HEIC is read with a plug-in only: pip install "seed-edge[heif]"',
    "AVIF": "AVIF is not read by the Pillow that is installed: pip install --upgrade pillow",
}

SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8\xff\xf7", "JPEG-LS"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG", "PNG"),
    (8, b"WEBP", "WEBP"),
    (0, b"GIF87a", "GIF"),
    (0, b"GIF89a", "GIF"),
    (0, b"BM", "BMP"),
    (8, b"CR\x02", "a camera's RAW (Canon CR2)"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (0, b"IIRO", "a camera's RAW (Olympus ORF)"),
    (0, b"IIRS", "a camera's RAW (Olympus ORF)"),
    (0, b"MMOR", "a camera's RAW (Olympus ORF)"),
    (0, b"IIU\0", "a camera's RAW (Panasonic RW2)"),
    (6, b"HEAPCCDR", "a camera's RAW (Canon CRW)"),
    (0, b"FUJIFILMCCD-RAW", "a camera's RAW (Fujifilm RAF)"),
    (0, b"FOVb", "a camera's RAW (Sigma X3F)"),
    (0, b"\0MRM", "a camera's RAW (Minolta MRW)"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL \r\n\x87\n", "JPEG XL"),
    (4, b"jP  \r\n\x87\n", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"II\xbc", "JPEG XR"),
    (0, b"8BPS", "a Photoshop document (PSD)"),
    (0, b"gimp xcf", "a GIMP document (XCF)"),
    (0, b"%PDF-", "a PDF document"),
    (0, b"%!PS", "a PostScript document"),
    (0, b"\xc5\xd0\xd3\xc6", "a PostScript document"),
    (0, b"\0\0\1\0", "an icon (ICO)"),
    (0, b"\0\0\2\0", "a cursor (CUR)"),
    (0, b"icns", "an icon (ICNS)"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"#?RGBE", "Radiance HDR"),
    (0, b"qoif", "QOI"),
    (0, b"BPG\xfb", "BPG"),
    (0, b"FLIF", "FLIF"),
    (0, b"DDS ", "a texture (DDS)"),
    (0, b"AT&TFORM", "DjVu"),
    (0, b"\xd7\xcd\xc6\x9a", "a Windows metafile (WMF)"),
    (40, b" EMF", "a Windows metafile (EMF)"),
    (128, b"DICM", "a medical image (DICOM)"),
    (4, b"moov", "a video (QuickTime)"),
    (4, b"mdat", "a video (QuickTime)"),
    (0, b"\x1aE\xdf\xa3", "a video (Matroska or WebM)"),
    (8, b"AVI ", "a video (AVI)"),
    (8, b"WAVE", "a sound (WAV)"),
    (0, b"\0\0\1\xba", "a video (MPEG)"),
    (0, b"\0\0\1\xb3", "a video (MPEG)"),
    (0, b"FLV\1", "a video (Flash)"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a video (Windows Media)"),
    (0, b"OggS", "a video or sound (Ogg)"),
    (0, b"ID3", "a sound (MP3)"),
    (0, b"fLaC", "a sound (FLAC)"),
    (0, b"PK\x03\x04", "a ZIP archive or an office document"),
    (0, b"\x1f\x8b", "a file packed by gzip (SVGZ, or an archive)"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (0, b"Rar!", "a RAR archive"),
    (0, b"\xd0\xcf\x11\xe0", "an office document"),
    (0, b"version https://git-lfs", "a pointer of Git LFS in place of the picture (run `git lfs pull`)"),
    (0, b"SQLite format 3", "a database"),
)
"""Offset, bytes and name of formats; a name in `READERS` is a format that may be read."""
BRANDS = {
    "HEIC": b"heic heix heim heis hevc hevx hevm hevs",
    "AVIF": b"avif avis",
    "a camera's RAW (Canon CR3)": b"crx ",
}
"""Brands of files made of boxes, by what they say. Other brands but those of `OPEN_BRANDS` are videos."""
OPEN_BRANDS = (b"mif1", b"msf1", b"miaf")
"""Brands that any picture format made of boxes may have; the compatible brands tell which."""
TEXTS = (
    (re.compile(rb"\A(?:<!doctype html|<html\b)", re.I), "a web page (HTML)"),
    (re.compile(rb"<svg\b", re.I), "a vector drawing (SVG)"),
    (re.compile(rb"\AP[1-7]\s"), "a portable pixmap (PPM, PGM, PBM or PAM)"),
    (re.compile(rb"\A<\?xml"), "an XML document"),
)

RAISED = (
    OSError,  # with Pillow's UnidentifiedImageError
    SyntaxError,
    ValueError,  # with UnicodeError
    EOFError,
    TypeError,
    LookupError,  # IndexError, KeyError
    ArithmeticError,  # OverflowError, ZeroDivisionError
    AttributeError,
    AssertionError,
    BufferError,
    RuntimeError,  # pillow_heif's, RecursionError, NotImplementedError
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Warning,  # where the host program turns warnings into errors
)
"""What Pillow and its plug-ins are known to raise on files that are damaged."""

ORIENTATION = 0x0112
SENSOR_FILE = "a camera's RAW (DNG, NEF, ARW or a similar format)"
DNG_VERSION, SUB_FILE, SUB_IMAGES, PHOTOMETRIC = 50706, 254, 330, 262
WHITE_IS_ZERO, CIE_LAB, ICC_LAB = 0, 8, 9
SENSOR = (32803, 34892)
"""Photometric interpretations of pixels as a camera's sensor saw them."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF orientation, what turns the pixels upright."""


class _TooLargeError(Exception):
    """A size over the limit, seen by Pillow's reader while it opens or decodes."""

    def __init__(self, width: int, height: int) -> None:
        super().__init__(width, height)
        self.width, self.height = width, height


# ---- what a file is


def format_of(head: bytes) -> str:
    """A key of `READERS`, or the name of a format that is not read, or an empty text for what is not known.

    Args:
        head: the first `HEAD` bytes of a file, or fewer.
    """
    if head[4:8] == b"ftyp":
        return _of_boxes(head)
    for at, magic, name in SIGNATURES:
        if head.startswith(magic, at):
            return name
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    return next((name for pattern, name in TEXTS if pattern.search(text)), "")


def _of_boxes(head: bytes) -> str:
    length = min(int.from_bytes(head[:4]), len(head))
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, length - 3, 4))]
    if brands[0] in OPEN_BRANDS:
        brands = [brand for brand in brands if brand not in OPEN_BRANDS] or brands
    for name, known in BRANDS.items():
        if brands[0] in known.split(b" ") or brands[0] == known:
            return name
    named = [name for name in ("AVIF", "HEIC") if any(brand in BRANDS[name].split() for brand in brands)]
    if named and head[8:12] in OPEN_BRANDS:
        return named[0]
    return "HEIC" if head[8:12] in OPEN_BRANDS else "a video, or another file made of boxes"


def refusal(kind: str, head: bytes) -> str:
    """Why a file that is not read is refused, and what to do.

    Args:
        kind: what `format_of` gave.
    """
    if kind in MISSING:
        return f"{MISSING[kind]}; or convert it to PNG or JPEG"
    if kind:
        return f"{kind}, not an image this program reads; convert it to PNG or JPEG"
    empty = "" if head else "; the file is empty"
    return f"not an image this program reads ({', '.join(FORMATS)}){empty}"


# ---- opening


def name_of(source: object) -> str:
    """The name of a path or a file object in messages."""
    named = source if isinstance(source, str | os.PathLike) else getattr(source, "name", None)
    return printable(os.fsdecode(named)) if isinstance(named, str | bytes | os.PathLike) else "image"


@contextlib.contextmanager
def opened(
    source: str | os.PathLike[str] | IO[bytes], max_pixels: int = MAX_PIXELS, name: str | None = None
) -> Iterator[ImageFile]:
    """Open an image file and read its header. Any exception of Pillow in the block becomes an `ImageError` of
    one line.

    Args:
        source: a path of a regular file, or a binary file object, which may be one that cannot seek.
        max_pixels: refuse images of more than this many pixels.
        name: what messages call it; by default its path, or the `name` of a file object.

    Raises:
        ImageError: no such file, not a regular one, not an image, damaged, or too large.
    """
    name = name_of(source) if name is None else printable(name)
    with contextlib.ExitStack() as stack, told(name, max_pixels):
        if isinstance(source, str | os.PathLike):
            file = stack.enter_context(open_regular(Path(source), ImageError))
        else:
            file = _seekable(source, name)
        head = file.read(HEAD)
        kind = format_of(head)
        reader = _reader(kind, max_pixels)
        if reader is None:
            raise ImageError(f"{name}: {refusal(kind, head)}")
        file.seek(0)
        image = reader(file, "")
        if image.width * image.height > max_pixels:
            raise _TooLargeError(*image.size)
        if kind == "TIFF" and _of_a_sensor(image.tag_v2):
            raise ImageError(f"{name}: {refusal(SENSOR_FILE, head)}")
        yield image


@contextlib.contextmanager
def told(name: str, max_pixels: int) -> Iterator[None]:
    """Turn any exception in the block into an `ImageError` of one line. KeyboardInterrupt is not caught.

    Args:
        name: of the file, printable.
    """
    try:
        yield
    except SeedEdgeError:
        raise
    except _TooLargeError as error:
        raise ImageError(
            f"{name}: {error.width} x {error.height} is {error.width * error.height:,} pixels, over the "
            "limit of "
            f"{max_pixels:,}; make it smaller, or raise --max-pixels"
        ) from None
    except MemoryError as error:
        raise ImageError(
            f"{name}: the image is damaged or cannot be read (it takes more memory than there is)"
        ) from error
    except RAISED as error:
        raise ImageError(f"{name}: the image is damaged or cannot be read ({_reason(error)})") from error
    except (
        Exception
    ) as error:  # a decoder's: whatever it is, the file is to blame, and the others are to go on
        said = f"{type(error).__name__}: {_reason(error)}"
        raise ImageError(f"{name}: the image is damaged or cannot be read ({said})") from error


def _reason(error: Exception) -> str:
    said = printable(str(error))[:MAX_REASON]
    plain = isinstance(error, OSError | SyntaxError | ValueError | EOFError) and said
    return said if plain else f"{type(error).__name__}: {said}" if said else type(error).__name__


def _seekable(file: IO[bytes], name: str) -> IO[bytes]:
    """The file object at its beginning; one that cannot seek is read into memory."""
    with contextlib.suppress(AttributeError, OSError):  # io.UnsupportedOperation is an OSError
        file.seek(0)
        return file
    parts, size = [], 0
    while data := file.read(1 << 20):
        parts.append(data)
        size += len(data)
        if size > MAX_STREAM:
            raise ImageError(
                f"{name}: over {MAX_STREAM:,} bytes, the limit for what cannot seek; save it as a file"
            )
    return io.BytesIO(b"".join(parts))


def _of_a_sensor(tags: Any) -> bool:
    """Whether the first image of a TIFF file is raw data of a camera sensor, or a thumbnail of it."""
    if DNG_VERSION in tags or tags.get(PHOTOMETRIC) in SENSOR:
        return True
    small = tags.get(SUB_FILE)
    return isinstance(small, int) and bool(small & 1) and SUB_IMAGES in tags


# ---- Pillow's readers, apart from Pillow's switches


def readable(kind: str) -> bool:
    """Whether this installation reads a format."""
    return _reader(kind, MAX_PIXELS) is not None


@functools.lru_cache(maxsize=64)
def _reader(kind: str, max_pixels: int) -> Callable[[IO[bytes], str], Any] | None:
    """What opens a format; None where it is none that this installation reads.

    Pillow's limit on pixels is one switch for the whole process, and its remarks on metadata go through
    `warnings`, which a host program may have turned into errors. The readers made here look up both in names
    of their own.
    """
    if kind not in READERS:
        return None
    module_name, class_name = READERS[kind]
    try:
        module = importlib.import_module(module_name)
    except ImportError:
        return None
    if getattr(module, "SUPPORTED", True) is False:  # Pillow was built without the codec
        return None
    if kind == "HEIC":
        return module.HeifImageFile  # type: ignore[no-any-return]
    if kind == "TIFF":
        native.quiet_libtiff()
    names = {"Image": _image_limited(max_pixels), "warnings": _Remarks, "logger": _Remarks}
    for part in {"TIFF": ("ImageFileDirectory_v2",), "PNG": ("PngStream",)}.get(kind, ()):
        names[part] = _apart(getattr(module, part), names)
    if kind == "TIFF":
        known = module.OPEN_INFO
        names["OPEN_INFO"] = known | {(k[0], ICC_LAB, *k[2:]): v for k, v in known.items() if k[1] == CIE_LAB}
    reader = _apart(getattr(module, class_name), names)
    reader.getexif = _exif_of_orientation  # type: ignore[attr-defined]
    return reader


def _apart(cls: type, names: dict[str, Any]) -> type:
    """A subclass of one of Pillow's classes whose methods find `names` before those of their module."""
    space = vars(sys.modules[cls.__module__]) | names
    methods: dict[str, Any] = {}
    for key, value in vars(cls).items():
        if isinstance(value, types.FunctionType):
            method = types.FunctionType(
                value.__code__, space, value.__name__, value.__defaults__, value.__closure__
            )
            method.__kwdefaults__ = value.__kwdefaults__
            methods[key] = method
    return type(cls)(cls.__name__, (cls,), methods)


class _Remarks:
    """Stands for the module `warnings`, and for the logger, of Pillow's readers: remarks on metadata become
    debug messages.
    """

    @staticmethod
    def warn(message: Warning | str, *values: Any, **_: Any) -> None:
        if log.isEnabledFor(logging.DEBUG):
            log.debug("Pillow: %s %s", printable(str(message)), printable(str(values)))

    debug = info = warning = error = warn


def _image_limited(max_pixels: int) -> types.ModuleType:
    """Stands for the module `PIL.Image` in Pillow's readers: the same, with a limit of its own."""

    def check(size: tuple[int, int], **_: Any) -> None:
        if size[0] * size[1] > max_pixels:
            raise _TooLargeError(*size)

    stand_in = types.ModuleType("PIL.Image")
    stand_in.__dict__.update(vars(Image))
    stand_in.__dict__["_decompression_bomb_check"] = check
    return stand_in


# ---- upright


def _exif_of_orientation(image: ImageFile) -> Image.Exif:
    """Stands for `getexif`: nothing but the orientation, read without Pillow's remarks on all the rest."""
    exif = Image.Exif()
    number = orientation(image)
    if number in UPRIGHT:
        exif[ORIENTATION] = number
    return exif


def loaded(image: ImageFile) -> Image.Image:
    """Decode an opened image: upright, and with corrections where Pillow misreads the format."""
    keyed = _key_of_16_bit(image)
    image.load()
    right = _tiff_as_meant(image) if image.format == "TIFF" else image if keyed is None else keyed(image)
    # Pillow's reader of TIFF has turned the pixels while it loaded them
    method = None if image.format == "TIFF" else UPRIGHT.get(orientation(image))
    return right if method is None else right.transpose(method)


def _key_of_16_bit(image: ImageFile) -> Callable[[ImageFile], Image.Image] | None:
    """What makes the one transparent colour of a 16-bit RGB picture transparent; None for other pictures.

    Pillow keeps the upper eight bits, which many colours share with it. The lower ones are decoded for this
    besides.
    """
    key, file = image.info.get("transparency"), image.fp
    if image.format != "PNG" or not isinstance(key, tuple) or not image.tile or image.tile[0][3] != "RGB;16B":
        return None

    def keyed(upper: ImageFile) -> Image.Image:
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

    return keyed


def _tiff_as_meant(image: Any) -> Image.Image:
    """A TIFF picture that was loaded: 16-bit grey where 0 is white becomes positive, ICC's Lab what other Lab
    is.
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
    number = orientation_in(exif) if isinstance(exif, bytes) else None
    if number is None and hasattr(image, "tag_v2"):
        number = image.tag_v2.get(ORIENTATION)
    if number is None:
        xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp") or ""
        text = xmp.decode("latin-1") if isinstance(xmp, bytes) else str(xmp)
        found = re.search(r'tiff:Orientation(?:="|>)([0-9])', text)
        number = int(found[1]) if found else None
    return number if isinstance(number, int) and number in UPRIGHT else 1


def _raw_profile(text: object) -> bytes | None:
    """EXIF data as ImageMagick stores it in a text chunk of a PNG file: three lines, then
    hexadecimal digits.
    """
    try:
        return bytes.fromhex("".join(text.split("\n")[3:])) if isinstance(text, str) else None
    except ValueError:
        return None


def orientation_in(exif: bytes) -> int | None:
    """The orientation in EXIF data; None where there is none, or where it is damaged before that."""
    data = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 8:
        return None
    (start,) = struct.unpack_from(order + "I", data, 4)
    if start + 2 > len(data):
        return None
    (count,) = struct.unpack_from(order + "H", data, start)
    for at in range(start + 2, min(start + 2 + 12 * count, len(data) - 11), 12):
        tag, kind, _, value = struct.unpack_from(order + "HHIH", data, at)
        if tag == ORIENTATION and kind == 3:  # a short
            return int(value)
    return None


# ---- frames


def frames_of(image: ImageFile) -> int:
    """Frames or pages of an opened file; counted without decoding. What is damaged behind the first is not
    counted.
    """
    assert image.fp is not None
    counted = {"GIF": _frames_of_gif, "TIFF": _pages_of_tiff}.get(image.format or "")
    if counted is None:
        return int(getattr(image, "n_frames", 1))
    place = image.fp.tell()
    try:
        return counted(image.fp)
    finally:
        image.fp.seek(place)


def _frames_of_gif(file: IO[bytes]) -> int:
    file.seek(10)
    head = file.read(3)
    file.seek(_palette(head[0]), io.SEEK_CUR)
    frames = 0
    while (mark := file.read(1)) in (b",", b"!"):
        if mark == b",":
            frames += 1
            place = file.read(9)
            if len(place) < 9:
                break
            file.seek(_palette(place[8]), io.SEEK_CUR)
        file.seek(1, io.SEEK_CUR)  # size of codes, or label of an extension
        while size := file.read(1)[:1]:
            if size == b"\0":
                break
            file.seek(size[0], io.SEEK_CUR)
    return max(1, frames)


def _palette(flags: int) -> int:
    """Bytes of a GIF's palette."""
    return 3 << (flags & 7) + 1 if flags & 128 else 0


def _pages_of_tiff(file: IO[bytes]) -> int:
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = head[2:4] in (b"+\0", b"\0+")
    count_format, entry, next_format = (
        (order + "Q", 20, order + "Q") if big else (order + "H", 12, order + "I")
    )
    (at,) = struct.unpack_from(next_format, head, 8 if big else 4)
    seen: set[int] = set()
    while at and at not in seen and at < 1 << 63:
        file.seek(at)
        data = file.read(struct.calcsize(count_format))
        if len(data) < struct.calcsize(count_format):
            break
        seen.add(at)
        file.seek(entry * struct.unpack(count_format, data)[0], io.SEEK_CUR)
        data = file.read(struct.calcsize(next_format))
        at = struct.unpack(next_format, data)[0] if len(data) == struct.calcsize(next_format) else 0
    return max(1, len(seen))
