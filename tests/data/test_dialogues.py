"""Conversations made of what is known of pictures, and a model that learns from them."""

import dataclasses

import numpy as np
import pytest
from helpers import call

import seed_edge
from seed_edge.bundle import Bundle
from seed_edge.data.code_shards import CodeSample, write_code_shards
from seed_edge.data.dialogues import dialogues_about, edits, facts_of, questions
from seed_edge.data.samples import Sample
from seed_edge.errors import DataError
from seed_edge.gguf_header import GgufHeader
from seed_edge.prompts import TEMPLATES
from seed_edge.runtime.conversation import Conversation
from seed_edge.train.language.examples import ExampleBuilder
from seed_edge.train.recipe import load_recipe
from seed_edge.vocab import CodeSpace, Vocab

SPACE = CodeSpace(8, 4)


def picture(number, **known):
    return CodeSample(Sample(f"p{number}", **known), (np.array([number % 8, number // 8, 0, 7]),))


FOX = picture(0, label="fox", style="noto", colour="orange")
BLUE_FOX = picture(1, label="fox", style="noto", colour="blue", recoloured=True)
HOUSE = picture(2, label="house", style="noto")
BESIDE = picture(3, phrases=("a fox next to a house", "a fox and a house"), style="noto")
ABOVE = picture(4, phrases=("a house above a blue fox",), style="noto")
TWO = picture(5, phrases=("two foxes",), style="noto")
GROUND = picture(6, phrases=("a house on a red background",), style="noto")
PHOTO = picture(7, label="cup")
SENTENCE = picture(8, captions=("A dog runs.",))
ALL = [FOX, BLUE_FOX, HOUSE, BESIDE, ABOVE, TWO, GROUND, PHOTO, SENTENCE]


def asked(sample, tries=60):
    """Everything that is ever asked about a picture."""
    return {
        talk
        for seed in range(tries)
        for talk in questions(sample.sample, np.random.default_rng(seed), ["fox", "cup", "hat"])
    }


@pytest.mark.parametrize(
    ("sample", "wanted", "never"),
    [
        (FOX, {("what is this?", "a fox"), ("what color is the fox?", "orange"), ("is this a fox?", "yes"), ("is this a hat?", "no")}, "how many"),
        (PHOTO, {("what is this?", "a cup"), ("is it a drawing or a photo?", "a photo")}, "what color"),
        (BESIDE, {("what is on the left?", "a fox"), ("what is to the right of the fox?", "a house"), ("what is this?", "a fox and a house")}, "top"),
        (ABOVE, {("what is at the top?", "a house"), ("what is below the house?", "a blue fox")}, "left"),
        (TWO, {("how many foxes are there?", "two"), ("what is this?", "two foxes")}, "color"),
        (GROUND, {("what color is the background?", "red"), ("what is this?", "a house")}, "many"),
        (SENTENCE, {("what is happening?", "a dog runs"), ("is it a drawing or a photo?", "a photo")}, "color"),
    ],
)  # fmt: skip
def test_what_is_known_is_asked_for(sample, wanted, never):
    found = asked(sample)
    assert wanted <= found
    assert not [question for question, _ in found if never in question]


def test_a_thing_is_never_denied():
    assert ("is this a fox?", "no") not in asked(FOX, 300)


def test_nothing_is_asked_about_a_picture_of_which_nothing_is_known():
    assert asked(picture(9)) == set() and facts_of(FOX.sample) is None


def test_changes_lead_from_one_picture_to_another():
    found = {
        (before.sample.key, after.sample.key): text
        for before, text, after in edits(ALL, np.random.default_rng(0))
    }
    pairs = {
        ("p0", "p1"),
        ("p0", "p3"),
        ("p3", "p0"),
        ("p2", "p3"),
        ("p3", "p2"),
        ("p2", "p4"),
        ("p4", "p2"),
        ("p0", "p5"),
        ("p2", "p6"),
    }
    assert (
        set(found) == pairs
    )  # no fox was blue from the beginning, so there is nothing that becomes the house above
    assert "blue" in found["p0", "p1"] and "a house" in found["p0", "p3"] and "the house" in found["p3", "p0"]
    assert "two" in found["p0", "p5"] and "red" in found["p2", "p6"]


def test_conversations_hold_pictures_in_the_order_they_are_spoken_of():
    for about, talk in dialogues_about(ALL, 0):
        assert talk.sample.key == f"{about.key}-talk"
        drawn = sum(answer == "<image>" for _, answer in talk.sample.turns)
        assert 1 <= len(talk.images) <= 2 and len(talk.images) - drawn in (0, 1)
        assert all(question and answer for question, answer in talk.sample.turns)
    assert dialogues_about(ALL, 0)[0][1].sample.turns == dialogues_about(ALL, 0)[0][1].sample.turns
    held = [dataclasses.replace(each, sample=dataclasses.replace(each.sample, held_out=True)) for each in ALL]
    assert all(talk.sample.held_out for _, talk in dialogues_about(held, 0))


VOCAB = Vocab(
    size=300,
    first_code_id=260,
    codebook_size=8,
    codes_per_image=4,
    bos_id=1,
    eos_id=2,
    boi_id=270,
    eoi_id=271,
)


def test_pictures_are_answers_where_the_conversation_says_so():
    writer = ExampleBuilder(VOCAB, lambda text: [3 + byte for byte in text.encode()], TEMPLATES["own-talk"])
    two = CodeSample(
        Sample("t", turns=(("make it blue", "<image>"), ("what is it?", "a fox"))),
        FOX.images + BLUE_FOX.images,
    )
    before, after = (VOCAB.codes_to_ids(each.images[0]) for each in (FOX, BLUE_FOX))
    seen = {}
    for seed in range(20):
        example = writer.conversed(two, np.random.default_rng(seed))
        seen[tuple(example.ids[-example.answer :])] = example.ids
    assert set(seen) == {(*after, 2), (*(3 + byte for byte in b"a fox"), 2)}
    first, second = seen[(*after, 2)], seen[tuple([*(3 + byte for byte in b"a fox"), 2])]
    assert first[1 : 1 + len(before)] == before and second[: len(first) - 1] == first[:-1]
    asked = TEMPLATES["own-talk"].for_edit(VOCAB, writer.tokenize, "make it blue", [FOX.images[0]])
    assert first[: len(asked)] == asked  # what `edit` asks is what was learnt


def test_lines_of_a_file_beside_a_recipe(tmp_path):
    (tmp_path / "words.txt").write_text("a\nb c\n")
    recipe = tmp_path / "r.toml"
    recipe.write_text('kind = "k"\nwords = "@words.txt"\n')

    @dataclasses.dataclass
    class Kind:
        words: tuple[str, ...]

    assert load_recipe({"k": Kind}, str(recipe), []).words == ("a", "b c")
    (tmp_path / "words.txt").unlink()
    with pytest.raises(DataError, match=r"words\.txt cannot be read"):
        load_recipe({"k": Kind}, str(recipe), [])


def test_a_model_learns_to_answer_and_to_change_and_its_bundle_does(tiny, tmp_path, examples):
    """The last stages of the embedded model, small: `train start`, `train llm`, `export`, `ask`, `edit`,
    `chat`.
    """
    start, codes, talk, out, bundle = (
        tmp_path / name for name in ("start", "codes", "talk", "reward", "bundle")
    )
    call("train", "start", "--bundle", tiny, "--out", start)
    write_code_shards(codes, SPACE, [*ALL, *ALL])
    small = [
        "--set=schedule.steps=8",
        "--set=schedule.batch_size=4",
        "--set=max_length=160",
        "--set=schedule.save_every=8",
    ]
    call("train", "llm", "--recipe", "mini-talk", "--llm", start, "--codes", codes, "--out", talk, *small)
    call("train", "llm", "--recipe", "mini-reward", "--llm", talk, "--codes", codes, "--out", out, *small)
    # bytes are too coarse for a model of 32 random numbers a row: on some processors they differ by more than
    # Q8_0 may
    call("export", "--ckpt", tiny, "--llm", out, "--out", bundle, "--weight-type", "F16")
    language = Bundle.open(bundle).language
    assert language.prompts == TEMPLATES["own-talk"] and language.context_length == 160
    layers = [
        GgufHeader.read(file).number("block_count") for file in (tiny / "llm.gguf", bundle / language.file)
    ]
    assert layers[1] == layers[0] + 2
    with seed_edge.load(bundle, device="cpu") as edge:
        photo = examples / "coffee.jpg"
        assert isinstance(edge.ask([photo], "what is this?"), str)
        assert edge.edit(photo, "make it blue", seed=1).image.size == (16, 16)
        assert next(Conversation(edge).say("a fox", draw=True)).shape == (4,)
