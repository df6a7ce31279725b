"""Opens untrusted image files: the format is detected by content, Pillow's reader of that format opens it,
and any exception becomes an `ImageError` of one line.

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
import struct
import sys
import types
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from PIL import Image

from seed_edge import native
from seed_edge.display import printable
from seed_edge.errors import ImageError, SeedEdgeError
from seed_edge.image_decoding import CIE_LAB, ICC_LAB, PHOTOMETRIC, getexif_orientation_only
from seed_edge.image_formats import HEAD_BYTES, READERS, detect_format, unsupported_message
from seed_edge.inputs import open_regular

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

log = logging.getLogger("seed_edge")

MAX_PIXELS = 200_000_000
"""Default limit on width x height, checked in the header before anything is decoded."""
MAX_STREAM_BYTES = 1 << 30
"""Maximum number of bytes read from a file object that cannot seek."""
MAX_REASON_LENGTH = 200

DECODER_ERRORS = (
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
    Warning,  # if the host program turns warnings into errors
)
"""Exceptions that Pillow and its plug-ins are known to raise on damaged files."""

CAMERA_RAW = "a camera's RAW (DNG, NEF, ARW or a similar format)"
DNG_VERSION, SUBFILE_TYPE, SUB_IFDS = 50706, 254, 330
SENSOR_PHOTOMETRICS = (32803, 34892)
"""Photometric interpretations of raw sensor data: colour filter array, and linear raw."""


class _ImageTooLargeError(Exception):
    """The image has more pixels than allowed; raised inside Pillow's reader while it opens or decodes."""

    def __init__(self, width: int, height: int) -> None:
        super().__init__(width, height)
        self.width, self.height = width, height


def display_name(source: object) -> str:
    """The name of a path or a file object in messages."""
    name = source if isinstance(source, str | os.PathLike) else getattr(source, "name", None)
    return printable(os.fsdecode(name)) if isinstance(name, str | bytes | os.PathLike) else "image"


@contextlib.contextmanager
def open_image_file(
    source: str | os.PathLike[str] | IO[bytes], max_pixels: int = MAX_PIXELS, name: str | None = None
) -> Iterator[ImageFile]:
    """Open an image file and read its header. Any exception in the block becomes an `ImageError` of one line.

    Args:
        source: path of a regular file, or a binary file object, which need not be seekable.
        max_pixels: maximum number of pixels.
        name: name of the file in messages; by default its path, or the `name` of a file object.

    Raises:
        ImageError: the file does not exist, is not regular, not an image, damaged, or too large.
    """
    name = display_name(source) if name is None else printable(name)
    with contextlib.ExitStack() as stack, image_errors(name, max_pixels):
        if isinstance(source, str | os.PathLike):
            file = stack.enter_context(open_regular(Path(source), ImageError))
        else:
            file = _seekable(source, name)
        head = file.read(HEAD_BYTES)
        kind = detect_format(head)
        reader = _isolated_reader(kind, max_pixels)
        if reader is None:
            raise ImageError(f"{name}: {unsupported_message(kind, head)}")
        file.seek(0)
        image = reader(file, "")
        if image.width * image.height > max_pixels:
            raise _ImageTooLargeError(*image.size)
        if kind == "TIFF" and _is_camera_raw(image.tag_v2):
            raise ImageError(f"{name}: {unsupported_message(CAMERA_RAW, head)}")
        yield image


@contextlib.contextmanager
def image_errors(name: str, max_pixels: int) -> Iterator[None]:
    """Turn any exception in the block into an `ImageError` of one line. KeyboardInterrupt is not caught.

    Args:
        name: name of the file in messages; printable.
    """
    try:
        yield
    except SeedEdgeError:
        raise
    except _ImageTooLargeError as error:
        raise ImageError(
            f"{name}: {error.width} x {error.height} is {error.width * error.height:,} pixels, over the "
            f"limit of {max_pixels:,}; make it smaller, or raise --max-pixels"
        ) from None
    except MemoryError as error:
        raise ImageError(
            f"{name}: the image is damaged or cannot be read (it needs more memory than is free)"
        ) from error
    except DECODER_ERRORS as error:
        raise ImageError(f"{name}: the image is damaged or cannot be read ({_reason(error)})") from error
    # any other exception of a decoder: one bad file must not stop a batch
    except Exception as error:
        reason = f"{type(error).__name__}: {_reason(error)}"
        raise ImageError(f"{name}: the image is damaged or cannot be read ({reason})") from error


