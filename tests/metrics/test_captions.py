"""Against the COCO caption evaluation (pycocoevalcap 1.2), run once on `CAPTIONS`; its figures stand here."""

import random

import pytest

from seed_edge.metrics.captions import bleu4, cider, rouge_l

CIDER, BLEU, ROUGE = 1.2640202513845458, 0.4258875268973261, 0.6944262415252698
WORDS = [
    "a",
    "the",
    "dog",
    "cat",
    "man",
    "woman",
    "runs",
    "sits",
    "on",
    "in",
    "grass",
    "beach",
    "red",
    "blue",
    "two",
    "three",
    "with",
    "ball",
    "and",
]


@pytest.fixture(scope="module")
def told():
    """60 random captions, each one of its five references with up to three words changed."""
    chance = random.Random(0)

    def sentence():
        return " ".join(chance.choice(WORDS) for _ in range(chance.randint(4, 14)))

    references = [[sentence() for _ in range(5)] for _ in range(60)]
    captions = []
    for group in references:
        words = chance.choice(group).split()
        for _ in range(3):
            words[chance.randrange(len(words))] = chance.choice(WORDS)
        captions.append(" ".join(words))
    return captions, references


def test_scores_are_those_of_coco(told):
    assert cider(*told) == pytest.approx(CIDER, abs=1e-9)
    assert bleu4(*told) == pytest.approx(BLEU, abs=1e-9)
    assert rouge_l(*told) == pytest.approx(ROUGE, abs=1e-9)


def test_case_and_punctuation_do_not_count(told):
    captions, references = told
    shouted = [caption.upper() + " ." for caption in captions]
    assert cider(shouted, references) == cider(captions, references)
    assert bleu4(shouted, references) == bleu4(captions, references)


def test_the_right_words_are_worth_more_than_others(told):
    captions, references = told
    others = captions[1:] + captions[:1]
    for score in (bleu4, rouge_l, cider):
        assert (
            score([group[0] for group in references], references)
            > score(captions, references)
            > score(others, references)
        )
    assert (
        bleu4(["x"] * 60, references) == cider(["x"] * 60, references) == rouge_l(["x"] * 60, references) == 0
    )


def test_a_caption_that_is_too_short_pays():
    assert bleu4(["a b c d"], [["a b c d e f"]]) == pytest.approx(2.718281828 ** (1 - 6 / 4))
