"""Training drawings as one WebDataset tar: the drawings of the packages, recoloured ones, and composites of
several things.

Each drawing becomes `KEY.webp` (RGBA) and `KEY.json` (`label`, `tags`, `group`, `style`, `colour`, `source`).
Recoloured drawings (`emoji.colours`) give colour words a meaning, composites (`emoji.composites`) give one to
counts and positions.
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
from seed_edge.emoji.colours import recoloured
from seed_edge.emoji.composites import composed
from seed_edge.emoji.packages import Drawing, singles
from seed_edge.output_checks import check_new_file

PEOPLE = {0, 1}
"""Emoji groups of faces and people: these are never recoloured and not part of composites."""


def in_other_colours(drawing: Drawing, count: int) -> Iterator[Drawing]:
    """Up to `count` recoloured copies of `drawing`; none for people, held-out drawings and drawings without a
    dominant hue.
    """
    if drawing.hue is None or drawing.record["group"] in PEOPLE or drawing.record["held_out"]:
        return
    rng = np.random.default_rng(zlib.crc32(drawing.key.encode()))
    for word in rng.permutation([word for word in COLOURS if word != drawing.record["colour"]])[:count]:
        record = drawing.record | {"colour": str(word), "recoloured": True}
        yield Drawing(
            f"{drawing.key}-{word}", recoloured(drawing.image, drawing.hue, str(word)), record, None
        )


def write_drawings(
    folder: Path,
    out: Path,
    recolours: int = 4,
    composites: int = 12_000,
    seed: int = 0,
    only_made: bool = False,
) -> int:
    """Write every drawing of the packages in `folder` to the tar `out`; return how many.

    Args:
        recolours: in how many other colours a thing of one colour is given too; one in styles that are not
            `CANONICAL_STYLE`.
        composites: how many pictures of several things.
        only_made: without the drawings as their designers made them.
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
