"""What the embedded model is for, on things that it knows."""

import numpy as np
import pytest

import seed_edge

THINGS = ("red fox", "pizza", "house", "dog", "sunflower", "banana", "bicycle", "guitar", "book", "umbrella")


@pytest.fixture(scope="module")
def edge():
    with seed_edge.load(device="cpu") as opened:
        yield opened


def shades(image):
    """Mean red and mean blue of what is not nearly white."""
    pixels = np.asarray(image, dtype=float).reshape(-1, 3)
    painted = pixels[pixels.min(1) < 220]
    return painted[:, 0].mean(), painted[:, 2].mean()


def test_what_it_draws_it_recognises(edge):
    told = [edge.caption(edge.draw(f"a {thing}", seed=1)) for thing in THINGS]
    assert sum(thing.split()[-1] in text for thing, text in zip(THINGS, told, strict=True)) >= 6, told


@pytest.mark.parametrize("colour", ["red", "blue"])
def test_things_come_in_the_colour_that_is_asked_for(edge, colour):
    drawn = [shades(edge.draw(f"a {colour} car", seed=seed)) for seed in range(4)]
    assert sum((red > blue) == (colour == "red") for red, blue in drawn) >= 3


def test_as_many_as_are_asked_for_are_drawn(edge):
    """Two apples stand side by side: paint left and right, none in between."""
    pixels = np.asarray(edge.draw("two apples", seed=1), dtype=float)
    painted = (pixels.min(2) < 200).mean(0)
    assert painted[24:44].mean() > 0.2 and painted[84:104].mean() > 0.2 and painted[61:67].mean() < 0.1
