"""One opened bundle, used by several threads, by a forked process, for a long time, and by a conversation beside all that."""

import dataclasses
import gc
import multiprocessing
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

import seed_edge
from seed_edge.errors import BundleError, DeviceError
from seed_edge.memory import resident_memory
from seed_edge.prompts import Prompts
from seed_edge.runtime.conversation import Conversation

CAPTIONS = 1000
GROWTH = 1.05


def pictures(count):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)) for _ in range(count)]


def test_threads_get_what_one_would_get(edge):
    shown = pictures(12)
    jobs = [lambda each=each: edge.caption(each, beams=2) for each in shown]
    jobs += [lambda each=each: edge.caption(each) for each in shown]
    jobs += [lambda seed=seed: edge.draw("a thing", seed=seed).image.tobytes() for seed in range(12)]
    jobs += [lambda each=each: edge.encode([each]).tolist() for each in shown]
    alone = [job() for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert [each.result() for each in [pool.submit(job) for job in jobs]] == alone


def test_captions_of_several_threads_are_read_turn_by_turn(edge):
    shown = pictures(6)
    alone = list(edge.captions(shown))
    with ThreadPoolExecutor(4) as pool:
        assert all(found == alone for found in pool.map(lambda _: list(edge.captions(shown)), range(8)))


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_is_refused_and_may_open_its_own(edge, tiny):
    picture = pictures(1)[0]
    wanted = edge.caption(picture)

    def child(told):
        try:
            edge.caption(picture)
        except DeviceError as error:
            told.send(str(error))
        with seed_edge.load(tiny, device="cpu") as own:
            told.send(own.caption(picture))

    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=child, args=(there,))
    process.start()
    try:
        assert here.poll(60) and "open it again in this process" in here.recv()
        assert here.poll(60) and here.recv() == wanted
    finally:
        process.kill()
        process.join()


def test_memory_does_not_grow_with_the_number_of_captions(edge):
    shown = pictures(16)

    def caption(count):
        for number in range(count):
            edge.caption(shown[number % 16])
        gc.collect()
        return resident_memory()

    before = caption(CAPTIONS // 10)  # what is kept for the next time is there by then
    after = caption(CAPTIONS)
    if before is None:
        pytest.skip("this system does not tell how much memory is held")
    assert after < GROWTH * before


@pytest.fixture
def talking(tiny):
    """The tiny bundle, said to have been taught to converse."""
    taught = {"turn": "U: {images}{text}\nA:", "before_answer": " ", "between_turns": "\n"}

    def opened(**options):
        edge = seed_edge.load(tiny, device="cpu", **options)
        language = edge.bundle.language
        prompts = Prompts(**{**dataclasses.asdict(language.prompts), **taught})
        manifest = dataclasses.replace(
            edge.bundle.manifest, language=dataclasses.replace(language, prompts=prompts)
        )
        edge.engine.bundle = edge.engine.images._bundle = edge.engine.parts._bundle = dataclasses.replace(
            edge.bundle, manifest=manifest
        )
        return edge

    return opened


def plain(pieces):
    return [piece if isinstance(piece, str) else piece.tolist() for piece in pieces]


def test_a_conversation_is_not_disturbed_by_what_else_is_asked(talking):
    with talking() as quiet, talking() as busy:
        alone, beside = Conversation(quiet), Conversation(busy)
        for text in ("a red fox", "and a house"):
            wanted = plain(alone.say(text))
            found = []
            for piece in beside.say(text):
                found.append(piece)
                busy.caption(pictures(1)[0], beams=2)
                busy.draw_codes("a thing")
            assert plain(found) == wanted


def test_two_conversations_go_on_side_by_side(talking):
    with talking() as edge:
        first, second, third = (Conversation(edge) for _ in range(3))
        mixed = [plain(each) for each in zip(first.say("a red fox"), second.say("a red fox"), strict=True)]
        assert [a for a, _ in mixed] == [b for _, b in mixed] == plain(third.say("a red fox"))
        first.close()
        assert plain(first.say("and a house")) == plain(second.say("and a house"))


def test_a_model_that_had_to_go_in_the_middle_of_an_answer_says_so(talking):
    with talking(low_memory=True) as edge:
        talk = Conversation(edge)
        pieces = talk.say("a photo of a cat")
        next(pieces)
        edge.encode(pictures(1))
        with pytest.raises(BundleError, match="was closed while it was in use; call again"):
            next(pieces)
        assert list(talk.say("a photo of a cat"))
