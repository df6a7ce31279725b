"""Self-critical sequence training of captions (Rennie et al. 2017, arXiv:1612.00563) with CIDEr-D as the
reward.

Several captions are sampled for each image; the baseline of each is the mean reward of the others (Luo 2020,
arXiv:2003.09971).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from seed_edge.data.code_shards import CodeSample
from seed_edge.errors import DataError
from seed_edge.metrics.cider import Cider
from seed_edge.train.language.examples import ExampleBuilder
from seed_edge.train.trainer import Batch
from seed_edge.vocab import Vocab


@dataclass(frozen=True)
class RewardRecipe:
    """Settings of the reward."""

    weight: float = 1.0
    """Weight of this loss relative to the next-token losses."""
    images_per_step: int = 24
    """Images with sentences in each step."""
    captions_per_image: int = 5
    """Captions sampled for each image; at least 2."""
    max_length: int = 24
    """Maximum length of a sampled caption, in ids."""

    def __post_init__(self) -> None:
        if self.captions_per_image < 2:
            raise DataError(f"reward.captions_per_image is {self.captions_per_image}; it must be at least 2")


class CiderReward:
    """Images with reference sentences, and the CIDEr-D of captions of them."""

    def __init__(
        self,
        samples: Sequence[CodeSample],
        builder: ExampleBuilder,
        detokenize: Callable[[list[int]], str],
        recipe: RewardRecipe,
    ):
        """
        Raises:
            DataError: no sample has sentences.
        """
        self.samples = [item for item in samples if item.sample.captions and len(item.images) == 1]
        if not self.samples:
            raise DataError(
                "reward: no sample has sentences; give codes of such images, or a recipe without reward"
            )
        self._builder, self._detokenize, self.recipe = builder, detokenize, recipe
        self._cider = Cider([item.sample.captions for item in self.samples])
        self._references = [
            [self._cider.weighted(text) for text in item.sample.captions] for item in self.samples
        ]

    def batch(self, rng: np.random.Generator) -> Batch:
        """Return prompts (images, length), and the numbers of their samples."""
        numbers = rng.choice(len(self.samples), self.recipe.images_per_step)
        prompts = [self._builder.prompt_for_caption(self.samples[number], rng) for number in numbers]
        return {"shown": numbers.tolist(), "prompts": torch.tensor(prompts)}

    def scores(self, numbers: Sequence[int], sampled: Tensor, eos_id: int) -> Tensor:
        """Return the CIDEr-D (captions,), in [0, 10], of captions given as ids (captions, length) and numbers
        of their samples.
        """
        scores = []
        for number, row in zip(numbers, sampled.tolist(), strict=True):
            ids = row[: row.index(eos_id)] if eos_id in row else row
            scores.append(
                self._cider.score(self._cider.weighted(self._detokenize(ids)), self._references[number])
            )
        return torch.tensor(scores, device=sampled.device)


def reward_losses(
    model: LlamaForCausalLM, vocab: Vocab, reward: CiderReward, batch: Batch
) -> dict[str, Tensor]:
    """Sample captions and return two losses: `reward`, and `missed` = 10 - mean CIDEr-D, which has no
    gradient.
    """
    recipe = reward.recipe
    prompts = batch["prompts"].repeat_interleave(recipe.captions_per_image, 0)
    numbers = np.repeat(batch["shown"], recipe.captions_per_image).tolist()
    text = torch.from_numpy(vocab.text_mask()).to(prompts.device)
    sampled = sample_texts(model, prompts, text, vocab.eos_id, recipe.max_length)
    scores = reward.scores(numbers, sampled, vocab.eos_id)
    groups = scores.view(-1, recipe.captions_per_image)
    others = (groups.sum(1, keepdim=True) - groups) / (recipe.captions_per_image - 1)
    advantage = (groups - others).flatten()
    ended = (sampled == vocab.eos_id).long()
    valid = ended.cumsum(1) - ended == 0  # up to EOS, which is part of it
    ids = torch.cat([prompts, sampled[:, :-1]], 1)
    hidden = model.model(ids).last_hidden_state[:, prompts.shape[1] - 1 :]
    logits = model.lm_head(hidden[valid]).float().masked_fill(~text, -torch.inf)
    log_probs = -F.cross_entropy(logits, sampled[valid], reduction="none")
    gain = (advantage[:, None].expand_as(valid)[valid] * log_probs).sum() / len(log_probs)
    return {"reward": -recipe.weight * gain, "missed": 10 - scores.mean()}


@torch.no_grad()
def sample_texts(
    model: LlamaForCausalLM, prompts: Tensor, text: Tensor, eos_id: int, max_length: int
) -> Tensor:
    """Sample continuations (prompts, up to `max_length`) of prompts of one length, text ids only, at
    temperature 1.

    Ids after the end of a text are EOS.

    Args:
        text: (vocab,) bool, which ids are text.
    """
    ids, cache = prompts, None
    sampled: list[Tensor] = []
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=prompts.device)
    while len(sampled) < max_length and not ended.all():
        result = model.model(ids, past_key_values=cache, use_cache=True)
        cache = result.past_key_values
        logits = model.lm_head(result.last_hidden_state[:, -1]).float().masked_fill(~text, -torch.inf)
        ids = torch.multinomial(logits.softmax(-1), 1)
        ids[ended] = eos_id
        ended |= ids[:, 0] == eos_id
        sampled.append(ids)
    return torch.cat(sampled, 1)
