"""Pictures of several things, with words that say exactly what is where, put together from single drawings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from seed_edge.models.train.drawings import COLOURS, HUES, SIZE, Drawing, recoloured, slug
from seed_edge.models.train.texts import is_countable, plain, plural, with_article

KINDS = {"beside": 0.45, "above": 0.12, "count": 0.33, "ground": 0.1}
"""Share of each kind."""
COLOURED = 0.4
"""Share of things of one colour that are given another."""
SMALL = 106
"""Side of a thing among others, in pixels of `SIZE`."""

NUMBERS = {2: ("two {}", "two {}", "a pair of {}"), 3: ("three {}",), 4: ("four {}",)}
CORNERS = {2: ((4, 59), (114, 59)), 3: ((59, 4), (4, 114), (114, 114)), 4: ((4, 4), (114, 4), (4, 114), (114, 114))}
"""Upper left corners of so many things."""
BESIDE = ("{a} next to {b}", "{a} next to {b}", "{a} and {b}", "{a} beside {b}", "{a} to the left of {b}")
BESIDE_OTHER_WAY = ("{b} to the right of {a}",)
ABOVE = ("{a} above {b}", "{a} over {b}", "{a} on top of {b}")
ABOVE_OTHER_WAY = ("{b} below {a}", "{b} under {a}")
GROUNDS = {
    "red": (214, 69, 65),
    "orange": (244, 158, 76),
    "yellow": (250, 224, 110),
    "green": (126, 190, 120),
    "blue": (120, 170, 230),
    "purple": (165, 130, 205),
    "pink": (246, 180, 205),
    "gray": (170, 170, 170),
    "black": (30, 30, 30),
}
"""Colours of a ground, RGB."""
ON_GROUND = ("{a} on a {ground} background", "{a} on {ground}", "{a} against a {ground} background")


def composed(things: Sequence[Drawing], count: int, seed: int) -> Iterator[Drawing]:
    """`count` pictures of several of `things`. Their records have `phrases`: words that all mean this picture."""
    rng = np.random.default_rng(seed)
    kinds = rng.choice(list(KINDS), count, p=list(KINDS.values()))
    for number, kind in enumerate(kinds):
        first, second = (_thing(things, rng) for _ in range(2))
        name = f"{kind}-{number:05d}-{slug(first[0])}"
        if kind == "count":
            while not is_countable(first[0]):
                first = _thing(things, rng)
            many = int(rng.choice([2, 3, 4], p=[0.5, 0.3, 0.2]))
            image = _pasted([first[1]] * many, CORNERS[many], rng)
            phrases = [form.format(plural(first[0])) for form in NUMBERS[many]]
        elif kind == "ground":
            ground = str(rng.choice([colour for colour in GROUNDS if colour not in first[0].split()]))
            image = _pasted([first[1]], [(0, 0)], rng, side=int(SIZE * rng.uniform(0.7, 0.95)), ground=GROUNDS[ground])
            phrases = [form.format(a=with_article(first[0]), ground=ground) for form in ON_GROUND]
        else:
            corners = CORNERS[2] if kind == "beside" else [(y, x) for x, y in CORNERS[2]]
            forms = (*BESIDE, *BESIDE_OTHER_WAY) if kind == "beside" else (*ABOVE, *ABOVE_OTHER_WAY)
            image = _pasted([first[1], second[1]], corners, rng)
            phrases = [form.format(a=with_article(first[0]), b=with_article(second[0])) for form in forms]
        record = {"phrases": phrases, "style": things[0].record["style"], "source": things[0].record["source"]}
        yield Drawing(name, image, record, None)


def _thing(things: Sequence[Drawing], rng: np.random.Generator) -> tuple[str, Image.Image]:
    """Name, perhaps with a colour, and picture of a random thing."""
    drawing = things[int(rng.integers(len(things)))]
    name = plain(drawing.record["label"])
    if drawing.hue is None or rng.random() >= COLOURED or any(word in COLOURS for word in name.split()):
        return name, drawing.image
    word = str(rng.choice(list(HUES) if rng.random() < 0.7 else list(COLOURS)))
    return f"{word} {name}", recoloured(drawing.image, drawing.hue, word)


def _pasted(
    images: Sequence[Image.Image],
    corners: Sequence[tuple[int, int]],
    rng: np.random.Generator,
    side: int = SMALL,
    ground: tuple[int, int, int] | None = None,
) -> Image.Image:
    canvas = Image.new("RGBA", (SIZE, SIZE), (255, 255, 255, 0) if ground is None else (*ground, 255))
    for image, (x, y) in zip(images, corners, strict=True):
        small = image.resize((side, side), Image.Resampling.LANCZOS)
        if len(images) == 1:
            x = y = (SIZE - side) // 2
        dx, dy = (int(v) for v in rng.integers(-3, 4, 2))
        canvas.alpha_composite(small, (min(max(x + dx, 0), SIZE - side), min(max(y + dy, 0), SIZE - side)))
    return canvas
