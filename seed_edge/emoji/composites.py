"""Composites: images of several drawings, with phrases that describe counts and positions exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from seed_edge.data.phrasing import COLOURS, is_countable, plain, plural, with_article
from seed_edge.data.synonyms import everyday_names
from seed_edge.emoji.colours import HUES, recolour
from seed_edge.emoji.packages import SIZE, Drawing, slug

KINDS = {"beside": 0.45, "above": 0.12, "count": 0.33, "ground": 0.1}
"""Share of each kind of composite."""
RECOLOURED_SHARE = 0.4
"""Share of single-coloured things that are recoloured."""
EVERYDAY_SHARE = 0.6
"""Share of things with everyday names (`data.synonyms`), which are requested most often."""
THING_SIDE = 106
"""Side of each of several things, in pixels."""

NUMBERS = {2: ("two {a}", "a pair of {a}"), 3: ("three {a}",), 4: ("four {a}",)}
CORNERS = {
    2: ((4, 59), (114, 59)),
    3: ((59, 4), (4, 114), (114, 114)),
    4: ((4, 4), (114, 4), (4, 114), (114, 114)),
}
"""Number of things -> their upper left corners, in pixels."""
BESIDE = (
    "{a} next to {b}",
    "{a} and {b}",
    "{a} beside {b}",
    "{a} with {b}",
    "{a} to the left of {b}",
    "{b} to the right of {a}",
)
ABOVE = ("{a} above {b}", "{a} over {b}", "{a} on top of {b}", "{b} below {a}", "{b} under {a}")
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
"""Colour word -> RGB colour of a background."""
ON_GROUND = ("{a} on {a_ground} background", "{a} on {ground}", "{a} against {a_ground} background")
"""Phrases of a thing on a background; `{ground}` is the colour, `{a_ground}` the colour with an article."""


@dataclass(frozen=True)
class _Thing:
    names: tuple[str, ...]
    """The label, then everyday names; all with the colour word if the thing is recoloured."""
    image: Image.Image


def make_composites(things: Sequence[Drawing], count: int, seed: int) -> Iterator[Drawing]:
    """Make `count` composites of `things`; the `phrases` of their records all describe the image."""
    rng = np.random.default_rng(seed)
    everyday = [thing for thing in things if everyday_names(thing.record["label"])] or things

    def choose_group() -> Sequence[Drawing]:
        return everyday if rng.random() < EVERYDAY_SHARE else things

    kinds = rng.choice(list(KINDS), count, p=list(KINDS.values()))
    for number, kind in enumerate(kinds):
        first, second = (_choose_thing(choose_group(), rng) for _ in range(2))
        key = f"{kind}-{number:05d}-{slug(first.names[0])}"
        if kind == "count":
            while not is_countable(first.names[0]):
                first = _choose_thing(choose_group(), rng)
            many = int(rng.choice([2, 3, 4], p=[0.5, 0.3, 0.2]))
            image = _paste([first.image] * many, CORNERS[many], rng)
            forms, name = NUMBERS[many], plural
        elif kind == "ground":
            ground = str(rng.choice([colour for colour in GROUNDS if colour not in first.names[0].split()]))
            image = _paste(
                [first.image], [(0, 0)], rng, side=int(SIZE * rng.uniform(0.7, 0.95)), ground=GROUNDS[ground]
            )
            with_ground = [
                form.replace("{a_ground}", with_article(ground)).replace("{ground}", ground)
                for form in ON_GROUND
            ]
            forms, name = tuple(with_ground), with_article
        else:
            corners = CORNERS[2] if kind == "beside" else [(y, x) for x, y in CORNERS[2]]
            image = _paste([first.image, second.image], corners, rng)
            forms, name = BESIDE if kind == "beside" else ABOVE, with_article
        record = {
            "phrases": _phrases(forms, name, first, second, np.random.default_rng((seed, number))),
            "style": things[0].record["style"],
            "source": things[0].record["source"],
        }
        yield Drawing(key, image, record, None)


def _phrases(
    forms: Sequence[str], name: Callable[[str], str], first: _Thing, second: _Thing, rng: np.random.Generator
) -> list[str]:
    """Return each form twice: with the labels, and with random everyday names."""

    def random_name(thing: _Thing) -> str:
        return str(
            rng.choice([n for n in thing.names if is_countable(n) or not is_countable(thing.names[0])])
        )

    exact = [form.format(a=name(first.names[0]), b=name(second.names[0])) for form in forms]
    varied = [form.format(a=name(random_name(first)), b=name(random_name(second))) for form in forms]
    return list(dict.fromkeys([*exact, *varied]))


def _choose_thing(things: Sequence[Drawing], rng: np.random.Generator) -> _Thing:
    """Return a random thing, sometimes recoloured."""
    drawing = things[int(rng.integers(len(things)))]
    label = plain(drawing.record["label"])
    names = (label, *everyday_names(label))
    if (
        drawing.hue is None
        or rng.random() >= RECOLOURED_SHARE
        or any(word in COLOURS for word in label.split())
    ):
        return _Thing(names, drawing.image)
    word = str(rng.choice(list(HUES) if rng.random() < 0.7 else list(COLOURS)))
    coloured_names = [f"{word} {name}" for name in names if not set(name.split()) & set(COLOURS)]
    return _Thing(tuple(coloured_names), recolour(drawing.image, drawing.hue, word))


def _paste(
    images: Sequence[Image.Image],
    corners: Sequence[tuple[int, int]],
    rng: np.random.Generator,
    side: int = THING_SIDE,
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