def _reason(error: Exception) -> str:
    """Message of an exception, with the name of its class if the message alone does not explain it."""
    message = printable(str(error))[:MAX_REASON_LENGTH]
    if not message:
        return type(error).__name__
    if isinstance(error, OSError | SyntaxError | ValueError | EOFError):
        return message
    return f"{type(error).__name__}: {message}"


def _seekable(file: IO[bytes], name: str) -> IO[bytes]:
    """The file object at its beginning; one that is not seekable is read into memory."""
    with contextlib.suppress(AttributeError, OSError):  # io.UnsupportedOperation is an OSError
        file.seek(0)
        return file
    parts, size = [], 0
    while data := file.read(1 << 20):
        parts.append(data)
        size += len(data)
        if size > MAX_STREAM_BYTES:
            raise ImageError(
                f"{name}: over {MAX_STREAM_BYTES:,} bytes, the limit for streams; save it as a file"
            )
    return io.BytesIO(b"".join(parts))


def _is_camera_raw(tags: Any) -> bool:
    """Whether the first image of a TIFF file is raw data of a camera sensor, or a thumbnail of it."""
    if DNG_VERSION in tags or tags.get(PHOTOMETRIC) in SENSOR_PHOTOMETRICS:
        return True
    subfile_type = tags.get(SUBFILE_TYPE)
    return isinstance(subfile_type, int) and bool(subfile_type & 1) and SUB_IFDS in tags


# ---- Pillow's readers, isolated from process-wide settings


def can_read_format(kind: str) -> bool:
    """Whether this installation can read a format."""
    return _isolated_reader(kind, MAX_PIXELS) is not None


@functools.lru_cache(maxsize=64)
def _isolated_reader(kind: str, max_pixels: int) -> Callable[[IO[bytes], str], Any] | None:
    """Pillow's reader class of a format, isolated from process-wide settings; None if it is not installed.

    Pillow's pixel limit is a global of the process, and its warnings go through `warnings`, which a host
    program may have turned into errors. The classes returned here use replacements of both.
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
        native.silence_libtiff()
    names = {"Image": _pil_image_with_limit(max_pixels), "warnings": _WarningsToLog, "logger": _WarningsToLog}
    for part in {"TIFF": ("ImageFileDirectory_v2",), "PNG": ("PngStream",)}.get(kind, ()):
        names[part] = _isolated_subclass(getattr(module, part), names)
    if kind == "TIFF":
        known = module.OPEN_INFO
        names["OPEN_INFO"] = known | {(k[0], ICC_LAB, *k[2:]): v for k, v in known.items() if k[1] == CIE_LAB}
    reader = _isolated_subclass(getattr(module, class_name), names)
    reader.getexif = getexif_orientation_only  # type: ignore[attr-defined]
    return reader


def _isolated_subclass(cls: type, names: dict[str, Any]) -> type:
    """A subclass of one of Pillow's classes whose methods have `names` in place of their module's globals."""
    module_globals = vars(sys.modules[cls.__module__]) | names
    methods: dict[str, Any] = {}
    for key, value in vars(cls).items():
        if isinstance(value, types.FunctionType):
            method = types.FunctionType(
                value.__code__, module_globals, value.__name__, value.__defaults__, value.__closure__
            )
            method.__kwdefaults__ = value.__kwdefaults__
            methods[key] = method
    return type(cls)(cls.__name__, (cls,), methods)


class _WarningsToLog:
    """Replaces the module `warnings` and the logger in Pillow's readers: warnings become debug messages."""

    @staticmethod
    def warn(message: Warning | str, *values: Any, **_: Any) -> None:
        if log.isEnabledFor(logging.DEBUG):
            log.debug("Pillow: %s %s", printable(str(message)), printable(str(values)))

    debug = info = warning = error = warn


def _pil_image_with_limit(max_pixels: int) -> types.ModuleType:
    """Replaces the module `PIL.Image` in Pillow's readers: a copy with its own pixel limit."""

    def check(size: tuple[int, int], **_: Any) -> None:
        if size[0] * size[1] > max_pixels:
            raise _ImageTooLargeError(*size)

    module = types.ModuleType("PIL.Image")
    module.__dict__.update(vars(Image))
    module.__dict__["_decompression_bomb_check"] = check
    return module
