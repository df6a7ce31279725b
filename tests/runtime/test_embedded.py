"""What the embedded model is for, every job once, on things that it knows."""

import numpy as np
import pytest

import seed_edge
from seed_edge.runtime.conversation import Conversation

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


def test_it_answers_what_is_asked_about_what_it_drew(edge):
    told = [edge.ask([edge.draw(f"a {thing}", seed=1)], "what is this?") for thing in THINGS]
    assert sum(thing.split()[-1] in text for thing, text in zip(THINGS, told, strict=True)) >= 6, told


@pytest.mark.parametrize("colour", ["red", "blue"])
def test_things_come_in_the_colour_that_is_asked_for(edge, colour):
    drawn = [shades(edge.draw(f"a {colour} car", seed=seed)) for seed in range(4)]
    assert sum((red > blue) == (colour == "red") for red, blue in drawn) >= 3


def test_a_picture_is_changed_as_asked(edge):
    before = edge.draw("a red car", seed=1)
    red, blue = shades(before)
    red_after, blue_after = shades(edge.edit(before, "make it blue", seed=1))
    assert blue_after - red_after > blue - red + 40


def test_a_conversation_takes_pictures_and_gives_some(edge, examples):
    talk = Conversation(edge)
    said = "".join(
        piece for piece in talk.say("is it a drawing or a photo?", [examples / "coffee.jpg"]) if isinstance(piece, str)
    )
    assert "photo" in said
    assert any(not isinstance(piece, str) for piece in talk.say("a pizza", draw=True))
