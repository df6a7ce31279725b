import numpy as np
import pytest

from seed_edge.manifest import Sampling
from seed_edge.runtime.decoding import GREEDY, Guided, pick, write_codes, write_text
from seed_edge.vocab import Vocab

VOCAB = Vocab(size=20, first_code_id=10, codebook_size=8, codes_per_image=4, bos_id=1, eos_id=2, boi_id=18, eoi_id=19)


class Scripted:
    """A language model that always wants the same ids, and records what it is fed."""

    def __init__(self, *wanted: int) -> None:
        self.wanted, self.fed, self.room = wanted, [], None

    def start(self, ids, room):
        self.fed, self.room = list(ids), room
        return self._logits()

    def step(self, token_id):
        self.fed.append(token_id)
        return self._logits()

    def _logits(self):
        logits = np.zeros(20, np.float32)
        for rank, token_id in enumerate(self.wanted):
            logits[token_id] = 10 - rank
        return logits


def test_a_drawing_is_exactly_as_many_codes_as_an_image_has_whatever_the_model_wants():
    model = Scripted(2, 19, 5, 13)  # EOS, EOI and text before code 3
    codes = write_codes(model, VOCAB, [1, 18], GREEDY, seed=0)
    assert codes.tolist() == [3, 3, 3, 3]
    assert model.fed == [1, 18, 13, 13, 13] and model.room == 4


def test_a_caption_is_text_only_and_ends_at_eos():
    model = Scripted(11, 18, 19, 1, 5)  # a code, BOI, EOI and BOS before text
    assert write_text(model, VOCAB, [1], GREEDY, seed=0, max_ids=3) == [5, 5, 5]
    assert write_text(Scripted(11, 2), VOCAB, [1], GREEDY, seed=0, max_ids=3) == []


def test_guidance_leaves_behind_what_is_drawn_unasked():
    asked, unasked = Scripted(11, 12), Scripted(11)  # asked, code 2 comes second; unasked it does not come at all
    wanted = [write_codes(Guided(asked, unasked, [18], g), VOCAB, [1, 18], GREEDY, 0).tolist() for g in (1, 20)]
    assert wanted == [[1] * 4, [2] * 4]
    assert asked.fed == [1, 18, 12, 12, 12] and unasked.fed == [18, 12, 12, 12] and unasked.room == 4


def test_progress_counts_codes():
    seen = []
    write_codes(Scripted(12), VOCAB, [18], GREEDY, 0, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_the_seed_decides():
    sampling = Sampling(1.0, 0, 1.0)
    drawn = [write_codes(Scripted(), VOCAB, [18], sampling, seed).tolist() for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_sampling_follows_the_distribution():
    rng = np.random.default_rng(0)
    logits = np.log(np.array([0.1, 0.6, 0.3], np.float32))
    drawn = [pick(logits, Sampling(1.0, 0, 1.0), rng) for _ in range(4000)]
    assert np.bincount(drawn) / 4000 == pytest.approx([0.1, 0.6, 0.3], abs=0.03)


def test_top_k_and_top_p_cut_the_tail():
    rng = np.random.default_rng(0)
    logits = np.log(np.array([0.1, 0.6, 0.3], np.float32))
    assert {pick(logits, Sampling(1.0, 1, 1.0), rng) for _ in range(200)} == {1}
    assert {pick(logits, Sampling(1.0, 2, 1.0), rng) for _ in range(200)} == {1, 2}
    assert {pick(logits, Sampling(1.0, 0, 0.5), rng) for _ in range(200)} == {1}
    assert {pick(logits, Sampling(1.0, 0, 0.8), rng) for _ in range(200)} == {1, 2}


def test_what_is_masked_is_never_drawn_even_when_hot():
    rng = np.random.default_rng(0)
    logits = np.array([-np.inf, 0.0, -np.inf, -5.0], np.float32)
    assert {pick(logits, Sampling(50.0, 0, 1.0), rng) for _ in range(500)} == {1, 3}
