import numpy as np
import pytest
import torch

from seed_edge.data.code_shards import CodeSample
from seed_edge.data.samples import Sample
from seed_edge.errors import DataError
from seed_edge.prompts import TEMPLATES
from seed_edge.train.language.examples import ExampleBuilder
from seed_edge.train.language.new_llama import new_llama
from seed_edge.train.language.recipes import LlamaRecipe
from seed_edge.train.language.scst import CiderReward, RewardRecipe, reward_losses, sample_texts
from seed_edge.vocab import Vocab

WORDS = ["dog", "cat", "runs", "sleeps", "red", "blue"]
VOCAB = Vocab(
    size=22, first_code_id=10, codebook_size=8, codes_per_image=2, bos_id=1, eos_id=2, boi_id=18, eoi_id=19
)
SHAPE = RewardRecipe(images_per_step=4, captions_per_image=6, max_length=4)


def ids_of(text):
    return [3 + WORDS.index(word) for word in text.split()]


def detokenize(ids):
    return " ".join(WORDS[i - 3] if 3 <= i < 3 + len(WORDS) else "?" for i in ids)


def picture(number, *captions):
    return CodeSample(Sample(str(number), captions=captions), (np.array([number, 7 - number]),))


@pytest.fixture
def worth():
    samples = [
        picture(0, "red dog runs", "dog runs"),
        picture(1, "blue cat sleeps", "cat sleeps"),
        picture(2, "red cat runs"),
    ]
    samples.append(CodeSample(Sample("label only", label="fox"), (np.array([3, 4]),)))
    return CiderReward(samples, ExampleBuilder(VOCAB, ids_of, TEMPLATES["own"]), detokenize, SHAPE)


def test_what_people_said_is_worth_more_than_what_they_did_not(worth):
    assert len(worth.samples) == 3
    told = torch.tensor(
        [
            [*ids_of("dog runs"), 2, 2],
            [*ids_of("cat sleeps"), 2, 5],
            [*ids_of("blue cat sleeps"), 2],
            [2, 2, 2, 2],
        ]
    )
    own, other, whole, nothing = worth.scores([0, 0, 1, 1], told, VOCAB.eos_id).tolist()
    assert whole > own > 1 > 0.1 > other and nothing == 0


def test_texts_are_drawn_up_to_their_end_and_hold_no_code(worth):
    model = new_llama(VOCAB, LlamaRecipe(10, 32, 1, 2, 32), 0)
    prompts = worth.batch(np.random.default_rng(0))["prompts"].repeat(50, 1)
    torch.manual_seed(0)
    told = sample_texts(model, prompts, torch.from_numpy(VOCAB.text_mask()), VOCAB.eos_id, 6)
    assert told.shape == (200, 6) and torch.from_numpy(VOCAB.text_mask())[told].all()
    after = (told == VOCAB.eos_id).long().cumsum(1) > 0
    assert (told[after] == VOCAB.eos_id).all() and not after[:, 0].all()
    with torch.no_grad():  # as likely as without a cache
        first = (
            model(prompts[:1])
            .logits[0, -1]
            .masked_fill(~torch.from_numpy(VOCAB.text_mask()), -torch.inf)
            .softmax(-1)
        )
    often = (
        torch.bincount(told[prompts.eq(prompts[0]).all(1), 0], minlength=VOCAB.size)
        / prompts.eq(prompts[0]).all(1).sum()
    )
    assert (often - first).abs().max() < 0.2


def test_captions_become_what_people_said(worth):
    torch.manual_seed(0)
    model = new_llama(VOCAB, LlamaRecipe(10, 32, 1, 2, 32), 0)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    rng, missed = np.random.default_rng(0), []
    for _ in range(120):
        losses = reward_losses(model, VOCAB, worth, worth.batch(rng))
        optimizer.zero_grad()
        losses["reward"].backward()
        optimizer.step()
        missed.append(losses["missed"].item())
    assert np.mean(missed[-20:]) < np.mean(missed[:20]) - 1


def test_one_caption_alone_cannot_be_compared():
    with pytest.raises(DataError, match="at least 2"):
        RewardRecipe(captions_per_image=1)


def test_pictures_without_sentences_are_refused():
    with pytest.raises(DataError, match="no sample has sentences"):
        CiderReward(
            [CodeSample(Sample("k", label="fox"), (np.array([3, 4]),))],
            ExampleBuilder(VOCAB, ids_of, TEMPLATES["own"]),
            detokenize,
            SHAPE,
        )
