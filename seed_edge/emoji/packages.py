"""Drawings with names, read from the emoji packages of the npm registry.

Reads the tarballs that `npm pack` writes; opens no network connection.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from seed_edge.data.synonyms import everyday_names
from seed_edge.emoji.colours import colour_word, dominant_hue
from seed_edge.errors import DataError

SIZE = 224
"""Side of the drawings, in pixels."""

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
    """All drawings of this style are held out for validation."""


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
    """The value of a JSON file within an npm tarball."""
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
        icon = next(
            (
                icons[n]
                for n in (name, aliases.get(name, {}).get("parent"), name.replace("-", ""))
                if n in icons
            ),
            None,
        )
        if icon is None:
            return None
        width, height = icon.get("width", data.get("width", 16)), icon.get("height", data.get("height", 16))
        box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
        names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        svg = f'<svg {names} viewBox="{box}">'
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


@dataclass(frozen=True)
class Drawing:
    """One drawing of one thing."""

    key: str
    image: Image.Image
    """RGBA, `SIZE` square."""
    record: dict[str, Any]
    """Content of the JSON file beside the image."""
    hue: float | None
    """Dominant hue in degrees; None without one."""


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
