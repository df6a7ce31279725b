"""Captions learnt from what they are worth, not word by word: a few are drawn, and those nearest to what people said win.

Self-critical sequence training (Rennie et al. 2017, arXiv:1612.00563) with CIDEr-D as the reward; what a caption is compared
with is the mean of the others drawn for the same picture (Luo 2020, arXiv:2003.09971).
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
    """How captions are learnt from their worth."""

    weight: float = 1.0
    """Beside the losses of the other examples of a step."""
    images_per_step: int = 24
    """Pictures with sentences in a step."""
    captions_per_image: int = 5
    """Captions drawn for each."""
    max_length: int = 24
    """Ids of such a caption, at most."""

    def __post_init__(self) -> None:
        if self.captions_per_image < 2:
            raise DataError(f"reward.captions_per_image is {self.captions_per_image}; it must be at least 2")


class CiderReward:
    """Pictures to caption, and how much captions of them are worth."""

    def __init__(
        self,
        samples: Sequence[CodeSample],
        writer: ExampleBuilder,
        detokenize: Callable[[list[int]], str],
        shape: RewardRecipe,
    ):
        """
        Raises:
            DataError: no sample has sentences.
        """
        self.samples = [each for each in samples if each.sample.captions and len(each.images) == 1]
        if not self.samples:
            raise DataError("reward: no sample has sentences; give codes of such pictures, or a recipe without reward")
        self._writer, self._detokenize, self.shape = writer, detokenize, shape
        self._cider = Cider([each.sample.captions for each in self.samples])
        self._references = [[self._cider.weighted(text) for text in each.sample.captions] for each in self.samples]

    def batch(self, rng: np.random.Generator) -> Batch:
        """Prompts (pictures, length), and which samples they are of."""
        numbers = rng.choice(len(self.samples), self.shape.images_per_step)
        prompts = [self._writer.prompt_for_caption(self.samples[number], rng) for number in numbers]
        return {"shown": numbers.tolist(), "prompts": torch.tensor(prompts)}

    def of(self, numbers: Sequence[int], told: Tensor, eos_id: int) -> Tensor:
        """CiderReward (captions,) of ids (captions, length), each of the sample with that number."""
        worth = []
        for number, row in zip(numbers, told.tolist(), strict=True):
            ids = row[: row.index(eos_id)] if eos_id in row else row
            worth.append(self._cider.score(self._cider.weighted(self._detokenize(ids)), self._references[number]))
        return torch.tensor(worth, device=told.device)


def rewarded(model: LlamaForCausalLM, vocab: Vocab, worth: CiderReward, batch: Batch) -> dict[str, Tensor]:
    """Losses of captions drawn now; `missed` is what their worth lacks to the highest there is, and has no gradient."""
    shape = worth.shape
    prompts = batch["prompts"].repeat_interleave(shape.captions_per_image, 0)
    numbers = np.repeat(batch["shown"], shape.captions_per_image).tolist()
    text = torch.from_numpy(vocab.text_mask()).to(prompts.device)
    told = drawn_texts(model, prompts, text, vocab.eos_id, shape.max_length)
    value = worth.of(numbers, told, vocab.eos_id)
    groups = value.view(-1, shape.captions_per_image)
    others = (groups.sum(1, keepdim=True) - groups) / (shape.captions_per_image - 1)
    better = (groups - others).flatten()
    ended = (told == vocab.eos_id).long()
    said = ended.cumsum(1) - ended == 0  # up to EOS, which is part of it
    ids = torch.cat([prompts, told[:, :-1]], 1)
    hidden = model.model(ids).last_hidden_state[:, prompts.shape[1] - 1 :]
    logits = model.lm_head(hidden[said]).float().masked_fill(~text, -torch.inf)
    likely = -F.cross_entropy(logits, told[said], reduction="none")
    gain = (better[:, None].expand_as(said)[said] * likely).sum() / len(likely)
    return {"reward": -shape.weight * gain, "missed": 10 - value.mean()}


@torch.no_grad()
def drawn_texts(model: LlamaForCausalLM, prompts: Tensor, text: Tensor, eos_id: int, longest: int) -> Tensor:
    """Text ids (prompts, at most `longest`) that continue prompts of one length, drawn at temperature 1; EOS after the end.

    Args:
        text: (vocab,), which ids are text.
    """
    ids, cache = prompts, None
    told: list[Tensor] = []
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=prompts.device)
    while len(told) < longest and not ended.all():
        result = model.model(ids, past_key_values=cache, use_cache=True)
        cache = result.past_key_values
        logits = model.lm_head(result.last_hidden_state[:, -1]).float().masked_fill(~text, -torch.inf)
        ids = torch.multinomial(logits.softmax(-1), 1)
        ids[ended] = eos_id
        ended |= ids[:, 0] == eos_id
        told.append(ids)
    return torch.cat(told, 1)
