"""What the embedded model is for, on things that it knows."""

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
    told = [edge.caption(edge.draw(f"a {thing}", seed=1).image) for thing in THINGS]
    assert sum(thing.split()[-1] in text for thing, text in zip(THINGS, told, strict=True)) >= 6, told


@pytest.mark.parametrize("colour", ["red", "blue"])
def test_things_come_in_the_colour_that_is_asked_for(edge, colour):
    drawn = [shades(edge.draw(f"a {colour} car", seed=seed).image) for seed in range(4)]
    assert sum((red > blue) == (colour == "red") for red, blue in drawn) >= 3


def test_of_several_tries_a_jumble_is_not_kept(edge):
    """DrawnImage once, a blue star is one only every other time."""
    told = [edge.caption(edge.draw("a blue star", seed=seed).image) for seed in range(6)]
    assert sum("blue" in text and "star" in text for text in told) >= 5, told


def test_what_is_kept_does_not_depend_on_memory(edge):
    with seed_edge.load(device="cpu", low_memory=True) as careful:
        for prompt in ("a blue star", "two rockets", "three elephants"):
            for seed in range(3):
                assert (
                    careful.draw_codes(prompt, seed=seed).tolist()
                    == edge.draw_codes(prompt, seed=seed).tolist()
                )


def test_as_many_as_are_asked_for_are_drawn(edge):
    """Two apples stand side by side: paint left and right, none in between."""
    pixels = np.asarray(edge.draw("two apples", seed=1).image, dtype=float)
    painted = (pixels.min(2) < 200).mean(0)
    assert painted[24:44].mean() > 0.2 and painted[84:104].mean() > 0.2 and painted[61:67].mean() < 0.1


def test_it_answers_what_its_drawings_show(edge):
    told = [edge.ask([edge.draw(f"a {thing}", seed=1).image], "what is this?") for thing in THINGS]
    assert sum(thing.split()[-1] in text for thing, text in zip(THINGS, told, strict=True)) >= 6, told


def test_it_tells_drawings_from_photos_and_colours_apart(edge, examples):
    drawn = edge.draw("a red car", seed=1).image
    asked = "is it a drawing or a photo?"
    assert "drawing" in edge.ask([drawn], asked) and "photo" in edge.ask([examples / "cat.jpg"], asked)
    assert "red" in edge.ask([drawn], "what color is it?")


@pytest.mark.parametrize("colour", ["red", "blue"])
def test_it_changes_the_colour_of_what_it_drew(edge, colour):
    other = {"red": "blue", "blue": "red"}[colour]
    changed = [
        shades(edge.edit(edge.draw(f"a {other} car", seed=seed).image, f"make it {colour}", seed=seed).image)
        for seed in range(4)
    ]
    assert sum((red > blue) == (colour == "red") for red, blue in changed) >= 3


def test_it_draws_and_answers_in_one_conversation(edge):
    talk = Conversation(edge)
    (codes,) = talk.say("a pizza", draw=True)
    assert edge.decode(codes).size == (128, 128)
    assert "pizza" in "".join(str(part) for part in talk.say("what is this?"))
