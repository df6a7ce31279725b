"""What a picture says of how it was made, in its file: for us, for other programs, and that a machine made it.

XMP carries IPTC's digital source type and our own JSON; PNG has beside it the text that AUTOMATIC1111's programs look for,
JPEG and WebP have the same as EXIF user comment.
"""

from __future__ import annotations

import dataclasses
import hashlib
import html
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from seed_edge import __version__
from seed_edge.bundle import Bundle
from seed_edge.errors import BundleError, ImageError
from seed_edge.manifest import MANIFEST, parse

if TYPE_CHECKING:
    from PIL.Image import Image

AI_MADE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    'xmlns:seed="urn:seed-edge:1" Iptc4xmpExt:DigitalSourceType="{kind}">{record}</rdf:Description></rdf:RDF></x:xmpmeta>'
    '<?xpacket end="w"?>'
)
OURS = re.compile(r"<seed:record>(.*?)</seed:record>", re.DOTALL)
XMP_IN_PNG, PARAMETERS = "XML:com.adobe.xmp", "parameters"
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
LONGEST = 1 << 20
"""Characters of XMP that are looked at."""


@dataclass(frozen=True)
class Drawn:
    """One picture of a file; a grid holds several."""

    seed: int
    codes: tuple[int, ...]


@dataclass(frozen=True)
class Record:
    """How the pictures of a file were made; what is needed to make them again."""

    prompt: str
    drawn: tuple[Drawn, ...]
    bundle: str
    """Name of the bundle."""
    bundle_hash: str
    """SHA-256 of its manifest, which holds those of all its files."""
    negative: str = ""
    temperature: float | None = None
    steps: int | None = None
    """Of a diffusion."""
    guidance: float | None = None
    """Of a diffusion."""
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
        return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in settings.items() if value is not None)])


def bundle_hash(bundle: Bundle) -> str:
    """What tells a bundle from any other."""
    return hashlib.sha256((bundle.path / MANIFEST).read_bytes()).hexdigest()


def saving_options(kind: str, record: Record | None, image: Image) -> dict[str, Any]:
    """What Pillow's `save` is to be told so that the file carries the record; without one, only that a machine made it.

    Args:
        kind: `PNG`, `WEBP` or `JPEG`.
    """
    from PIL import Image as pillow
    from PIL import PngImagePlugin

    ours = "" if record is None else f"<seed:record>{html.escape(json.dumps(dataclasses.asdict(record)))}</seed:record>"
    xmp = XMP.format(kind=AI_MADE, record=ours)
    parameters = None if record is None else record.parameters(*image.size)
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_itxt(XMP_IN_PNG, xmp)
        if parameters is not None:
            info.add_itxt(PARAMETERS, parameters)
        return {"pnginfo": info}
    options: dict[str, Any] = {"xmp": xmp.encode()}
    if parameters is not None:
        exif = pillow.Exif()
        exif.get_ifd(EXIF_IFD)[USER_COMMENT] = b"UNICODE\0" + parameters.encode("utf-16-be")
        options["exif"] = exif
    return options


def record_of(image: Image, name: str) -> Record:
    """The record in a picture that was opened, and not converted since.

    Args:
        name: of the file, for errors.

    Raises:
        ImageError: it carries none, or a damaged one.
    """
    xmp = image.info.get("xmp") or image.info.get(XMP_IN_PNG) or ""
    text = xmp.decode("utf-8", "replace") if isinstance(xmp, bytes) else str(xmp)
    found = OURS.search(text[:LONGEST])
    if found is None:
        raise ImageError(f"{name} does not say how it was made; seed-edge notes that unless told --no-metadata")
    try:
        record: Record = parse(Record, json.loads(html.unescape(found[1])), "record")
    except (ValueError, BundleError, RecursionError) as error:
        raise ImageError(f"{name}: what it says of how it was made is damaged ({error})") from error
    if not record.drawn:
        raise ImageError(f"{name}: what it says of how it was made is damaged (no codes)")
    return record


def record_in(path: str) -> Record:
    """The record in a picture file.

    Raises:
        ImageError: it cannot be read as a picture, or carries none.
    """
    from PIL import Image as pillow
    from PIL import UnidentifiedImageError

    from seed_edge.preprocess import FORMATS

    try:
        with pillow.open(path, formats=FORMATS) as image:
            return record_of(image, path)
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"{path}: not a picture this program reads ({error})") from error
