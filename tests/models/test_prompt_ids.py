"""Whole prompts against the reference tokenizer's ids (`tests/fixtures/seed2/prompt_ids.json`)."""

import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from seed_edge.prompts import TEMPLATES, Turn, fill, join
from seed_edge.vocab import Vocab

REFERENCE = Path(__file__).parent.parent / "fixtures" / "seed2"
CASES = json.loads((REFERENCE / "prompt_ids.json").read_text())["cases"]
VOCAB = Vocab(40194, 32000, 8192, 32, 1, 2, 40192, 40193)
CONVERSATIONS = {
    "multi-turn, vicuna": lambda image: [
        Turn("What is this?", (image,), ("A red fox.",)),
        Turn("Draw it in the snow."),
    ],
    "multi-turn, llama2": lambda image: [
        Turn("What is this?", (image,), ("A red fox.",)),
        Turn("Draw it in the snow."),
    ],
    "multi-turn with a drawn image, vicuna": lambda image: [
        Turn("Draw a red fox.", (), ("Here it is. ", image)),
        Turn("Now make it blue."),
    ],
}


@pytest.fixture(scope="module")
def tokenize():
    return sentencepiece.SentencePieceProcessor(model_file=str(REFERENCE / "tokenizer.model")).encode


def images_of(case):
    return [np.array(codes) for codes in case["images"] or []]


@pytest.mark.parametrize(
    "case", [c for c in CASES if c["text"]], ids=lambda c: f"{c['template']} {c['name']}"
)
def test_single_turns(case, tokenize):
    ids = TEMPLATES[case["template"]].for_question(VOCAB, tokenize, case["text"], images_of(case))
    assert ids == case["ids"]


@pytest.mark.parametrize("case", [c for c in CASES if c["name"] in CONVERSATIONS], ids=lambda c: c["name"])
def test_conversations(case, tokenize):
    turns = CONVERSATIONS[case["name"]](images_of(case)[0])
    assert TEMPLATES[case["template"]].for_conversation(VOCAB, tokenize, turns) == case["ids"]


def test_captions_use_the_wording_of_the_training_data(tokenize):
    for template in ("vicuna", "llama2"):
        case = next(c for c in CASES if c["name"] == "caption" and c["template"] == template)
        assert TEMPLATES[template].for_caption(VOCAB, tokenize, images_of(case)[0]) == case["ids"]


def test_the_pretrained_model_draws_after_plain_words_and_captions_after_examples(tokenize):
    draw = next(c for c in CASES if c["name"] == "pretrained draw")
    assert TEMPLATES["plain"].for_drawing(VOCAB, tokenize, "A red fox in the snow") == draw["ids"]
    shots = next(c for c in CASES if c["name"] == "pretrained caption few-shot")
    first, second = images_of(shots)
    parts = [[VOCAB.bos_id], VOCAB.codes_to_ids(first), "A red fox. ", VOCAB.codes_to_ids(second)]
    assert join(parts, tokenize) == shots["ids"]
    assert TEMPLATES["plain"].for_caption(VOCAB, tokenize, first) == join(
        fill("{bos}{images}", VOCAB, images=[first]), tokenize
    )


def test_every_case_of_the_reference_is_covered():
    named = {"pretrained draw", "pretrained caption few-shot", *CONVERSATIONS}
    assert all(case["text"] or case["name"] in named for case in CASES)
