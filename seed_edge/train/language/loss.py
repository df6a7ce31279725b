"""Next-token loss of a language model, with text and codes reported separately."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from seed_edge.train.language.examples import IGNORED_LABEL
from seed_edge.train.language.scst import CiderReward, reward_losses
from seed_edge.train.trainer import Batch, LossModule
from seed_edge.vocab import Vocab

LENGTH_GROUPS = 3
"""Number of forward passes of one batch, each over examples of similar length."""


class LanguageLoss(LossModule):
    """Next-token losses `text` and `codes`; with a reward, the losses of `scst` as well."""

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        vocab: Vocab,
        text_weight: float = 1.0,
        reward: CiderReward | None = None,
    ) -> None:
        super().__init__()
        self.model, self.vocab, self._text_weight, self.reward = model, vocab, text_weight, reward

    def adamw_modules(self) -> list[nn.Module]:
        return [
            module
            for name, module in self.model.named_modules()
            if "lm_head" in name and isinstance(module, nn.Linear)
        ]

    def frozen_modules(self) -> list[nn.Module]:
        return [self.model]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        targets = batch["labels"][:, 1:]
        predicted = targets != IGNORED_LABEL
        llama = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        groups = list(length_groups(predicted))
        hidden = torch.cat(
            [llama.model(batch["ids"][rows, :end]).last_hidden_state[chosen] for rows, end, chosen in groups]
        )
        targets = torch.cat([targets[rows, :end][chosen] for rows, end, chosen in groups])
        losses_per_id = F.cross_entropy(llama.lm_head(hidden).float(), targets, reduction="none")
        first = self.vocab.first_code_id
        is_code = (targets >= first) & (targets < first + self.vocab.codebook_size)
        text, codes = (losses_per_id[kind].sum() / max(1, len(losses_per_id)) for kind in (~is_code, is_code))
        losses = {"text": self._text_weight * text, "codes": codes}
        if self.reward is not None and "prompts" in batch:
            losses |= reward_losses(llama, self.vocab, self.reward, batch)
        return losses


def length_groups(predicted: Tensor, count: int = LENGTH_GROUPS) -> Iterator[tuple[Tensor, int, Tensor]]:
    """Split a batch into groups of rows of similar length, since padding costs time.

    Args:
        predicted: (batch, length) bool, whether an id is predicted.

    Yields:
        Row numbers, the length of the longest of these rows, and `predicted` of these rows up to that length.
    """
    ends = (predicted * torch.arange(1, predicted.shape[1] + 1, device=predicted.device)).amax(1)
    for rows in ends.argsort(stable=True).chunk(count):
        end = max(1, int(ends[rows].max()))
        yield rows, end, predicted[rows, :end]
