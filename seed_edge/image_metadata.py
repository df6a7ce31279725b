"""Metadata of generated images: how they were made, for this package and for other programs, and that they
are AI-generated.

XMP holds IPTC's digital source type and a JSON record of this package. PNG files also have the `parameters`
text that AUTOMATIC1111's programs read; JPEG and WebP have the same text as EXIF user comment.
"""

from __future__ import annotations

import dataclasses
import hashlib
import html
import io
import json
import logging
import math
import os
import re
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seed_edge import __version__
from seed_edge.atomic import is_special
from seed_edge.bundle import Bundle
from seed_edge.display import printable
from seed_edge.errors import BundleError, ImageError
from seed_edge.image_files import open_image_file
from seed_edge.inputs import parse_json
from seed_edge.manifest import MANIFEST, parse

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger("seed_edge")

FORMATS_BY_EXTENSION = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG", ".jpeg": "JPEG"}
"""Pillow's name of each format that images are written in, by the lower-case ending of the file name."""
QUALITY = 95
"""Quality of JPEG and WebP files, of 100."""
AI_MADE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    'xmlns:seed="urn:seed-edge:1" Iptc4xmpExt:DigitalSourceType="{kind}">'
    "{record}</rdf:Description></rdf:RDF></x:xmpmeta>"
    '<?xpacket end="w"?>'
)
RECORD_PATTERN = re.compile(r"<seed:record>(.*?)</seed:record>", re.DOTALL)
XMP_IN_PNG, PARAMETERS = "XML:com.adobe.xmp", "parameters"
XMP_PATTERN = re.compile(
    re.escape(XMP).replace(r"\{kind\}", re.escape(AI_MADE)).replace(r"\{record\}", ".*"), re.DOTALL
)
"""The whole XMP packet as seed-edge writes it; a program that changes the image writes its own."""
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
LONG, UNDEFINED = 4, 7
"""TIFF field types."""
MAX_XMP_LENGTH = 1 << 20
"""Maximum number of characters of XMP that are searched for a record."""
MAX_JPEG_METADATA = 65_000
"""Maximum bytes of XMP, and of EXIF, in a JPEG file: a segment holds 65,533 with its header."""
MAX_IMAGES, MAX_CODES, MAX_STEPS = 1000, 4096, 10_000
"""Limits: images of a record, codes of an image, steps of a diffusion."""
SEEDS, CODES = range(1 << 63), range(1 << 31)
MAX_NAME_LENGTH = 1000
"""Maximum characters of a bundle's name, its hash, a scheduler, and a version."""


@dataclass(frozen=True)
class DrawnImage:
    """One image of a file; a contact sheet has several."""

    seed: int
    codes: tuple[int, ...]


@dataclass(frozen=True)
class Record:
    """How the images of a file were made, and what is needed to make them again."""

    prompt: str
    drawn: tuple[DrawnImage, ...]
    bundle: str
    """Name of the bundle."""
    bundle_hash: str
    """SHA-256 of its manifest, which contains the SHA-256 of each file."""
    negative: str = ""
    temperature: float | None = None
    steps: int | None = None
    """Number of diffusion steps; None without a diffusion."""
    guidance: float | None = None
    """Guidance scale of the diffusion; None without a diffusion."""
    scheduler: str | None = None
    guided_between: tuple[float, float] | None = None
    version: str = __version__

    def parameters(self, width: int, height: int) -> str:
        """The text that AUTOMATIC1111's programs write and read."""
        settings = {
            "Steps": self.steps or 1,
            "Sampler": self.scheduler or "none",
            "CFG scale": self.guidance,
            "Seed": self.drawn[0].seed,
            "Size": f"{width}x{height}",
            "Model hash": self.bundle_hash[:10],
            "Model": self.bundle,
            "Version": f"seed-edge {self.version}",
        }
        lines = [self.prompt, *([f"Negative prompt: {self.negative}"] if self.negative else [])]
        return "\n".join(
            [*lines, ", ".join(f"{name}: {value}" for name, value in settings.items() if value is not None)]
        )


