"""Dialogues made from labels and captions: questions with answers, and edit requests with the edited image.

They train a model to answer questions and to edit images without human-written conversations. Names, colours,
counts and positions come from labels and from the phrases of composites; an edit leads from a drawing to a
recoloured drawing or to a composite.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from seed_edge.data.code_shards import CodeSample
from seed_edge.data.phrasing import is_countable, plain, plural, request, with_article
from seed_edge.data.samples import IMAGE_MARK, Sample

Talk = tuple[str, str]
"""A question or an edit request, and its answer."""
Known = dict[tuple[str | None, str], CodeSample]
"""Single drawings by style and name."""

NAMED = (
    "what is this?",
    "what is it?",
    "what do you see?",
    "what is in the picture?",
    "what is shown here?",
    "name this",
)
KIND = ("is it a drawing or a photo?", "is this a photo or a drawing?")
COLOUR = (
    "what color is it?",
    "what colour is it?",
    "what is its color?",
    "what color is the {a}?",
    "which color does it have?",
)
IS_IT = ("is this {a}?", "is it {a}?", "do you see {a}?", "is there {a} in the picture?")
SENTENCE = (
    "what is happening?",
    "describe the picture",
    "what happens here?",
    "describe this",
    "what can be seen?",
)
HOW_MANY = ("how many {a} are there?", "how many {a} do you see?", "how many are there?", "count the {a}")
LEFT, RIGHT = (
    ("what is on the left?", "what is to the left of the {b}?"),
    ("what is on the right?", "what is to the right of the {a}?"),
)
TOP, BOTTOM = (
    ("what is at the top?", "what is above the {b}?"),
    ("what is at the bottom?", "what is below the {a}?"),
)
GROUND = ("what color is the background?", "what colour is the background?")

TO_COLOUR = (
    "make it {c}",
    "make the {a} {c}",
    "paint it {c}",
    "change its color to {c}",
    "turn it {c}",
    "i want it {c}",
    "in {c}",
)
TO_GROUND = ("put it on {a_c} background", "make the background {c}", "with {a_c} background")
TO_BESIDE = ("add {b}", "put {b} next to it", "add {b} to the right", "with {b}")
TO_LEFT = ("put {b} to the left of it", "add {b} on the left")
TO_BELOW, TO_ABOVE = ("put {b} below it", "add {b} under it"), ("put {b} above it", "add {b} on top")
TO_MANY = ("make it {n}", "{n} of them", "draw {n} of them", "now {n} of them")
TO_ONE = ("remove {b}", "take {b} away", "without {b}")

NUMBERS = ("two", "three", "four")
FORMS = {
    "beside": re.compile(r"(.+) next to (.+)"),
    "above": re.compile(r"(.+) above (.+)"),
    "count": re.compile(rf"({'|'.join(NUMBERS)}) (.+)"),
    "ground": re.compile(r"(.+) on an? (\w+) background"),
}
"""Form of the first phrase of each kind of composite."""


@dataclass(frozen=True)
class Facts:
    """The content of a composite."""

    kind: str
    """One of `FORMS`."""
    first: str
    """A thing with article; a number word for `count`."""
    second: str
    """A thing with article; things in the plural for `count`; a colour for `ground`."""


def facts_of(sample: Sample) -> Facts | None:
    """Return the content of a composite, from its first phrase; None for other samples."""
    for kind, form in FORMS.items():
        match = form.fullmatch(sample.phrases[0]) if sample.phrases else None
        if match is not None:
            return Facts(kind, match[1], match[2])
    return None


def bare(name: str) -> str:
    """`a fox` -> `fox`."""
    return re.sub(r"^(?:an?|the) ", "", name)


def definite(name: str) -> str:
    """`a fox` -> `the fox`."""
    return f"the {bare(name)}"


def questions(sample: Sample, rng: np.random.Generator, labels: Sequence[str]) -> list[Talk]:
    """Return questions about an image with their answers, in random order.

    Args:
        labels: names of other things, for questions whose answer is no.
    """

    def one(forms: Sequence[str], answer: str, **names: str) -> Talk:
        return str(rng.choice(list(forms))).format(**names), answer

    facts, talks = facts_of(sample), list[Talk]()
    if facts is not None:
        a, b = facts.first, facts.second
        names = {"a": bare(a), "b": bare(b)}
        if facts.kind == "beside":
            talks += [one(LEFT, a, **names), one(RIGHT, b, **names), one(NAMED, f"{a} and {b}")]
        elif facts.kind == "above":
            talks += [one(TOP, a, **names), one(BOTTOM, b, **names), one(NAMED, f"{a} and {b}")]
        elif facts.kind == "count":
            talks += [one(HOW_MANY, a, a=b), one(NAMED, f"{a} {b}")]
        else:
            talks += [one(GROUND, b), one(NAMED, a)]
    elif sample.label is not None:
        name = with_article(plain(sample.label))
        talks.append(one(NAMED, name))
        talks.append(one(KIND, "a drawing" if sample.style else "a photo"))
        if rng.random() < 0.5:
            talks.append(one(IS_IT, "yes", a=name))
        else:
            other = plain(str(rng.choice(list(labels))))
            if other != plain(sample.label):
                talks.append(one(IS_IT, "no", a=with_article(other)))
        if sample.colour is not None:
            talks.append(one(COLOUR, sample.colour, a=bare(name)))
    elif sample.captions:
        talks.append(one(SENTENCE, plain(str(rng.choice(sample.captions)))))
        talks.append(one(KIND, "a photo"))
    return [talks[i] for i in rng.permutation(len(talks))]


def edits(
    samples: Sequence[CodeSample], rng: np.random.Generator
) -> Iterator[tuple[CodeSample, str, CodeSample]]:
    """Yield edits: an image, the edit request, and the edited image."""
    singles: Known = {
        (item.sample.style, with_article(plain(item.sample.label))): item
        for item in samples
        if item.sample.style and item.sample.label and not item.sample.recoloured
    }
    countable = (
        (style, bare(name), item) for (style, name), item in singles.items() if is_countable(bare(name))
    )
    many: Known = {(style, plural(name)): item for style, name, item in countable}

    def edit_request(forms: Sequence[str], **names: str) -> str:
        return str(rng.choice(list(forms))).format(**names)

    for item in samples:
        sample, facts = item.sample, facts_of(item.sample)
        if sample.recoloured and sample.label and sample.colour:
            before = singles.get((sample.style, with_article(plain(sample.label))))
            if before is not None:
                yield before, edit_request(TO_COLOUR, a=plain(sample.label), c=sample.colour), item
        elif facts is not None:
            yield from _composite_edits(item, facts, singles, many, edit_request)


def _composite_edits(
    item: CodeSample, facts: Facts, singles: Known, many: Known, edit_request: Callable[..., str]
) -> Iterator[tuple[CodeSample, str, CodeSample]]:
    """Yield edits that lead to a composite, or from it to one of its things."""
    style = item.sample.style
    first, second = singles.get((style, facts.first)), singles.get((style, facts.second))
    if facts.kind == "count":
        one = many.get((style, facts.second))
        if one is not None:
            yield one, edit_request(TO_MANY, n=facts.first), item
        return
    if facts.kind == "ground":
        if first is not None:
            yield first, edit_request(TO_GROUND, c=facts.second, a_c=with_article(facts.second)), item
        return
    behind, before = (TO_BESIDE, TO_LEFT) if facts.kind == "beside" else (TO_BELOW, TO_ABOVE)
    if first is not None:
        yield first, edit_request(behind, b=facts.second), item
        yield item, edit_request(TO_ONE, b=definite(facts.second)), first
    if second is not None:
        yield second, edit_request(before, b=facts.first), item
        yield item, edit_request(TO_ONE, b=definite(facts.first)), second


def dialogues_about(samples: Sequence[CodeSample], seed: int) -> list[tuple[Sample, CodeSample]]:
    """Make dialogues about samples: one for each sample with a question, and one for each edit.

    Each is returned as a pair with the sample that it is about; for an edit this is the edited image. Answers
    are text, or `<image>` for the next of the last images; the images before those belong to the first
    question.
    """
    rng = np.random.default_rng(seed)
    labels = sorted({item.sample.label for item in samples if item.sample.label})
    dialogues = []
    for item in samples:
        asked = questions(item.sample, rng, labels)
        if not asked or len(item.images) != 1:
            continue
        turns = asked[: 1 + int(rng.integers(2))]
        if rng.random() < 0.25 and (text := request(item.sample, rng)):
            turns = [(text, IMAGE_MARK), *turns]  # drawn first, then discussed
        dialogues.append((item.sample, _talk(item, turns, [item])))
    for before, text, after in edits(samples, rng):
        turns, shown = [(text, IMAGE_MARK)], [before, after]
        if rng.random() < 0.3 and (drawn := request(before.sample, rng)):
            turns = [(drawn, IMAGE_MARK), *turns]
        dialogues.append((after.sample, _talk(after, turns, shown)))
    return dialogues


def _talk(about: CodeSample, turns: Sequence[Talk], pictures: Sequence[CodeSample]) -> CodeSample:
    sample = Sample(key=f"{about.sample.key}-talk", turns=tuple(turns), held_out=about.sample.held_out)
    return CodeSample(sample, tuple(item.images[0] for item in pictures))
