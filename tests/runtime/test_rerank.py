import numpy as np
import pytest

from seed_edge.manifest import Language, Sampling
from seed_edge.prompts import Prompts
from seed_edge.runtime.rerank import CODE_WEIGHT, log_probability, rerank
from seed_edge.vocab import Vocab

VOCAB = Vocab(
    size=20, first_code_id=10, codebook_size=8, codes_per_image=4, bos_id=1, eos_id=2, boi_id=18, eoi_id=19
)
LANGUAGE = Language(
    "llm.gguf", VOCAB, Prompts("{bos}{images}", "{bos}{text}{boi}"), Sampling(1.0, 0, 1.0), 64, 8
)


class Knowing:
    """Believes in some texts, each a prompt with what follows, more than in all others."""

    def __init__(self, believed):
        self.believed, self.asked = believed, []

    def score(self, prompt, said):
        self.asked.append((list(prompt), list(said)))
        logits = np.zeros((len(said), 20), np.float32)
        for row, token_id in enumerate(said):
            logits[row, token_id] = self.believed.get((tuple(prompt), tuple(said)), 0)
        return logits


def chosen(believed, seen, words=()):
    return rerank(
        Knowing(believed), lambda text: [5], LANGUAGE, [1, 5, 18], words, [np.array(codes) for codes in seen]
    )


A, B, C = [0, 1, 2, 3], [4, 4, 4, 4], [7, 6, 5, 4]
SEEN = {name: tuple(10 + code for code in codes) for name, codes in (("A", A), ("B", B), ("C", C))}
NAMED = {name: (1, 18, *ids, 19) for name, ids in SEEN.items()}


def test_what_would_have_been_drawn_for_the_words_is_kept():
    assert chosen({((1, 5, 18), SEEN["C"]): 3.0}, [A, B, C]) == 2
    assert chosen({((1, 5, 18), SEEN["C"]): 3.0, ((1, 5, 18), SEEN["B"]): 4.0}, [A, B, C]) == 1


def test_what_would_be_called_that_is_kept_and_counts_more_than_codes():
    named = {(NAMED["B"], (5, 6)): 3.0}
    assert chosen(named, [A, B, C], [5, 6]) == 1
    assert chosen(named | {((1, 5, 18), SEEN["C"]): 3.0}, [A, B, C], [5, 6]) == 1
    assert chosen(named, [A, B, C]) == 0  # without words nobody is asked for a name; the first of equals


@pytest.mark.parametrize(("codes", "kept"), [(3.5, 1), (4.6, 2)])
def test_a_nat_of_codes_counts_a_quarter_of_one_of_words(codes, kept):
    """One id of words believed in with about 1 nat more, against four codes with `codes` nats more, all together."""
    one = float(root(lambda logit: gain(logit, 1, int(VOCAB.text_mask().sum())) - 1))
    four = float(root(lambda logit: gain(logit, 4, VOCAB.codebook_size) - codes))
    assert chosen({(NAMED["B"], (5,)): one, ((1, 5, 18), SEEN["C"]): four}, [A, B, C], [5]) == kept


def gain(logit, count, choices):
    """Nats that `count` ids gain, each with a logit beside zeros."""
    return count * (logit - np.log(choices - 1 + np.exp(logit)) + np.log(choices))


def root(function):
    """Where an increasing function is zero, by halving."""
    low, high = 0.0, 60.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < 0 else (low, middle)
    return low


def test_all_that_looks_different_is_read_once_in_both_directions():
    model = Knowing({})
    rerank(model, lambda text: [5], LANGUAGE, [1, 5, 18], [5], [np.array(A), np.array(B), np.array(A)])
    assert model.asked == [
        ([1, 5, 18], list(SEEN["A"])),
        (list(NAMED["A"]), [5]),
        ([1, 5, 18], list(SEEN["B"])),
        (list(NAMED["B"]), [5]),
    ]
    assert 0 < CODE_WEIGHT < 1


def test_a_caption_longer_than_the_context_is_judged_as_far_as_it_fits():
    model, words = Knowing({}), [5, 6] * 40
    rerank(model, lambda text: [5], LANGUAGE, [1, 5, 18], words, [np.array(A)])
    assert [len(prompt) + len(said) for prompt, said in model.asked] == [3 + 4, LANGUAGE.context_length]
    assert model.asked[1][1] == words[: LANGUAGE.context_length - 7]


def test_a_probability_is_among_what_may_follow():
    allowed = np.zeros(20, bool)
    allowed[[3, 4, 5, 6]] = True
    assert log_probability(Knowing({}), [1], [3, 4], allowed) == pytest.approx(2 * np.log(1 / 4))
    sure = log_probability(Knowing({((1,), (3,)): 500.0}), [1], [3], allowed)
    assert sure == pytest.approx(0, abs=1e-9)  # no overflow