def bundle_hash(bundle: Bundle) -> str:
    """SHA-256 of a bundle's manifest, which identifies the bundle."""
    return hashlib.sha256((bundle.path / MANIFEST).read_bytes()).hexdigest()


def save_options(kind: str, record: Record | None, image: Image, name: str = "a picture") -> dict[str, Any]:
    """Arguments of Pillow's `save` that write the record; without a record, only the mark of an AI-generated
    image.

    Metadata that the format has no room for, or that could not be read back, is left out with a warning.

    Args:
        kind: `PNG`, `WEBP` or `JPEG`.
        name: name of the file, for warnings.
    """
    from PIL import PngImagePlugin

    limit = MAX_JPEG_METADATA if kind == "JPEG" else MAX_XMP_LENGTH
    xmp = XMP.format(kind=AI_MADE, record="" if record is None else _record_xml(record, limit, name))
    parameters = None if record is None else _clean(record.parameters(*image.size))
    exif = b"" if parameters is None else _exif_with_comment(parameters)
    if len(exif) > limit:
        parameters = None
        _warn_omitted("prompt and settings for other programs", len(exif), limit, name)
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_itxt(XMP_IN_PNG, xmp)
        if parameters is not None:
            info.add_itxt(PARAMETERS, parameters)
        return {"pnginfo": info}
    options: dict[str, Any] = {"xmp": xmp.encode()}
    if parameters is not None:
        options["exif"] = exif
    return options


def _record_xml(record: Record, limit: int, name: str) -> str:
    """The record as an XMP element; empty if it exceeds `limit` bytes, or could not be read back."""
    content = html.escape(json.dumps(dataclasses.asdict(record)))
    try:
        _parse_record(content)
    except (ImageError, BundleError) as error:
        log.warning("%s is saved without its seed-edge metadata: %s", printable(name), error)
        return ""
    element = f"<seed:record>{content}</seed:record>"
    size = len(XMP.encode()) + len(AI_MADE) + len(element)
    if size <= limit:
        return element
    _warn_omitted("seed-edge metadata", size, limit, name)
    return ""


def _warn_omitted(what: str, size: int, limit: int, name: str) -> None:
    advice = "save it as PNG"
    if limit != MAX_JPEG_METADATA:
        advice = "draw fewer images into one file, or use a shorter prompt"
    message = "%s is saved without its %s: %s bytes, over the limit of %s; %s"
    log.warning(message, printable(name), what, f"{size:,}", f"{limit:,}", advice)


def _clean(text: str) -> str:
    """Text without control characters and lone surrogates, which other programs cannot store."""
    cleaned = "".join(letter if letter >= " " or letter in "\n\t" else " " for letter in text)
    return cleaned.encode("utf-8", "replace").decode()


def _exif_with_comment(comment: str) -> bytes:
    """EXIF data with only a user comment.

    Pillow writes the comment with the type "byte"; the standard, and other programs, require "undefined".
    """
    text = b"UNICODE\0" + comment.encode("utf-16-be")
    ifd0 = 8
    exif_ifd = ifd0 + 2 + 12 + 4
    head = b"MM\0*" + struct.pack(">I", ifd0)
    pointer = struct.pack(">HHHIII", 1, EXIF_IFD, LONG, 1, exif_ifd, 0)
    entry = struct.pack(">HHHIII", 1, USER_COMMENT, UNDEFINED, len(text), exif_ifd + 2 + 12 + 4, 0)
    return b"Exif\0\0" + head + pointer + entry + text


def format_for_path(path: Path) -> str:
    """Pillow's name of the format for a file name; PNG for pipes and devices.

    Raises:
        ImageError: images cannot be written with this extension.
    """
    kind = FORMATS_BY_EXTENSION.get(path.suffix.lower())
    if kind is None and not is_special(path):
        extensions = ", ".join(FORMATS_BY_EXTENSION)
        raise ImageError(
            f"{printable(str(path))}: images are written as {extensions}; choose one of these extensions"
        )
    return kind or "PNG"


