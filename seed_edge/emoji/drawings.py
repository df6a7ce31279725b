"""Writes training drawings to a WebDataset tar: drawings of the packages, recoloured ones, and composites.

Each drawing becomes `KEY.webp` (RGBA) and `KEY.json` (`label`, `tags`, `group`, `style`, `colour`, `source`).
Models learn colour words from recoloured drawings (`emoji.colours`), counts and positions from composites
(`emoji.composites`).
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from seed_edge.data.phrasing import COLOURS
from seed_edge.data.subsets import CANONICAL_STYLE
from seed_edge.data.webdataset import ShardWriter
from seed_edge.emoji.colours import recolour
from seed_edge.emoji.composites import make_composites
from seed_edge.emoji.packages import Drawing, singles
from seed_edge.output_checks import check_new_file

PEOPLE_GROUPS = {0, 1}
"""Emoji groups of faces and people: these are never recoloured and not part of composites."""


def recoloured_copies(drawing: Drawing, count: int) -> Iterator[Drawing]:
    """Yield up to `count` recoloured copies of `drawing`; none for people, held-out drawings and drawings
    without a dominant hue.
    """
    if drawing.hue is None or drawing.record["group"] in PEOPLE_GROUPS or drawing.record["held_out"]:
        return
    rng = np.random.default_rng(zlib.crc32(drawing.key.encode()))
    for word in rng.permutation([word for word in COLOURS if word != drawing.record["colour"]])[:count]:
        record = drawing.record | {"colour": str(word), "recoloured": True}
        yield Drawing(f"{drawing.key}-{word}", recolour(drawing.image, drawing.hue, str(word)), record, None)


def write_drawings(
    folder: Path,
    out: Path,
    recolours: int = 4,
    composites: int = 12_000,
    seed: int = 0,
    only_made: bool = False,
) -> int:
    """Write the drawings of the packages in `folder` to the tar `out`; return their number.

    Args:
        recolours: number of recoloured copies of a drawing with a dominant hue in `CANONICAL_STYLE`; in other
            styles it is one.
        composites: number of composites.
        only_made: leave out the original drawings.
    """
    check_new_file(out, [folder])
    count, things = 0, []
    with ShardWriter(out) as shard:

        def write(drawing: Drawing) -> None:
            buffer = io.BytesIO()
            drawing.image.save(buffer, "WEBP", quality=90)
            record = json.dumps(drawing.record).encode()
            shard.write(drawing.key, {"webp": buffer.getvalue(), "json": record})

        for drawing in singles(folder):
            canonical = drawing.record["style"] == CANONICAL_STYLE
            for item in (drawing, *recoloured_copies(drawing, recolours if canonical else 1)):
                if item is not drawing or not only_made:
                    write(item)
                    count += 1
            if canonical and drawing.record["group"] not in PEOPLE_GROUPS:
                things.append(drawing)
        for drawing in make_composites(things, composites, seed):
            write(drawing)
            count += 1
    return count
