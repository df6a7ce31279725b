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

FORMATS_BY_ENDING = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG", ".jpeg": "JPEG"}
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
OURS = re.compile(r"<seed:record>(.*?)</seed:record>", re.DOTALL)
XMP_IN_PNG, PARAMETERS = "XML:com.adobe.xmp", "parameters"
OUR_PACKET = re.compile(
    re.escape(XMP).replace(r"\{kind\}", re.escape(AI_MADE)).replace(r"\{record\}", ".*"), re.DOTALL
)
"""The whole XMP of a file as it is written here; a program that changed the picture writes its own."""
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
LONG, UNDEFINED = 4, 7
"""Types of TIFF's fields."""
LONGEST = 1 << 20
"""Maximum number of characters of XMP that are searched."""
MAX_IN_JPEG = 65_000
"""Bytes of XMP, and of EXIF, that a JPEG file has room for: a segment holds 65,533, with its own header."""
MAX_PICTURES, MAX_CODES, MAX_STEPS = 1000, 4096, 10_000
"""Limits: images of a record, codes of an image, steps of a diffusion."""
SEEDS, CODES = range(1 << 63), range(1 << 31)
MAX_NAME_LENGTH = 1000
"""Characters of a bundle's name, its hash, a scheduler, a version."""


@dataclass(frozen=True)
class Drawn:
    """One image of a file; a contact sheet has several."""

    seed: int
    codes: tuple[int, ...]


@dataclass(frozen=True)
class Record:
    """How the images of a file were made, and what is needed to make them again."""

    prompt: str
    drawn: tuple[Drawn, ...]
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


def saving_options(kind: str, record: Record | None, image: Image, name: str = "a picture") -> dict[str, Any]:
    """Arguments of Pillow's `save` that write the record; without a record, only the mark of an AI-generated
    image.

    Metadata that the format has no room for, or that could not be read back, is left out with a warning.

    Args:
        kind: `PNG`, `WEBP` or `JPEG`.
        name: of the file, for warnings.
    """
    from PIL import PngImagePlugin

    room = MAX_IN_JPEG if kind == "JPEG" else LONGEST
    xmp = XMP.format(kind=AI_MADE, record="" if record is None else _record_element(record, room, name))
    parameters = None if record is None else _clean(record.parameters(*image.size))
    exif = b"" if parameters is None else _exif_of(parameters)
    if len(exif) > room:
        parameters = None
        _left_out("prompt and settings for other programs", len(exif), room, name)
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


def _record_element(record: Record, room: int, name: str) -> str:
    """The record as an XMP element; empty if there is no room for it, or if it could not be read back."""
    told = html.escape(json.dumps(dataclasses.asdict(record)))
    try:
        _parsed(told)
    except (ImageError, BundleError) as error:
        log.warning("%s does not say how it was made: %s", printable(name), error)
        return ""
    element = f"<seed:record>{told}</seed:record>"
    size = len(XMP.encode()) + len(AI_MADE) + len(element)
    if size <= room:
        return element
    _left_out("how it was made", size, room, name)
    return ""


def _left_out(what: str, size: int, room: int, name: str) -> None:
    advice = "save it as PNG" if room == MAX_IN_JPEG else "draw fewer in one file, or from a shorter prompt"
    log.warning(
        "%s does not tell %s: %s bytes, with room for %s; %s",
        printable(name),
        what,
        f"{size:,}",
        f"{room:,}",
        advice,
    )


def _clean(text: str) -> str:
    """Text without control characters and lone surrogates, which other programs cannot store."""
    kept = "".join(letter if letter >= " " or letter in "\n\t" else " " for letter in text)
    return kept.encode("utf-8", "replace").decode()


def _exif_of(comment: str) -> bytes:
    """EXIF data with a user comment and nothing else.

    Pillow would write the comment as bytes; the standard has it as "undefined", and other programs insist.
    """
    text = b"UNICODE\0" + comment.encode("utf-16-be")
    first = 8
    second = first + 2 + 12 + 4
    head = b"MM\0*" + struct.pack(">I", first)
    pointer = struct.pack(">HHHIII", 1, EXIF_IFD, LONG, 1, second, 0)
    entry = struct.pack(">HHHIII", 1, USER_COMMENT, UNDEFINED, len(text), second + 2 + 12 + 4, 0)
    return b"Exif\0\0" + head + pointer + entry + text


