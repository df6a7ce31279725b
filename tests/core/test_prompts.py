import numpy as np
import pytest

from seed_edge.errors import BundleError, PromptError
from seed_edge.prompts import Prompts, assemble
from seed_edge.vocab import Vocab

VOCAB = Vocab(size=512, first_code_id=300, codebook_size=8, codes_per_image=4, bos_id=1, eos_id=2, boi_id=310, eoi_id=311)
IMAGE = np.array([0, 1, 7, 3])
IMAGE_IDS = [310, 300, 301, 307, 303, 311]


def characters(text: str) -> list[int]:
    return [ord(c) for c in text]


def test_each_piece_of_text_is_tokenized_on_its_own_without_white_space_beside_ids():
    seen = []
    ids = assemble(
        "{bos}USER: {image}{text}\nASSISTANT:",
        VOCAB,
        lambda text: seen.append(text) or [len(seen) + 100],
        text="What is this?",
        images=[IMAGE],
    )
    assert seen == ["USER:", "What is this?\nASSISTANT:"]
    assert ids == [1, 101, *IMAGE_IDS, 102]


def test_placeholders_in_the_text_of_a_user_stay_text():
    ids = Prompts("{bos}{image}", "{bos}{text}{boi}").for_drawing(VOCAB, characters, "a {image} {boi}{bos}")
    assert ids == [1, *characters("a {image} {boi}{bos}"), 310]


def test_drawing_prompt_ends_with_boi_and_is_cleaned():
    prompts = Prompts("{bos}{image}", "{bos}draw {text}{boi}", lowercase=True)
    assert prompts.for_drawing(VOCAB, characters, "  A  Red\n Fox ") == [1, *characters("draw a red fox"), 310]


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_an_empty_prompt_is_refused(text):
    with pytest.raises(PromptError, match="empty"):
        Prompts("{image}", "{text}{boi}").for_drawing(VOCAB, characters, text)


@pytest.mark.parametrize(
    ("caption", "draw"),
    [("{bos}", "{text}{boi}"), ("{image}{image}", "{text}{boi}"), ("{image}", "{boi}"), ("{image}", "{boi}{text}")],
)
def test_templates_that_cannot_work_are_refused(caption, draw):
    with pytest.raises(BundleError, match="template"):
        Prompts(caption, draw)
