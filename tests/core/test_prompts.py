import json
import re
from pathlib import Path

import numpy as np
import pytest

from seed_edge.errors import BundleError, PromptError
from seed_edge.prompts import TEMPLATES, Prompts, Turn, fill, join
from seed_edge.vocab import Vocab

VOCAB = Vocab(
    size=512,
    first_code_id=300,
    codebook_size=8,
    codes_per_image=4,
    bos_id=1,
    eos_id=2,
    boi_id=310,
    eoi_id=311,
)
IMAGE = np.array([0, 1, 7, 3])
IMAGE_IDS = [310, 300, 301, 307, 303, 311]
PLAIN = Prompts("{bos}{images}", "{bos}{text}{boi}")


def characters(text: str) -> list[int]:
    return [ord(c) for c in text]


def test_each_piece_of_text_is_tokenized_on_its_own_without_white_space_beside_ids():
    seen = []
    parts = fill(
        "{bos}USER: {images}{text}\nASSISTANT:", VOCAB, text="  What is this?", images=[IMAGE, IMAGE]
    )
    ids = join(parts, lambda text: seen.append(text) or [len(seen) + 100])
    assert seen == ["USER:", "What is this?\nASSISTANT:"]
    assert ids == [1, 101, *IMAGE_IDS, *IMAGE_IDS, 102]


def test_where_there_is_no_image_the_text_stays_one_piece():
    seen = []
    join(fill("{bos}USER: {images}{text}!", VOCAB, text="hello"), lambda text: seen.append(text) or [5])
    assert seen == ["USER: hello!"]


def test_placeholders_in_the_text_of_a_user_stay_text():
    ids = PLAIN.for_drawing(VOCAB, characters, "a {images} {boi}{bos}")
    assert ids == [1, *characters("a {images} {boi}{bos}"), 310]


def test_drawing_prompt_ends_with_boi_and_is_cleaned():
    prompts = Prompts("{bos}{images}", "{bos}draw {text}{boi}", lowercase=True)
    assert prompts.for_drawing(VOCAB, characters, "  A  Red\n Fox ") == [
        1,
        *characters("draw a red fox"),
        310,
    ]


def test_a_picture_nobody_asked_for_needs_no_words():
    assert PLAIN.for_unconditional_drawing(VOCAB, characters) == [1, 310]


def test_an_edit_shows_the_picture_and_ends_with_boi():
    ids = TEMPLATES["vicuna"].for_edit(VOCAB, characters, "make it blue", [IMAGE])
    assert ids == [1, *characters("USER:"), *IMAGE_IDS, *characters("make it blue\nASSISTANT:"), 310]


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_an_empty_prompt_is_refused(text):
    with pytest.raises(PromptError, match="empty"):
        PLAIN.for_drawing(VOCAB, characters, text)


def test_what_a_model_cannot_do_is_said():
    for call in (
        lambda: PLAIN.for_question(VOCAB, characters, "what?", [IMAGE]),
        lambda: PLAIN.for_edit(VOCAB, characters, "bluer", [IMAGE]),
        lambda: PLAIN.for_conversation(VOCAB, characters, [Turn("hello")]),
    ):
        with pytest.raises(PromptError, match="this bundle's model cannot"):
            call()


@pytest.mark.parametrize(
    "fields",
    [
        {"caption": "{bos}", "draw": "{text}{boi}"},
        {"caption": "{images}", "draw": "{boi}"},
        {"caption": "{images}", "draw": "{boi}{text}"},
        {"caption": "{images}", "draw": "{text}{boi}", "edit": "{text}{boi}"},
        {"caption": "{images}", "draw": "{text}{boi}", "edit": "{images}{text}"},
    ],
)
def test_templates_that_cannot_work_are_refused(fields):
    with pytest.raises(BundleError, match="template"):
        Prompts(**fields)


REFERENCE = json.loads((Path(__file__).parent.parent / "fixtures" / "seed2" / "prompt_ids.json").read_text())[
    "cases"
]


def pieces_of(prompt):
    """What the reference's split around added tokens leaves of a whole prompt, white space beside ids dropped."""
    return [p.strip() for p in re.split(r"<s>|<img>(?:<img_\d+>)*(?:</img>)?", prompt)]


@pytest.mark.parametrize(
    "case", [c for c in REFERENCE if c["text"]], ids=lambda c: f"{c['template']} {c['name']}"
)
def test_single_turns_are_cut_as_the_reference_cuts_them(case):
    seen = []
    vocab = Vocab(40194, 32000, 8192, 32, 1, 2, 40192, 40193)
    images = [np.array(codes) for codes in case["images"]]
    ids = TEMPLATES[case["template"]].for_question(
        vocab, lambda text: seen.append(text) or [], case["text"], images
    )
    assert [piece.strip() for piece in seen] == [piece for piece in pieces_of(case["prompt"]) if piece]
    assert ids == [i for i in case["ids"] if i == 1 or i >= 32000]


def test_a_conversation_is_cut_as_the_reference_cuts_it():
    case = next(c for c in REFERENCE if c["name"] == "multi-turn with a drawn image, vicuna")
    vocab = Vocab(40194, 32000, 8192, 32, 1, 2, 40192, 40193)
    turns = [
        Turn("Draw a red fox.", answer=("Here it is. ", np.array(case["images"][0]))),
        Turn("Now make it blue."),
    ]
    seen = []
    ids = TEMPLATES["vicuna"].for_conversation(vocab, lambda text: seen.append(text) or [], turns)
    assert seen == ["USER: Draw a red fox.\nASSISTANT: Here it is.", "USER: Now make it blue.\nASSISTANT:"]
    assert ids == [i for i in case["ids"] if i == 1 or i >= 32000]
