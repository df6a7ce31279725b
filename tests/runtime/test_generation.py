import numpy as np
import pytest

from seed_edge.manifest import Sampling
from seed_edge.runtime.generation import (
    GREEDY,
    ClassifierFreeGuidance,
    LogitEnsemble,
    beam_search,
    generate_interleaved,
    generate_text,
    sample_codes,
    sample_codes_batch,
    sample_token,
    top_k_top_p,
)
from seed_edge.vocab import Vocab

VOCAB = Vocab(
    size=20, first_code_id=10, codebook_size=8, codes_per_image=4, bos_id=1, eos_id=2, boi_id=18, eoi_id=19
)


class Scripted:
    """A language model that always wants the same ids, and records what it is fed."""

    def __init__(self, *wanted: int) -> None:
        self.wanted, self.fed, self.room = wanted, [], None

    def prefill(self, ids, room):
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
    codes = sample_codes(model, VOCAB, [1, 18], GREEDY, seed=0)
    assert codes.tolist() == [3, 3, 3, 3]
    assert model.fed == [1, 18, 13, 13, 13] and model.room == 4


def test_a_caption_is_text_only_and_ends_at_eos():
    model = Scripted(11, 18, 19, 1, 5)  # a code, BOI, EOI and BOS before text
    assert generate_text(model, VOCAB, [1], GREEDY, seed=0, max_ids=3) == [5, 5, 5]
    assert generate_text(Scripted(11, 2), VOCAB, [1], GREEDY, seed=0, max_ids=3) == []


def test_guidance_leaves_behind_what_is_drawn_unasked():
    asked, unasked = (
        Scripted(11, 12),
        Scripted(11),
    )  # asked, code 2 comes second; unasked it does not come at all
    wanted = [
        sample_codes(ClassifierFreeGuidance(asked, unasked, [18], g), VOCAB, [1, 18], GREEDY, 0).tolist()
        for g in (1, 20)
    ]
    assert wanted == [[1] * 4, [2] * 4]
    assert asked.fed == [1, 18, 12, 12, 12] and unasked.fed == [18, 12, 12, 12] and unasked.room == 4


class Branching(Scripted):
    def step_branches(self, ids, parents):
        self.fed.append((list(ids), list(parents)))
        return np.tile(self._logits(), (len(ids), 1))


def test_several_drawings_are_written_side_by_side_the_first_as_it_would_be_alone():
    hot, seen = Sampling(2.0, 0, 1.0, best_of=5), []
    several = sample_codes_batch(
        Branching(), VOCAB, [1, 18], hot, 3, progress=lambda done, total: seen.append((done, total))
    )
    assert several.shape == (5, 4) and len({tuple(codes) for codes in several.tolist()}) > 3
    assert several[0].tolist() == sample_codes(Scripted(), VOCAB, [1, 18], hot, 3).tolist()
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert not (sample_codes_batch(Branching(), VOCAB, [1, 18], hot, 4) == several).all()


def test_each_of_several_drawings_follows_its_own_codes():
    model, hot = Branching(), Sampling(1.0, 0, 1.0, best_of=3)
    codes = sample_codes_batch(model, VOCAB, [1, 18], hot, 0)
    assert model.fed == [
        1,
        18,
        *(((codes[:, i] + 10).tolist(), [0, 0, 0] if i == 0 else [0, 1, 2]) for i in range(3)),
    ]
    assert model.room == 4


def test_guidance_leads_several_drawings_too():
    asked, unasked = Branching(11, 12), Branching(11)
    guided = ClassifierFreeGuidance(asked, unasked, [18], 20)
    assert (
        sample_codes_batch(guided, VOCAB, [1, 18], Sampling(0.1, 0, 1.0, best_of=2), 0).tolist()
        == [[2] * 4] * 2
    )


