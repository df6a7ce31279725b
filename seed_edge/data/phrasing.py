"""English captions and requests for an image, with random phrasing."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection

import numpy as np

from seed_edge.data.samples import Sample
from seed_edge.prompts import DRAWN

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray")
"""Colour words of requests, labels and training drawings."""

RANDOM_COLOUR_SHARE = 0.15
"""Share of requests for a thing without a dominant colour that name a random colour. The image is unchanged;
a model that is not trained on such requests draws noise for them.
"""

COLOUR_AFTER_SHARE = 0.25
"""Share of requests for a coloured thing that name the colour after the thing."""
COLOUR_AFTER_FORMS = ("{} in {colour}", "{} that is {colour}", "{} painted {colour}", "{} which is {colour}")
"""Phrasings of such requests; `{}` is the thing with its article."""

REWORDING_PROBABILITY = 0.3
"""Probability that a word of `OTHER_WORDS` is replaced in a request for an image of several things."""
OTHER_WORDS = {
    "next to": ("near", "by", "alongside", "close to"),
    "on top of": ("atop",),
    "below": ("beneath", "underneath"),
    "two": ("2", "a couple of"),
    "three": ("3",),
    "four": ("4",),
}

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
"""Phrasings of a request for a drawing; `{}` is the thing with its article."""

PHOTO_OPENERS = (
    "a photo of {}",
    "photo of {}",
    "show me a photo of {}",
    "a photograph of {}",
    "a photo of {}, please",
)

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
"""Nouns without an article that do not end in s."""


IRREGULAR = {
    **{name: name for name in ("fish", "sheep", "deer", "bison", "squid", "shrimp", "salmon", "moose")},
    **{
        "mouse": "mice",
        "goose": "geese",
        "ox": "oxen",
        "tooth": "teeth",
        "foot": "feet",
        "leaf": "leaves",
        "knife": "knives",
    },
    **{
        "wolf": "wolves",
        "loaf": "loaves",
        "man": "men",
        "woman": "women",
        "child": "children",
        "person": "people",
    },
    **{
        "cactus": "cacti",
        "octopus": "octopuses",
        "potato": "potatoes",
        "tomato": "tomatoes",
        "mango": "mangoes",
    },
}
"""Irregular plurals."""


def head_noun(name: str) -> str:
    """`slice of pizza` -> `slice`, `cat with wry smile` -> `cat`, `red apple` -> `apple`."""
    return re.split(" (?:of|with|in|on|and) ", name)[0].split()[-1]


def is_countable(name: str) -> bool:
    """Whether a name denotes a countable thing in the singular."""
    head = head_noun(name)
    return head not in MASS_OR_PLURAL and not (head.endswith("s") and not head.endswith(("ss", "us", "is")))


def with_article(name: str) -> str:
    """`fox` -> `a fox`; plural and mass nouns stay as they are."""
    if not is_countable(name):
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def plural(name: str) -> str:
    """`red apple` -> `red apples`, `glass of milk` -> `glasses of milk`; for countable names."""
    head = head_noun(name)
    if head in IRREGULAR:
        many = IRREGULAR[head]
    elif head.endswith(("s", "sh", "ch", "x", "z")):
        many = head + "es"
    elif head.endswith("y") and head[-2:-1] not in "aeiou":
        many = head[:-1] + "ies"
    else:
        many = head + "s"
    match = re.match(rf"(?:.*? )??{re.escape(head)}(?= (?:of|with|in|on|and) |$)", name)
    assert match is not None  # `head` is a word of `name`
    end = match.end()
    return name[: end - len(head)] + many + name[end:]


def split_words(text: str) -> list[str]:
    """Return the words and numbers of a text in lower case, without punctuation except apostrophes."""
    return re.findall(r"[a-z0-9']+", text.lower())


def without(sample: Sample, blocked: Collection[str]) -> Sample | None:
    """Return a sample without the texts that contain one of these words or phrases; None if no text is left.

    Whole words are compared; case is ignored.
    """
    if not blocked:
        return sample
    pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, blocked))})\b", re.IGNORECASE)

    def allowed(texts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(text for text in texts if not pattern.search(text))

    label = sample.label if sample.label and not pattern.search(sample.label) else None
    captions, phrases, turns = allowed(sample.captions), allowed(sample.phrases), sample.turns
    if any(pattern.search(text) for turn in turns for text in turn):
        turns = ()
    had_text = bool(sample.captions or sample.phrases or sample.turns or sample.label)
    if had_text and not (captions or phrases or turns or label):
        return None
    return dataclasses.replace(
        sample,
        label=label,
        captions=captions,
        phrases=phrases,
        turns=turns,
        synonyms=allowed(sample.synonyms),
        tags=allowed(sample.tags),
    )


def plain(text: str) -> str:
    """Return a text in lower case, with single spaces and without a full stop."""
    return " ".join(text.lower().replace(" .", "").replace(" ,", ",").split()).rstrip(". ")


STYLE_WORDS = {"fluent-3d": ("3d {}", "{} in 3d"), "fluent-flat": ("flat {}", "{} in flat style")}
"""Phrasings of a request for a style other than the canonical one; `{}` is the thing without article."""


def name_of(
    sample: Sample, colour: bool, rng: np.random.Generator, synonyms: float = 0.0, style: bool = False
) -> str:
    """Return the thing with article.

    Args:
        colour: name the colour, if it is known; a recoloured thing always has it.
        synonyms: probability of an everyday name instead of the label.
        style: name the style, if it has a phrasing.
    """
    name = plain(sample.label or "")
    if sample.synonyms and rng.random() < synonyms:
        name = plain(str(rng.choice(sample.synonyms)))
    if sample.colour and (colour or sample.recoloured):
        words = name.split()
        name = name if words[0] == sample.colour else f"{sample.colour} {name}"
    if style and sample.style in STYLE_WORDS:
        name = str(rng.choice(STYLE_WORDS[sample.style])).format(name)
    return with_article(name)


def caption(sample: Sample, rng: np.random.Generator, as_written: bool = False) -> str | None:
    """Return a random caption; None for a sample without captions, phrases and label.

    Args:
        as_written: keep case and full stop of sentences; the default is `plain` text.
    """
    if sample.captions:
        return _sentence(sample, rng, as_written)
    if sample.phrases:
        return DRAWN.replace("{text}", str(rng.choice(sample.phrases)))
    if sample.label is None:
        return None
    name = name_of(sample, colour=rng.random() < 0.5, rng=rng)
    return DRAWN.replace("{text}", name) if sample.style else f"a photo of {name}"


def _sentence(sample: Sample, rng: np.random.Generator, as_written: bool) -> str:
    text = str(rng.choice(sample.captions))
    return text.strip() if as_written else plain(text)


def request(sample: Sample, rng: np.random.Generator, as_written: bool = False) -> str | None:
    """Return a random request for the image; None for a sample without captions, phrases and label.
    `as_written` as in `caption`.
    """
    if sample.captions:
        return _sentence(sample, rng, as_written)
    if sample.phrases:
        return str(rng.choice(OPENERS)).format(reworded(str(rng.choice(sample.phrases)), rng))
    if sample.label is None:
        return None
    if sample.style is None:
        return str(rng.choice(PHOTO_OPENERS)).format(name_of(sample, colour=False, rng=rng))
    label_words = set(split_words(sample.label))
    if sample.colour is None and not label_words.intersection(COLOURS) and rng.random() < RANDOM_COLOUR_SHARE:
        sample = dataclasses.replace(sample, colour=str(rng.choice(COLOURS)), recoloured=True)
    coloured = sample.colour is not None and (sample.recoloured or rng.random() < 0.3)
    colour_after = coloured and sample.colour not in label_words and rng.random() < COLOUR_AFTER_SHARE
    if colour_after:
        uncoloured = dataclasses.replace(sample, colour=None)
        name = name_of(uncoloured, colour=False, rng=rng, synonyms=0.2, style=True)
        name = str(rng.choice(COLOUR_AFTER_FORMS)).format(name, colour=sample.colour)
    else:
        name = name_of(sample, colour=coloured, rng=rng, synonyms=0.2, style=True)
    return str(rng.choice(OPENERS)).format(name)


def reworded(text: str, rng: np.random.Generator) -> str:
    """Return the text with some of its words replaced by `OTHER_WORDS`."""

    def replacement(match: re.Match[str]) -> str:
        return str(rng.choice(OTHER_WORDS[match[0]])) if rng.random() < REWORDING_PROBABILITY else match[0]

    return re.sub(rf"\b(?:{'|'.join(OTHER_WORDS)})\b", replacement, text)
