"""What is said of a picture: a caption for it, or words that ask for it, with many phrasings."""

from __future__ import annotations

import numpy as np

from seed_edge.models.train.samples import Sample

OPENERS = (
    "{}",
    "{}",
    "{}",
    "draw {}",
    "a drawing of {}",
    "a picture of {}",
    "a drawing of {}, please",
    "{}, please",
    "please draw {}",
    "please draw me {}",
    "can you draw {}?",
    "could you draw {} for me?",
    "show me {}",
    "i want a picture of {}",
    "make a picture of {}",
    "paint {}",
    "sketch {}",
    "an illustration of {}",
    "an emoji of {}",
    "an icon of {}",
)
"""Ways to ask for a drawing; `{}` is the thing with its article."""

PHOTO_OPENERS = ("a photo of {}", "photo of {}", "show me a photo of {}", "a photograph of {}", "a photo of {}, please")

MASS_OR_PLURAL = frozenset(
    [
        "bread",
        "rice",
        "spaghetti",
        "sushi",
        "bacon",
        "garlic",
        "broccoli",
        "fire",
        "water",
        "snow",
        "fog",
        "ice",
        "milk",
        "honey",
        "popcorn",
        "butter",
        "salt",
        "money",
        "dna",
        "lightning",
        "soap",
        "paper",
        "luggage",
        "confetti",
        "sake",
        "tea",
        "curry",
        "steam",
        "wind",
        "music",
        "thread",
        "yarn",
        "wood",
        "rain",
        "tofu",
        "lipstick",
        "makeup",
        "clothing",
    ]
)
"""Words that take no article though they do not end in s."""


def with_article(name: str) -> str:
    """`fox` -> `a fox`; plural and mass nouns stay as they are."""
    last = name.split(" of ")[0].split()[-1]  # a glass of milk is a glass
    if last in MASS_OR_PLURAL or (last.endswith("s") and not last.endswith(("ss", "us", "is"))):
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def plain(text: str) -> str:
    """Lower case, single spaces, no full stop."""
    return " ".join(text.lower().replace(" .", "").replace(" ,", ",").split()).rstrip(". ")


def name_of(sample: Sample, colour: bool, rng: np.random.Generator, synonyms: float = 0.0) -> str:
    """The thing with article, with its colour if wanted or if its own colour was changed."""
    name = plain(sample.label or "")
    tags = [tag for tag in sample.tags if tag.isalpha()]
    if tags and rng.random() < synonyms:
        name = plain(str(rng.choice(tags)))
    if sample.colour and (colour or sample.recoloured):
        words = name.split()
        name = name if words[0] == sample.colour else f"{sample.colour} {name}"
    return with_article(name)


def caption(sample: Sample, rng: np.random.Generator) -> str | None:
    """A caption in lower case; None if nothing is known of the picture."""
    if sample.captions:
        return plain(str(rng.choice(sample.captions)))
    if sample.label is None:
        return None
    kind = "drawing" if sample.style else "photo"
    return f"a {kind} of {name_of(sample, colour=rng.random() < 0.5, rng=rng)}"


def request(sample: Sample, rng: np.random.Generator) -> str | None:
    """Words that ask for the picture, in lower case; None if nothing is known of it."""
    if sample.captions:
        return plain(str(rng.choice(sample.captions)))
    if sample.label is None:
        return None
    if sample.style is None:
        return str(rng.choice(PHOTO_OPENERS)).format(name_of(sample, colour=False, rng=rng))
    name = name_of(sample, colour=rng.random() < 0.5, rng=rng, synonyms=0.15)
    return str(rng.choice(OPENERS)).format(name)