def test_progress_counts_codes():
    seen = []
    sample_codes(
        Scripted(12), VOCAB, [18], GREEDY, 0, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_the_seed_decides():
    sampling = Sampling(1.0, 0, 1.0)
    drawn = [sample_codes(Scripted(), VOCAB, [18], sampling, seed).tolist() for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_sampling_follows_the_distribution():
    rng = np.random.default_rng(0)
    logits = np.log(np.array([0.1, 0.6, 0.3], np.float32))
    drawn = [sample_token(logits, Sampling(1.0, 0, 1.0), rng) for _ in range(4000)]
    assert np.bincount(drawn) / 4000 == pytest.approx([0.1, 0.6, 0.3], abs=0.03)


def test_top_k_and_top_p_cut_the_tail():
    rng = np.random.default_rng(0)
    logits = np.log(np.array([0.1, 0.6, 0.3], np.float32))
    assert {sample_token(logits, Sampling(1.0, 1, 1.0), rng) for _ in range(200)} == {1}
    assert {sample_token(logits, Sampling(1.0, 2, 1.0), rng) for _ in range(200)} == {1, 2}
    assert {sample_token(logits, Sampling(1.0, 0, 0.5), rng) for _ in range(200)} == {1}
    assert {sample_token(logits, Sampling(1.0, 0, 0.8), rng) for _ in range(200)} == {1, 2}


@pytest.mark.parametrize("top_p", [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("spread", [0.0, 1.0, 4.0])
def test_of_the_likeliest_each_is_drawn_as_often_as_it_should_be(top_p, spread):
    rng = np.random.default_rng(0)
    logits = (spread * rng.standard_normal(40)).round().astype(np.float32)  # with equal ones among them
    logits[7] = -np.inf
    weights = np.exp(logits.astype(np.float64))
    kept = top_k_top_p(weights, 0, top_p)
    wanted = np.zeros(40)
    wanted[kept] = weights[kept] / weights[kept].sum()
    found = (
        np.bincount([sample_token(logits, Sampling(1.0, 0, top_p), rng) for _ in range(6000)], minlength=40)
        / 6000
    )
    assert set(np.flatnonzero(found)) <= set(kept) and found == pytest.approx(wanted, abs=0.03)


def test_what_is_masked_is_never_drawn_even_when_hot():
    rng = np.random.default_rng(0)
    logits = np.array([-np.inf, 0.0, -np.inf, -5.0], np.float32)
    assert {sample_token(logits, Sampling(50.0, 0, 1.0), rng) for _ in range(500)} == {1, 3}


class Tree:
    """A language model whose probabilities depend on all that was written; others than those named share the rest."""

    def __init__(self, **following: dict[int, float]) -> None:
        self.following, self.branches, self.widths = following, [()], []

    def prefill(self, ids, room):
        self.branches = [()]
        return self._logits(())

    def step_branches(self, ids, parents):
        self.branches = [
            (*self.branches[parent], token_id) for token_id, parent in zip(ids, parents, strict=True)
        ]
        self.widths.append(len(ids))
        return np.stack([self._logits(written) for written in self.branches])

    def _logits(self, written):
        probabilities = np.full(VOCAB.size, 1e-6, np.float32)
        for token_id, probability in self.following.get("_".join(["", *map(str, written)]), {}).items():
            probabilities[token_id] = probability
        return np.log(probabilities)


def test_a_likely_whole_beats_a_likely_beginning():
    # 5 begins likelier, but is followed by nothing likely; 6 7 is what is meant. Codes (12) are never text.
    tree = Tree(
        **{"": {5: 0.5, 6: 0.4, 12: 0.9}, "_5": {3: 0.2, 4: 0.2, 2: 0.2}, "_6": {7: 0.95}, "_6_7": {2: 0.95}}
    )
    assert beam_search(tree, VOCAB, [1], 1, 8)[0] == 5
    assert beam_search(tree, VOCAB, [1], 2, 8) == [6, 7]
    assert max(tree.widths) == 2


def test_one_beam_is_the_likeliest_id_each_time():
    tree = Tree(**{"": {5: 0.6}, "_5": {6: 0.6}, "_5_6": {2: 0.6}})
    assert beam_search(tree, VOCAB, [1], 1, 8) == [5, 6]


def test_a_text_that_never_ends_is_cut():
    assert beam_search(Tree(**{"": {5: 0.6}, "_5": {6: 0.6}, "_5_6": {7: 0.6}}), VOCAB, [1], 2, 3) == [
        5,
        6,
        7,
    ]


def test_a_text_may_be_empty():
    assert beam_search(Tree(**{"": {2: 0.9}}), VOCAB, [1], 2, 8) == []


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 0.5), (0, 0.999), (0, 1e-9), (7, 0.8), (7, 1), (5000, 0.9), (300, 1)]
)
@pytest.mark.parametrize("spread", [0.01, 3.0])
def test_the_likeliest_are_those_of_a_full_sort(top_k, top_p, spread):
    weights = np.exp(np.random.default_rng(1).normal(0, spread, 3000))
    weights[5] = weights[6] = weights[7] = weights.max()  # the first of equals comes first
    order = np.argsort(-weights, kind="stable")[: top_k or None]
    cumulative = np.cumsum(weights[order])
    wanted = order[: int(np.searchsorted(cumulative, top_p * cumulative[-1])) + 1] if top_p < 1 else order
    assert top_k_top_p(weights, top_k, top_p).tolist() == wanted.tolist()


def test_without_limits_all_are_kept():
    assert top_k_top_p(np.array([0.1, 0.5, 0.4]), 0, 1).tolist() == [0, 1, 2]


def test_what_two_prompts_agree_on_is_written():
    one = Tree(**{"": {5: 0.6, 6: 0.3}, "_6": {2: 0.9}, "_5": {2: 0.9}})
    two = Tree(**{"": {7: 0.6, 6: 0.3}, "_6": {2: 0.9}, "_7": {2: 0.9}})
    assert beam_search(one, VOCAB, [1], 2, 4) == [5] and beam_search(two, VOCAB, [1], 2, 4) == [7]
    assert beam_search(LogitEnsemble([one, two], [[1], [2]]), VOCAB, [1], 2, 4) == [6]


class Reciting:
    """Says ids one after the other, whatever it reads; tells what it read."""

    def __init__(self, vocab, script):
        self.vocab, self.script, self.read = vocab, list(script), []

    def _next(self):
        logits = np.zeros(self.vocab.size, np.float32)
        if self.script:
            logits[self.script.pop(0)] = 9
        return logits

    def prefill(self, ids, room):
        self.read += ids
        return self._next()

    def step(self, token_id):
        self.read.append(token_id)
        return self._next()


VOCAB_OF_THREE_CODES = Vocab(
    size=20, first_code_id=10, codebook_size=4, codes_per_image=3, bos_id=1, eos_id=2, boi_id=14, eoi_id=15
)


def test_an_answer_may_hold_text_and_pictures():
    vocab = VOCAB_OF_THREE_CODES
    after = 0  # what is said after the last code counts for nothing: EOI follows
    script = [5, vocab.boi_id, 11, 10, 13, after, 6, vocab.boi_id, 12, 12, 12, after, vocab.eos_id]
    model = Reciting(vocab, script)
    said = [
        each if isinstance(each, int) else each.tolist()
        for each in generate_interleaved(model, vocab, [1], GREEDY, GREEDY, 0, 40)
    ]
    assert said == [5, [1, 0, 3], 6, [2, 2, 2]]
    assert model.read == [1, 5, 14, 11, 10, 13, 15, 6, 14, 12, 12, 12, 15]


def test_a_picture_is_not_begun_where_it_does_not_fit():
    vocab = VOCAB_OF_THREE_CODES
    for room, pictures in ((5, 1), (4, 0)):
        model = Reciting(vocab, [vocab.boi_id, 11, 11, 11, *[7] * 9])
        said = list(generate_interleaved(model, vocab, [1], GREEDY, GREEDY, 0, room))
        assert sum(not isinstance(each, int) for each in said) == pictures