def format_of_name(path: Path) -> str:
    """Pillow's name of the format for a file name; PNG for pipes and devices.

    Raises:
        ImageError: images are not written with this ending.
    """
    kind = FORMATS_BY_ENDING.get(path.suffix.lower())
    if kind is None and not is_special(path):
        endings = ", ".join(FORMATS_BY_ENDING)
        raise ImageError(
            f"{printable(str(path))}: images are written as {endings}; choose one of these endings"
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
        image.save(buffer, kind, quality=QUALITY, **saving_options(kind, record, image))
    except ValueError as error:  # Pillow's, for metadata over a format's limit
        if record is None:
            raise
        log.warning("the picture does not tell how it was made: %s", error)
        return encode_image(image, kind, None)
    return buffer.getvalue()


def record_of(image: Image, name: str) -> Record:
    """The record in an image that was open_image_file and not converted.

    Args:
        name: of the file, for errors.

    Raises:
        ImageError: it carries none, or a damaged one.
    """
    said = printable(name)
    found = OURS.search(_xmp_of(image)[:LONGEST])
    if found is None:
        raise ImageError(
            f"{said} does not say how it was made; seed-edge notes that unless told --no-metadata"
        )
    try:
        return _parsed(found[1])
    except (ImageError, BundleError) as error:
        raise ImageError(
            f"{said}: what it says of how it was made is damaged ({printable(str(error))})"
        ) from error


def _xmp_of(image: Image) -> str:
    xmp = image.info.get("xmp") or image.info.get(XMP_IN_PNG) or ""
    return xmp.decode("utf-8", "replace") if isinstance(xmp, bytes) else str(xmp)


def _parsed(told: str) -> Record:
    """The record in the content of our XMP element.

    Raises:
        BundleError, ImageError: it is damaged, or a number or text of it is out of range.
    """
    record: Record = parse(Record, parse_json(html.unescape(told), "record", ImageError), "record")
    for field, allowed in _ranges(record):
        if not allowed:
            raise ImageError(f"{field} is out of range")
    return record


def _ranges(record: Record) -> Iterator[tuple[str, bool]]:
    """The name of each field, and whether its value is in its range."""
    yield "drawn", 1 <= len(record.drawn) <= MAX_PICTURES
    yield "seed", all(each.seed in SEEDS for each in record.drawn)
    yield (
        "codes",
        all(
            len(each.codes) <= MAX_CODES and all(code in CODES for code in each.codes)
            for each in record.drawn
        ),
    )
    yield "temperature", _in(record.temperature, 0, math.inf)
    yield "steps", _in(record.steps, 1, MAX_STEPS)
    yield "guidance", _in(record.guidance, -math.inf, math.inf)
    yield "guided_between", all(_in(end, -math.inf, math.inf) for end in record.guided_between or ())
    for field in ("bundle", "bundle_hash", "scheduler", "version"):
        yield field, len(getattr(record, field) or "") <= MAX_NAME_LENGTH


def _in(value: float | None, least: float, most: float) -> bool:
    return value is None or (least <= value <= most and math.isfinite(value))


def record_in(path: str | os.PathLike[str]) -> Record:
    """The record in a picture file, of which only the header is read.

    Raises:
        ImageError: it cannot be read as a picture, or carries none.
    """
    with open_image_file(path, sys.maxsize) as image:
        return record_of(image, os.fspath(path))


def drawn_here(path: str | os.PathLike[str]) -> bool:
    """Whether a file is an image as seed-edge wrote it, with or without a record. Never raises.

    An image that another program saved again is not, even if that program kept the metadata.
    """
    try:
        with open_image_file(path, sys.maxsize) as image:
            return OUR_PACKET.fullmatch(_xmp_of(image)) is not None
    except ImageError:
        return False