def encode_image(image: Image, kind: str, record: Record | None) -> bytes:
    """Content of an image file. Where the format has no room for the record, it is left out with a warning.

    Args:
        kind: `PNG`, `WEBP` or `JPEG`.
        record: how the image was made; None to state only that it is AI-generated.
    """
    buffer = io.BytesIO()
    try:
        image.save(buffer, kind, quality=QUALITY, **save_options(kind, record, image))
    except ValueError as error:  # raised by Pillow if the metadata exceeds a limit of the format
        if record is None:
            raise
        log.warning("the image is saved without its seed-edge metadata: %s", error)
        return encode_image(image, kind, None)
    return buffer.getvalue()


def record_from_image(image: Image, name: str) -> Record:
    """The record in an opened image.

    Args:
        name: name of the file, for errors.

    Raises:
        ImageError: it has no record, or a damaged one.
    """
    label = printable(name)
    match = RECORD_PATTERN.search(_read_xmp(image)[:MAX_XMP_LENGTH])
    if match is None:
        raise ImageError(f"{label} has no seed-edge metadata; draw it without --no-metadata")
    try:
        return _parse_record(match[1])
    except (ImageError, BundleError) as error:
        raise ImageError(f"{label}: its seed-edge metadata is damaged ({printable(str(error))})") from error


def _read_xmp(image: Image) -> str:
    xmp = image.info.get("xmp") or image.info.get(XMP_IN_PNG) or ""
    return xmp.decode("utf-8", "replace") if isinstance(xmp, bytes) else str(xmp)


def _parse_record(content: str) -> Record:
    """The record in the content of the XMP element.

    Raises:
        BundleError, ImageError: it is damaged, or a number or text of it is out of range.
    """
    record: Record = parse(Record, parse_json(html.unescape(content), "record", ImageError), "record")
    for field, in_range in _range_checks(record):
        if not in_range:
            raise ImageError(f"{field} is out of range")
    return record


def _range_checks(record: Record) -> Iterator[tuple[str, bool]]:
    """The name of each field, and whether its value is in its range."""
    yield "drawn", 1 <= len(record.drawn) <= MAX_IMAGES
    yield "seed", all(image.seed in SEEDS for image in record.drawn)
    yield (
        "codes",
        all(
            len(image.codes) <= MAX_CODES and all(code in CODES for code in image.codes)
            for image in record.drawn
        ),
    )
    yield "temperature", _within(record.temperature, 0, math.inf)
    yield "steps", _within(record.steps, 1, MAX_STEPS)
    yield "guidance", _within(record.guidance, -math.inf, math.inf)
    yield "guided_between", all(_within(end, -math.inf, math.inf) for end in record.guided_between or ())
    for field in ("bundle", "bundle_hash", "scheduler", "version"):
        yield field, len(getattr(record, field) or "") <= MAX_NAME_LENGTH


def _within(value: float | None, minimum: float, maximum: float) -> bool:
    return value is None or (minimum <= value <= maximum and math.isfinite(value))


def read_record(path: str | os.PathLike[str]) -> Record:
    """Read the record of an image file; only the header is read.

    Raises:
        ImageError: the file cannot be read as an image, or has no record.
    """
    with open_image_file(path, sys.maxsize) as image:
        return record_from_image(image, os.fspath(path))


def is_seed_edge_image(path: str | os.PathLike[str]) -> bool:
    """Whether a file is an image as seed-edge wrote it, with or without a record. Never raises.

    False for an image that another program saved again, even if it kept the metadata.
    """
    try:
        with open_image_file(path, sys.maxsize) as image:
            return XMP_PATTERN.fullmatch(_read_xmp(image)) is not None
    except ImageError:
        return False
