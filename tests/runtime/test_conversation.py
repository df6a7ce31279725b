import json
import shutil

import numpy as np
import pytest

import seed_edge
from seed_edge.errors import PromptError
from seed_edge.manifest import MANIFEST
from seed_edge.runtime import conversation as conversation_module
from seed_edge.runtime.conversation import Conversation
from seed_edge.runtime.language_model import LlamaCpp

TURN = {"turn": "U: {images}{text}\nA:", "before_answer": " ", "between_turns": "\n"}


@pytest.fixture(scope="module")
def chatty(tiny, tmp_path_factory):
    """The tiny bundle, said to have been taught to converse."""
    folder = tmp_path_factory.mktemp("chatty") / "bundle"
    shutil.copytree(tiny, folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["language"]["prompts"] |= TURN
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def edge(chatty):
    with seed_edge.load(chatty, device="cpu") as opened:
        yield opened


def detokenize(pieces):
    return "".join(piece for piece in pieces if isinstance(piece, str))


def test_an_answer_is_what_the_model_says_to_all_turns(edge, examples):
    talk = Conversation(edge)
    first = detokenize(talk.say("what is this", [examples / "coffee.jpg"]))
    second = detokenize(talk.say("and this"))
    model, language = edge.engine.language_model, edge.bundle.language
    alone = Conversation(edge)
    alone.turns = list(talk.turns[:1])
    assert detokenize(alone.say("and this")) == second
    assert detokenize(talk.turns[0].answer) == first and len(talk.turns[0].images) == 1
    ids = language.prompts.for_conversation(language.vocab, model.tokenize, talk.turns)
    assert sum(language.vocab.is_code(token_id) for token_id in ids) == language.vocab.codes_per_image


def test_what_was_read_is_not_read_again(edge, examples, monkeypatch):
    talk, read, decode = Conversation(edge), [], LlamaCpp._decode
    list(talk.say("what is this", [examples / "coffee.jpg"]))
    monkeypatch.setattr(LlamaCpp, "_decode", lambda self, ids: (read.append(len(ids)), decode(self, ids))[1])
    list(talk.say("and this"))
    model, language = edge.engine.language_model, edge.bundle.language
    whole = language.prompts.for_conversation(language.vocab, model.tokenize, talk.turns)
    answered = language.prompts.for_conversation(language.vocab, model.tokenize, talk.turns[:1])
    assert (
        0 < read[0] < len(whole) - len(answered) / 2
    )  # the first piece that is read leaves out at least the first prompt


def test_an_exchange_that_is_taken_back_leaves_no_trace(edge):
    talk = Conversation(edge, temperature=1.0, seed=3)
    list(talk.say("hello"))
    second = detokenize(talk.say("a red fox"))
    list(talk.say("and a house"))
    assert talk.undo() and talk.undo()
    assert detokenize(talk.say("a red fox")) == second
    talk.clear()
    assert not talk.undo() and talk.turns == []


def test_an_answer_may_be_a_picture_and_is_read_in_the_next_turn(edge):
    talk, vocab = Conversation(edge), edge.bundle.language.vocab
    (codes,) = talk.say("a red fox", draw=True)
    assert codes.shape == (vocab.codes_per_image,) and codes.max() < vocab.codebook_size
    list(talk.say("what is it"))
    model, language = edge.engine.language_model, edge.bundle.language
    ids = language.prompts.for_conversation(vocab, model.tokenize, talk.turns)
    assert [token_id - vocab.first_code_id for token_id in ids if vocab.is_code(token_id)] == codes.tolist()


def test_pieces_come_one_by_one_and_make_the_whole(edge):
    talk = Conversation(edge)
    pieces = list(talk.say("a photo of a cat"))
    assert len(pieces) > 1 and detokenize(pieces) == detokenize(talk.turns[-1].answer)


def test_an_answer_that_is_stopped_is_kept_as_far_as_it_came(edge):
    talk = Conversation(edge)
    pieces = talk.say("a photo of a cat")
    begun = next(pieces)
    pieces.close()
    assert talk.turns[-1].answer == (begun,)
    assert detokenize(talk.say("and a dog"))


def test_the_oldest_turns_are_forgotten_where_the_context_is_short(edge):
    talk, language = Conversation(edge), edge.bundle.language
    for number in range(12):
        assert list(talk.say(f"a photo of a cat and a dog {number}"))
    room = min(conversation_module.MAX_ANSWER_IDS, language.context_length // 2)
    ids = talk._prompt_that_fits(room)
    assert len(ids) + room <= language.context_length
    whole = language.prompts.for_conversation(language.vocab, edge.engine.language_model.tokenize, talk.turns)
    assert len(whole) > language.context_length and ids[-5:] == whole[-5:]


def test_a_message_that_is_refused_leaves_the_conversation_as_it_was(edge):
    talk = Conversation(edge)
    list(talk.say("hello"))
    for text, words in (("  ", "the prompt is empty"), ("a photo of a cat " * 40, "ids")):
        with pytest.raises(PromptError, match=words):
            list(talk.say(text))
        assert len(talk.turns) == 1


def test_a_conversation_is_kept_and_gone_on_with(edge, examples, tmp_path):
    talk = Conversation(edge)
    list(talk.say("what is this", [examples / "coffee.jpg"]))
    list(talk.say("a red fox", draw=True))
    talk.save(tmp_path / "talk.json")
    again = Conversation(edge)
    again.load(tmp_path / "talk.json")
    assert detokenize(again.say("well")) == detokenize(talk.say("well"))
    assert np.array_equal(again.turns[0].images[0], talk.turns[0].images[0])


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", '{"format": 2, "turns": []}', '{"format": 1}', '{"format": 1, "turns": [{"text": "a"}]}',
        '{"format": 1, "turns": [{"text": "a", "images": [[1, 2]], "answer": []}]}',
        '{"format": 1, "turns": [{"text": "a", "images": [], "answer": [[1, 2, 3, 99]]}]}',
        '{"format": 1, "turns": [{"text": "a", "images": [["x", 1, 1, 1]], "answer": []}]}', "[" * 100000,
    ],
)  # fmt: skip
def test_a_file_that_is_no_conversation_is_refused_and_loses_nothing(edge, tmp_path, content):
    talk = Conversation(edge)
    list(talk.say("hello"))
    (tmp_path / "talk.json").write_text(content)
    with pytest.raises(PromptError, match=r"talk\.json is not a saved conversation"):
        talk.load(tmp_path / "talk.json")
    with pytest.raises(PromptError, match="is not a saved conversation"):
        talk.load(tmp_path / "none.json")
    assert len(talk.turns) == 1


def test_a_model_that_was_not_taught_to_converse_is_refused(tiny):
    with (
        seed_edge.load(tiny, device="cpu") as edge,
        pytest.raises(PromptError, match="was not trained on dialogues"),
    ):
        Conversation(edge)
